//! The store against an identity service of the test's making, over real gRPC.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse,
    identity_server::{Identity as IdentityService, IdentityServer},
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};
use weft_api::model::Identity;

use super::*;
use crate::tls::{
    self, ServerId,
    testing::{Ca, HOUR, soon, tcp_pair},
};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

/// What the service does and has seen.
struct Behaviour {
    ca: Mutex<Arc<Ca>>,
    /// Answers nothing while there is no permit.
    gate: Semaphore,
    fails: AtomicBool,
    life: Mutex<Duration>,
    requests: Mutex<Vec<(CertifyRequest, Option<String>)>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

struct Service(Arc<Behaviour>);

#[tonic::async_trait]
impl IdentityService for Service {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let this = &self.0;
        let bearer = request.metadata().get("authorization");
        let bearer = bearer.map(|value| value.to_str().unwrap().to_owned());
        let request = request.into_inner();
        let csr = request.certificate_signing_request.clone();
        this.requests.lock().push((request, bearer));
        let now = this.in_flight.fetch_add(1, Relaxed) + 1;
        this.most_in_flight.fetch_max(now, Relaxed);
        let _permit = this.gate.acquire().await.unwrap();
        this.in_flight.fetch_sub(1, Relaxed);
        if this.fails.load(Relaxed) {
            return Err(Status::failed_precondition("not today"));
        }
        let (begin, end) = (
            SystemTime::now() - HOUR,
            SystemTime::now() + *this.life.lock(),
        );
        let leaf = this.ca.lock().sign(&csr, begin, end);
        Ok(Response::new(CertifyResponse {
            leaf_certificate: leaf.to_vec(),
            intermediate_certificates: vec![],
            valid_until: Some(end.into()),
        }))
    }
}

/// A store and the service it asks.
struct World {
    store: Store,
    service: Arc<Behaviour>,
    _token: tempfile::NamedTempFile,
    _serving: JoinSet<()>,
}

impl World {
    async fn start() -> Self {
        let ca = Arc::new(Ca::new("root"));
        let world = Self::without_bundle(Arc::clone(&ca)).await;
        world.store.set_bundle(&ca.pem()).unwrap();
        world
    }

    async fn without_bundle(ca: Arc<Ca>) -> Self {
        let service = Arc::new(Behaviour {
            ca: Mutex::new(ca),
            gate: Semaphore::new(1000),
            fails: AtomicBool::new(false),
            life: Mutex::new(HOUR),
            requests: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server =
            Server::builder().add_service(IdentityServer::new(Service(Arc::clone(&service))));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            server
                .serve_with_incoming_shutdown(incoming, pending())
                .await
                .unwrap();
        });
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "a-token\n").unwrap();
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap()
            .connect_lazy();
        let client = CaClient::new(channel, TokenFile::new(token.path()));
        Self {
            store: Store::new(client, None),
            service,
            _token: token,
            _serving: serving,
        }
    }

    /// Waits for a count to be reached.
    async fn until(&self, reached: impl Fn(&Stats) -> bool) {
        soon(async {
            while !reached(self.store.stats()) {
                time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

/// Lets a long time pass at once. The clock runs again after it, because a paused one would also
/// skip the waits for answers over the network.
async fn pass(time: Duration) {
    time::pause();
    time::advance(time).await;
    time::resume();
}

fn web() -> Identity {
    WEB.parse().unwrap()
}

/// Whether both can talk to each other.
async fn meet(client: &Credentials, server: &Credentials) -> bool {
    let (near, far) = tcp_pair().await;
    let id = ServerId {
        identity: server.identity.clone(),
        server_name: server.identity.as_str().into(),
    };
    let (client, server) = soon(async {
        tokio::join!(
            tls::client::connect(near, client, &id, false),
            tls::server::accept(far, server)
        )
    })
    .await;
    client.is_ok() && server.is_ok()
}

#[tokio::test]
async fn a_certificate_is_fetched_for_the_first_user_and_shared() {
    let world = World::start().await;
    let handle = world.store.acquire(&web());
    let credentials = soon(handle.ready()).await;
    assert_eq!(credentials.identity, web());
    let again = world.store.acquire(&web());
    assert!(Arc::ptr_eq(&credentials, &again.current().unwrap()));
    assert!(meet(&credentials, &credentials).await);

    let requests = world.service.requests.lock();
    let [(request, bearer)] = &requests[..] else {
        panic!("{} requests", requests.len());
    };
    assert_eq!(request.identity, WEB);
    assert_eq!(request.token, b"a-token");
    assert_eq!(bearer.as_deref(), Some("Bearer a-token"));
    assert_eq!(
        world.store.statuses(),
        [super::Status {
            identity: web(),
            expires: Some(credentials.expires),
            users: 2
        }]
    );
}

#[tokio::test]
async fn a_request_has_one_name_and_an_empty_subject() {
    use x509_parser::{certification_request::X509CertificationRequest, prelude::*};
    let request = request::make(&web()).unwrap();
    let (_, csr) = X509CertificationRequest::from_der(&request.csr).unwrap();
    csr.verify_signature().unwrap();
    assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
    let names: Vec<_> = csr
        .requested_extensions()
        .unwrap()
        .flat_map(|extension| {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                panic!("{extension:?}");
            };
            &names.general_names
        })
        .collect();
    assert_eq!(names, [&GeneralName::DNSName(WEB)]);
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_with_a_fresh_key() {
    let world = World::start().await;
    let handle = world.store.acquire(&web());
    let first = soon(handle.ready()).await;
    pass(HOUR.mul_f64(0.59)).await;
    assert_eq!(world.store.stats().refreshed.load(Relaxed), 1);
    pass(HOUR.mul_f64(0.12)).await;
    world
        .until(|stats| stats.refreshed.load(Relaxed) == 2)
        .await;
    let second = handle.current().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(meet(&first, &second).await && meet(&second, &first).await);
    let requests = world.service.requests.lock();
    assert_ne!(
        requests[0].0.certificate_signing_request,
        requests[1].0.certificate_signing_request
    );
    assert_eq!(handle.stats().refreshed.load(Relaxed), 2);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_renewed_stays_in_use() {
    let world = World::start().await;
    let handle = world.store.acquire(&web());
    let first = soon(handle.ready()).await;
    world.service.fails.store(true, Relaxed);
    pass(HOUR.mul_f64(0.71)).await;
    world.until(|stats| stats.failed.load(Relaxed) == 1).await;
    assert!(Arc::ptr_eq(&first, &handle.current().unwrap()));
    // Tried again after the backoff, which is 10 s and not 70 % of what is left.
    world.service.fails.store(false, Relaxed);
    pass(Duration::from_secs(11)).await;
    world
        .until(|stats| stats.refreshed.load(Relaxed) == 2)
        .await;
}

#[tokio::test]
async fn a_pod_that_waits_for_its_first_certificate_gets_it_soon_after_the_service_is_back() {
    let world = World::start().await;
    world.service.fails.store(true, Relaxed);
    let handle = world.store.acquire(&web());
    world.until(|stats| stats.failed.load(Relaxed) == 1).await;
    assert!(handle.current().is_none());
    assert_eq!(
        handle.credentials().err().unwrap().to_string(),
        format!("no certificate for {WEB} yet")
    );
    world.service.fails.store(false, Relaxed);
    pass(Duration::from_millis(200)).await;
    soon(handle.ready()).await;
}

#[tokio::test]
async fn a_certificate_that_ended_is_counted_and_stays_in_use() {
    let world = World::start().await;
    *world.service.life.lock() = Duration::from_secs(2);
    let handle = world.store.acquire(&web());
    soon(handle.ready()).await;
    world.service.fails.store(true, Relaxed);
    world.until(|stats| stats.expired.load(Relaxed) == 1).await;
    let credentials = handle.current().unwrap();
    assert!(credentials.is_expired(SystemTime::now()));
}

#[tokio::test]
async fn nothing_is_asked_for_before_there_is_a_bundle_and_after_the_last_user_has_gone() {
    let ca = Arc::new(Ca::new("root"));
    let world = World::without_bundle(Arc::clone(&ca)).await;
    let handle = world.store.acquire(&web());
    tokio::task::yield_now().await;
    assert!(world.service.requests.lock().is_empty());
    world.store.set_bundle(&ca.pem()).unwrap();
    soon(handle.ready()).await;
    drop(handle);
    assert_eq!(world.store.statuses(), []);
    pass(HOUR).await;
    assert_eq!(world.service.requests.lock().len(), 1);
    soon(world.store.acquire(&web()).ready()).await;
    assert_eq!(world.service.requests.lock().len(), 2);
}

#[tokio::test]
async fn a_new_bundle_takes_effect_at_once_and_a_broken_one_not_at_all() {
    let world = World::start().await;
    let handle = world.store.acquire(&web());
    let old = soon(handle.ready()).await;
    let (old_ca, new_ca) = (
        Arc::clone(&world.service.ca.lock()),
        Arc::new(Ca::new("new")),
    );
    let stranger = new_ca.credentials(WEB);
    assert!(!meet(&old, &stranger).await);

    assert!(world.store.set_bundle("nonsense").is_err());
    assert!(Arc::ptr_eq(&old, &handle.current().unwrap()));
    assert_eq!(world.store.stats().bundles_refused.load(Relaxed), 1);

    world.store.set_bundle(&old_ca.pem()).unwrap();
    assert!(Arc::ptr_eq(&old, &handle.current().unwrap()));
    assert_eq!(world.store.stats().bundles.load(Relaxed), 1);

    // Both roots: the old certificate stays, and peers with a new one are believed.
    world
        .store
        .set_bundle(&(old_ca.pem() + &new_ca.pem()))
        .unwrap();
    let both = handle.current().unwrap();
    let (near, far) = tcp_pair().await;
    let id = ServerId {
        identity: web(),
        server_name: WEB.into(),
    };
    let (client, _server) = soon(async {
        tokio::join!(
            tls::client::connect(near, &both, &id, false),
            tls::server::accept(far, &stranger)
        )
    })
    .await;
    client.unwrap();
    assert_eq!(world.store.stats().refreshed.load(Relaxed), 1);

    // The new root alone: the certificate leads nowhere now and is renewed without delay.
    *world.service.ca.lock() = Arc::clone(&new_ca);
    world.store.set_bundle(&new_ca.pem()).unwrap();
    world
        .until(|stats| stats.refreshed.load(Relaxed) == 2)
        .await;
    assert!(meet(&handle.current().unwrap(), &stranger).await);
}

#[tokio::test]
async fn at_most_eight_requests_are_in_flight() {
    let world = World::start().await;
    world.service.gate.forget_permits(1000);
    let handles: Vec<_> = (0..20)
        .map(|nth| {
            world
                .store
                .acquire(&format!("sa{nth}.shop").parse().unwrap())
        })
        .collect();
    soon(async {
        while world.service.in_flight.load(Relaxed) < 8 {
            time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    world.service.gate.add_permits(1000);
    for handle in &handles {
        soon(handle.ready()).await;
    }
    assert_eq!(world.service.most_in_flight.load(Relaxed), 8);
}

#[test]
fn what_comes_back_is_checked_before_it_is_used() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("foreign"));
    let now = SystemTime::now();
    let request = request::make(&web()).unwrap();
    let sign = |ca: &Ca, begin, end| vec![ca.sign(&request.csr, begin, end)];
    let other = request::make(&"api.shop".parse().unwrap()).unwrap();
    let stolen = ca.certified(&[WEB], now + HOUR).cert.clone();
    for (case, chain, expected) in [
        ("good", sign(&ca, now - HOUR, now + HOUR), None),
        ("nothing", vec![], Some("certificate does not parse")),
        (
            "junk",
            vec![b"junk"[..].to_vec().into()],
            Some("certificate does not name web"),
        ),
        (
            "other name",
            vec![ca.sign(&other.csr, now - HOUR, now + HOUR)],
            Some("certificate does not name web"),
        ),
        (
            "other key",
            stolen,
            Some("certificate is not for the key that was sent"),
        ),
        (
            "foreign root",
            sign(&foreign, now - HOUR, now + HOUR),
            Some("certificate does not chain to the trust bundle"),
        ),
        (
            "ended",
            sign(&ca, now - 2 * HOUR, now - HOUR),
            Some("certificate ended"),
        ),
        (
            "begins later",
            sign(&ca, now + HOUR, now + 2 * HOUR),
            Some("certificate is valid only"),
        ),
    ] {
        let outcome = verify::certify(&web(), Arc::clone(&request.key), chain, None, &ca.bundle());
        match (outcome.map_err(|error| error.to_string()), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.starts_with(expected), "{case}: {error}"),
            (outcome, _) => panic!("{case}: {:?}", outcome.err()),
        }
    }
}

#[tokio::test]
async fn a_token_file_is_one_line_or_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let token = TokenFile::new(file.path());
    for (content, expected) in [
        ("abc.def\n", Some("Bearer abc.def")),
        ("  abc ", Some("Bearer abc")),
        ("", None),
        ("two words", None),
        ("two\nlines", None),
    ] {
        std::fs::write(file.path(), content).unwrap();
        let bearer = token.bearer().await.ok();
        assert_eq!(
            bearer.as_ref().map(|value| value.to_str().unwrap()),
            expected
        );
        assert!(bearer.is_none_or(|value| value.is_sensitive()));
    }
    assert!(matches!(
        TokenFile::new("/nowhere").read().await,
        Err(TokenError::Read { .. })
    ));
}
