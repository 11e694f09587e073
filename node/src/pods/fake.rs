//! A kernel side and namespaces that record what is asked of them, for tests of the order.

use std::{
    collections::HashSet,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use parking_lot::Mutex;
use socket2::Socket;

use super::{
    datapath::Datapath,
    inside::{Inside, InsideError, Proving, Steering},
    legacy::Connection,
    netns::Netns,
    rules::ForeignRule,
    sockets::{self, Family, Kind, Ports},
    view::View,
};
use crate::kernel::{
    Expected, Fault, Guard, KernelError, KnownPod, ListenerSlot, PodKernel, Skips,
};

/// Is told of every call.
type Hook = Box<dyn Fn(&str) + Send>;

/// What was asked, in order; and what is to fail or to be found.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) calls: Mutex<Vec<String>>,
    /// The call that fails.
    pub(super) fails: Mutex<Option<&'static str>>,
    /// What the next verify finds.
    pub(super) faults: Mutex<Vec<Fault>>,
    /// Whether rules have gone.
    pub(super) is_unrouted: Mutex<bool>,
    pub(super) connections: Mutex<HashSet<Connection>>,
    /// Called at every step.
    pub(super) hook: Mutex<Option<Hook>>,
    /// Whether listeners are still open somewhere else.
    pub(super) is_held_elsewhere: Mutex<bool>,
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The calls since the last time.
    pub(super) fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock())
    }

    fn call(&self, call: impl Into<String>) -> Result<(), KernelError> {
        let call = call.into();
        if let Some(hook) = &*self.hook.lock() {
            hook(&call);
        }
        self.calls.lock().push(call.clone());
        match *self.fails.lock() {
            Some(fails) if call.starts_with(fails) => Err(KernelError::Invalid {
                what: "fake",
                value: call,
            }),
            _ => Ok(()),
        }
    }

    fn inside(&self, call: &'static str) -> Result<(), InsideError> {
        self.call(call).map_err(|_failed| InsideError::Socket {
            step: call,
            source: io::ErrorKind::Other.into(),
        })
    }
}

impl Datapath for Fake {
    fn add_pod(&self, pod: &PodKernel<'_>) -> Result<(), KernelError> {
        self.call(format!("add {:?}", pod.guard))
    }

    fn set_enrolled(&self, _cookie: u64, enrolled: bool) -> Result<(), KernelError> {
        self.call(format!("enrolled {enrolled}"))
    }

    fn set_guard(&self, _cookie: u64, guard: Guard) -> Result<(), KernelError> {
        self.call(format!("guard {guard:?}"))
    }

    fn remove_pod(&self, _cookie: u64, _slot: u32) -> Result<(), KernelError> {
        self.call("remove")
    }

    fn set_skips(&self, _cookie: u64, _skips: &Skips) -> Result<(), KernelError> {
        self.call("skips")
    }

    fn set_listener(
        &self,
        _slot: u32,
        which: ListenerSlot,
        _listener: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        self.call(format!("place {which:?}"))
    }

    fn clear_listeners(&self, _slot: u32) -> Result<(), KernelError> {
        self.call("clear")
    }

    fn listener_cookie(
        &self,
        _slot: u32,
        _which: ListenerSlot,
    ) -> Result<Option<u64>, KernelError> {
        Ok(self.is_held_elsewhere.lock().then_some(1))
    }

    fn tag_lent(&self, _socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.call("tag")
    }

    fn attach_outbound(
        &self,
        _uid: &str,
        _slot: u32,
        _cookie: u64,
        _netns: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        self.call("steer out")
    }

    fn attach_inbound(
        &self,
        _uid: &str,
        _slot: u32,
        _cookie: u64,
        _ifindex: u32,
    ) -> Result<(), KernelError> {
        self.call("steer in")
    }

    fn detach(&self, _uid: &str) -> Result<(), KernelError> {
        self.call("detach")
    }

    fn verify(&self, _expected: &Expected<'_>) -> Result<Vec<Fault>, KernelError> {
        self.call("verify")?;
        Ok(std::mem::take(&mut *self.faults.lock()))
    }

    fn repair_cgroup_links(&self) -> Result<(), KernelError> {
        self.call("cgroup")
    }

    fn known_pods(&self) -> Result<Vec<KnownPod>, KernelError> {
        Ok(Vec::new())
    }

    fn pinned_pods(&self) -> Result<Vec<String>, KernelError> {
        Ok(Vec::new())
    }
}

/// Address of every fake pod.
pub(super) const ADDRESS: &str = "10.0.0.1";

impl Inside for Fake {
    fn open(&self, path: &Path) -> Result<Netns, InsideError> {
        let opened = File::open(path);
        let file = opened.map_err(|source| InsideError::Socket {
            step: "open",
            source,
        })?;
        Ok(Netns::fake(file.into()))
    }

    fn look(&self, _netns: &Netns) -> Result<(u64, View), InsideError> {
        let view = View {
            interfaces: vec![(2, "eth0".to_owned())],
            addresses: vec![ADDRESS.parse().expect("an address")],
        };
        Ok((7, view))
    }

    fn bind(
        &self,
        _netns: &Netns,
        kinds: &[Kind],
        _ports: Ports,
    ) -> Result<Vec<(Kind, Socket)>, InsideError> {
        self.inside("bind")?;
        let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
        let v4 = kinds.iter().filter(|kind| kind.family() == Family::V4);
        let sockets = v4.map(|kind| {
            let socket = sockets::dial(Family::V4).expect("a socket");
            socket.bind(&loopback.into()).expect("a free port");
            (*kind, socket)
        });
        Ok(sockets.collect())
    }

    fn route(&self, _netns: &Netns, _view: &View) -> Result<Vec<ForeignRule>, InsideError> {
        self.inside("route")?;
        *self.is_unrouted.lock() = false;
        Ok(Vec::new())
    }

    fn is_routed(&self, _netns: &Netns, _view: &View) -> Result<bool, InsideError> {
        Ok(!*self.is_unrouted.lock())
    }

    fn unroute(&self, _netns: &Netns) -> Result<(), InsideError> {
        self.inside("unroute")
    }

    fn steer_inbound(
        &self,
        _netns: &Netns,
        steering: &Steering,
        interfaces: &[u32],
    ) -> Result<(), InsideError> {
        for ifindex in interfaces {
            steering
                .datapath
                .attach_inbound(&steering.uid, steering.slot, steering.cookie, *ifindex)
                .map_err(|source| InsideError::Attach {
                    ifindex: *ifindex,
                    source,
                })?;
        }
        Ok(())
    }

    fn prove(
        &self,
        _netns: &Netns,
        _proving: &Proving,
        _skipped: &[IpNet],
    ) -> Result<(), InsideError> {
        self.inside("prove")
    }

    fn dial(
        &self,
        _netns: &Netns,
        family: Family,
        count: usize,
    ) -> Result<Vec<Socket>, InsideError> {
        Ok((0..count)
            .map(|_| sockets::dial(family).expect("a socket"))
            .collect())
    }

    fn connections(
        &self,
        _netns: &Netns,
        _own: &[IpAddr],
    ) -> Result<HashSet<Connection>, InsideError> {
        Ok(self.connections.lock().clone())
    }

    fn captured(&self, _netns: &Netns, _own: &[IpAddr]) -> Result<Vec<Connection>, InsideError> {
        self.inside("captured?")?;
        Ok(Vec::new())
    }

    fn cut(&self, _netns: &Netns, connections: Vec<Connection>) -> Result<usize, InsideError> {
        self.inside("cut")?;
        Ok(connections.len())
    }
}
