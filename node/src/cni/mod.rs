//! How container runtimes tell about sandboxes: the plugin `weft-cni`, which they run once per
//! event, and the daemon's end of its socket.
//!
//! The plugin is small and holds no state: it turns the runtime's request into one line of JSON
//! for `RUN_DIR/cni.sock` and the answer back into what the CNI specification asks for.

pub mod plugin;
pub mod protocol;
pub mod server;
