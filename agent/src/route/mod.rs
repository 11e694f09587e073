//! Which route a request takes: the first, in the order of preference, that is for it.
//!
//! Pure: looks at method and path only.

mod matcher;

pub use matcher::find;
