//! What this agent has of each pod, kept over reconnects.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::net::sockopt::socket_cookie;
use tokio::{net::TcpSocket, sync::mpsc};
use tracing::{debug, info};
use weft_api::{
    model::{Pod, PodUid},
    proto::lend::{self, to_agent::Message},
};
use weft_runtime::logging::report;

use super::{Event, ListenerKind};
use crate::sockets::{Family, Lender, Stock, options};

/// Why something could not be carried out: a sentence for weft-node, which logs it.
type Outcome = Result<(), String>;

pub(super) struct Pods {
    events: mpsc::Sender<Event>,
    lender: Arc<dyn Lender>,
    held: HashMap<PodUid, Held>,
    /// Pods announced since `Welcome`; `None` after the snapshot.
    announced: Option<HashSet<PodUid>>,
    instance: u64,
    generation: u64,
    draining: bool,
}

struct Held {
    listeners: Vec<Listener>,
    stock: Arc<Stock>,
    ips: Vec<IpAddr>,
}

struct Listener {
    kind: ListenerKind,
    cookie: u64,
    socket: TcpListener,
}

impl Pods {
    pub(super) fn new(events: mpsc::Sender<Event>, lender: Arc<dyn Lender>) -> Self {
        Self {
            events,
            lender,
            held: HashMap::new(),
            announced: None,
            instance: rand::random(),
            generation: 0,
            draining: false,
        }
    }

    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn hello(&self, version: u32) -> lend::Hello {
        lend::Hello {
            version,
            instance: self.instance,
            generation: self.generation,
            draining: self.draining,
            holding: u32::try_from(self.held.len()).unwrap_or(u32::MAX),
        }
    }

    /// The listeners of each pod, to be offered back.
    pub(super) fn holding(&self) -> Vec<(lend::Holding, Vec<&TcpListener>)> {
        let offer = |(uid, held): (&PodUid, &'_ Held)| lend::Holding {
            uid: uid.to_string(),
            listeners: held
                .listeners
                .iter()
                .map(|listener| listener.kind.to_proto().into())
                .collect(),
        };
        self.held
            .iter()
            .map(|(uid, held)| {
                let sockets = held.listeners.iter().map(|listener| &listener.socket);
                (offer((uid, held)), sockets.collect())
            })
            .collect()
    }

    pub(super) fn welcome(&mut self, generation: u64) {
        self.generation = generation;
        self.announced = Some(HashSet::new());
    }

    pub(super) fn disconnected(&mut self) {
        self.announced = None;
        for held in self.held.values() {
            held.stock.forget_asked();
        }
    }

    pub(super) async fn apply(&mut self, message: Message, descriptors: Vec<OwnedFd>) -> Outcome {
        match message {
            Message::PodAdded(added) => self.add(added, descriptors).await,
            Message::PodChanged(changed) => self.change(changed).await,
            Message::PodRemoved(removed) => {
                self.remove(&PodUid::from(removed.uid.as_str())).await;
                Ok(())
            }
            Message::Sockets(sockets) => self.put(&sockets, descriptors),
            Message::SnapshotSent(_) => {
                self.forget_unannounced().await;
                self.tell(Event::SnapshotSent).await;
                Ok(())
            }
            Message::Drain(_) => {
                self.draining = true;
                self.tell(Event::Drain).await;
                Ok(())
            }
            Message::Welcome(_) => Err("welcome was said already".to_owned()),
        }
    }

    async fn add(&mut self, added: lend::PodAdded, descriptors: Vec<OwnedFd>) -> Outcome {
        // First of all: a pod whose record cannot be used is still there, and what was known of it
        // before stays in use.
        if let (Some(announced), Some(pod)) = (&mut self.announced, &added.pod) {
            announced.insert(PodUid::from(pod.uid.as_str()));
        }
        let kinds: Vec<_> = added.listeners().collect();
        if kinds.len() != descriptors.len() {
            return Err(format!(
                "{} listeners were named and {} came",
                kinds.len(),
                descriptors.len()
            ));
        }
        let pod = parse(added.pod)?;
        let ips = parse_ips(&added.ips)?;
        let mut offered = Vec::with_capacity(descriptors.len());
        for (kind, socket) in kinds.into_iter().zip(descriptors) {
            match ListenerKind::from_proto(kind) {
                Some(kind) => offered.push(Listener::new(kind, socket)?),
                // Of a newer weft-node: what is not understood is not accepted on.
                None => debug!(pod = %pod.display_name(), "listener of an unknown kind"),
            }
        }
        let is_same = self
            .held
            .get(&pod.uid)
            .is_some_and(|held| held.has(&offered) && held.ips == ips);
        let held = self.held.entry(pod.uid.clone()).or_insert_with(|| Held {
            listeners: Vec::new(),
            stock: Arc::new(Stock::new(pod.uid.clone(), Arc::clone(&self.lender))),
            ips: Vec::new(),
        });
        held.ips.clone_from(&ips);
        for family in families(&ips) {
            held.stock.prepare(family);
        }
        let pod = Box::new(pod);
        if is_same {
            self.tell(Event::PodChanged { pod }).await;
            return Ok(());
        }
        let listeners = copies(&offered)?;
        held.listeners = offered;
        let stock = Arc::clone(&held.stock);
        info!(pod = %pod.display_name(), listeners = listeners.len(), "pod meshed");
        self.tell(Event::PodAdded {
            pod,
            ips,
            listeners,
            stock,
        })
        .await;
        Ok(())
    }

    async fn change(&self, changed: lend::PodChanged) -> Outcome {
        let pod = parse(changed.pod)?;
        if !self.held.contains_key(&pod.uid) {
            return Err(format!("pod {} was not announced", pod.display_name()));
        }
        self.tell(Event::PodChanged { pod: Box::new(pod) }).await;
        Ok(())
    }

    async fn remove(&mut self, uid: &PodUid) {
        if let Some(held) = self.held.remove(uid) {
            held.stock.close();
            info!(%uid, "pod is not meshed any more");
            self.tell(Event::PodRemoved { uid: uid.clone() }).await;
        }
    }

    async fn forget_unannounced(&mut self) {
        let Some(announced) = self.announced.take() else {
            return;
        };
        let gone: Vec<_> = self
            .held
            .keys()
            .filter(|uid| !announced.contains(uid))
            .cloned()
            .collect();
        // One that drains is told of no pods; those it knows are still its own.
        if self.draining {
            return;
        }
        for uid in gone {
            self.remove(&uid).await;
        }
    }

    fn put(&self, sockets: &lend::Sockets, descriptors: Vec<OwnedFd>) -> Outcome {
        let Some(held) = self.held.get(&PodUid::from(sockets.uid.as_str())) else {
            return Ok(());
        };
        let family = match sockets.family() {
            lend::Family::V4 => Family::V4,
            lend::Family::V6 => Family::V6,
            lend::Family::Unspecified => return Err("sockets of no family".to_owned()),
        };
        let sockets_of_pod: Result<Vec<_>, String> =
            descriptors.into_iter().map(dial_socket).collect();
        match sockets_of_pod {
            Ok(ready) => {
                held.stock.put(family, ready, &sockets.error);
                Ok(())
            }
            Err(error) => {
                held.stock.put(family, Vec::new(), &error);
                Err(error)
            }
        }
    }

    async fn tell(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            debug!("nobody listens to weft-node any more");
        }
    }
}

impl Held {
    /// Whether these are the sockets that are held already.
    fn has(&self, offered: &[Listener]) -> bool {
        let mut known: Vec<_> = self.listeners.iter().map(Listener::key).collect();
        let mut offered: Vec<_> = offered.iter().map(Listener::key).collect();
        known.sort_unstable();
        offered.sort_unstable();
        known == offered
    }
}

impl Listener {
    fn new(kind: ListenerKind, socket: OwnedFd) -> Result<Self, String> {
        let describe = |error| format!("listener {kind:?}: {error}");
        options::set(&socket).map_err(describe)?;
        let cookie = socket_cookie(&socket).map_err(|errno| describe(errno.into()))?;
        Ok(Self {
            kind,
            cookie,
            socket: socket.into(),
        })
    }

    fn key(&self) -> (u64, i32) {
        (self.cookie, self.kind.to_proto().into())
    }
}

fn copies(listeners: &[Listener]) -> Result<Vec<(ListenerKind, TcpListener)>, String> {
    listeners
        .iter()
        .map(|listener| match listener.socket.try_clone() {
            Ok(socket) => Ok((listener.kind, socket)),
            Err(error) => Err(format!("listener {:?}: {error}", listener.kind)),
        })
        .collect()
}

fn dial_socket(socket: OwnedFd) -> Result<TcpSocket, String> {
    options::set(&socket).map_err(|error| format!("dial socket: {error}"))?;
    Ok(TcpSocket::from_std_stream(TcpStream::from(socket)))
}

fn parse(pod: Option<weft_api::proto::node::Pod>) -> Result<Pod, String> {
    let pod = pod.ok_or_else(|| "pod record is missing".to_owned())?;
    Pod::try_from(pod).map_err(|error| report(&error).to_string())
}

fn parse_ips(ips: &[String]) -> Result<Vec<IpAddr>, String> {
    ips.iter()
        .map(|ip| ip.parse().map_err(|_error| format!("{ip:?} is no address")))
        .collect()
}

fn families(ips: &[IpAddr]) -> Vec<Family> {
    let v4 = ips.iter().any(IpAddr::is_ipv4).then_some(Family::V4);
    let v6 = ips.iter().any(IpAddr::is_ipv6).then_some(Family::V6);
    v4.into_iter().chain(v6).collect()
}
