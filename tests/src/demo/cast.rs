//! Who plays in the demo: pods, services and the programs in them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;

use crate::{
    apps,
    hammer::Hammer,
    manifest::ServiceSpec,
    pod::{Pod, PodSpec},
    process::Process,
    world::World,
};

/// Port of the gRPC echo.
pub const GRPC: u16 = 9000;
/// Port of the WebSocket echo.
pub const WEBSOCKET: u16 = 9001;
/// Port of the server that says which addresses it sees.
pub const MIRROR: u16 = 9002;
/// Port of the vote application's parts.
pub const VOTE: u16 = 8080;

/// Name, app, node and ports of every meshed pod.
const PODS: &[(&str, &str, &str, &[u16])] = &[
    ("client", "client", "n1", &[]),
    ("web-1", "web", "n1", &[apps::NGINX]),
    ("web-2", "web", "n2", &[apps::NGINX]),
    ("cache", "cache", "n2", &[apps::REDIS]),
    ("db", "db", "n2", &[apps::POSTGRES]),
    ("grpc", "grpc", "n2", &[GRPC]),
    ("ws", "ws", "n2", &[WEBSOCKET]),
    ("mirror", "mirror", "n2", &[MIRROR]),
    ("vote-web", "vote-web", "n1", &[VOTE]),
    ("vote-emoji", "vote-emoji", "n2", &[VOTE]),
    ("vote-voting", "vote-voting", "n2", &[VOTE]),
    ("vote-bot", "vote-bot", "n1", &[]),
];

/// Name of a service, its port and its pods' port.
const SERVICES: &[(&str, u16, u16)] = &[
    ("web", 80, apps::NGINX),
    ("cache", apps::REDIS, apps::REDIS),
    ("db", apps::POSTGRES, apps::POSTGRES),
    ("grpc", GRPC, GRPC),
    ("ws", WEBSOCKET, WEBSOCKET),
    ("mirror", MIRROR, MIRROR),
    ("vote-web", 80, VOTE),
    ("vote-emoji", VOTE, VOTE),
    ("vote-voting", VOTE, VOTE),
];

/// The pod that is not meshed.
pub const OUTSIDER: &str = "outsider";

/// The running demo.
#[derive(Debug)]
pub struct Demo {
    /// Its world.
    pub world: World,
    pods: BTreeMap<String, Pod>,
    services: BTreeMap<String, (Vec<IpAddr>, u16)>,
    programs: Mutex<Vec<Process>>,
}

impl Demo {
    /// Builds all of it, telling each step to `tell`, which may end it by an error.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn build(name: &str, tell: &dyn Fn(&str) -> Result<()>) -> Result<Self> {
        tell("nodes n1 and n2")?;
        let mut demo = Self {
            world: World::named(name).build()?,
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            programs: Mutex::default(),
        };
        match demo.fill(tell) {
            Ok(()) => Ok(demo),
            Err(error) => {
                demo.world.mark_failed();
                Err(error)
            }
        }
    }

    fn fill(&mut self, tell: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        tell("controller on n1")?;
        self.world.start_controller()?;
        for node in self.world.nodes() {
            tell(&format!("weft-node and weft-agent on {}", node.name()))?;
            node.start_daemon()?;
            node.start_agent()?;
        }
        for (service, port, target) in SERVICES {
            let ips = self
                .world
                .service(&ServiceSpec::new(service, *port, *target))?;
            self.services.insert((*service).to_owned(), (ips, *port));
        }
        for (name, app, node, ports) in PODS {
            tell(&format!("pod {name} on {node}"))?;
            let mut spec = PodSpec::new(name, node).app(app).meshed();
            spec.ports = ports.to_vec();
            let pod = self.world.pod(spec)?;
            self.pods.insert((*name).to_owned(), pod);
        }
        tell("pod outsider on n2, not meshed")?;
        let outsider = self.world.pod(PodSpec::new(OUTSIDER, "n2"))?;
        self.pods.insert(OUTSIDER.to_owned(), outsider);
        self.start_programs(tell)?;
        for (name, ..) in PODS {
            self.world.wait_ready(self.pod(name)?)?;
        }
        tell("all pods are ready")
    }

    fn start_programs(&self, tell: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        for name in ["web-1", "web-2", OUTSIDER] {
            tell(&format!("nginx in {name}"))?;
            self.keep(apps::nginx(self.pod(name)?)?);
        }
        tell("redis in cache")?;
        self.keep(apps::redis(self.pod("cache")?)?);
        tell("PostgreSQL in db")?;
        self.keep(apps::postgres(self.pod("db")?)?);
        let listen = |port: u16| vec!["--listen".to_owned(), format!("[::]:{port}")];
        tell("gRPC, WebSocket and address echo")?;
        self.start("grpc", "grpc-echo", &listen(GRPC))?;
        self.start("ws", "ws-echo", &listen(WEBSOCKET))?;
        let both = [
            "serve".to_owned(),
            format!("0.0.0.0:{MIRROR}"),
            format!("[::]:{MIRROR}"),
        ];
        self.start("mirror", "socket-styles", &both)?;
        tell("vote application and its bot")?;
        self.start("vote-emoji", "vote-emoji", &listen(VOTE))?;
        self.start("vote-voting", "vote-voting", &listen(VOTE))?;
        let mut web = listen(VOTE);
        for service in ["emoji", "voting"] {
            let address = self.service(&format!("vote-{service}"))?;
            web.extend([format!("--{service}"), address.to_string()]);
        }
        self.start("vote-web", "vote-web", &web)?;
        let url = format!("http://{}", self.service("vote-web")?);
        let bot = ["--web", &url, "--rps", "10"].map(str::to_owned);
        self.start("vote-bot", "vote-bot", &bot)
    }

    fn start(&self, pod: &str, program: &str, args: &[String]) -> Result<()> {
        let process = apps::own(self.pod(pod)?, program, args)
            .with_context(|| format!("{program} in {pod}"))?;
        self.keep(process);
        Ok(())
    }

    fn keep(&self, process: Process) {
        self.programs.lock().push(process);
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .get(name)
            .with_context(|| format!("no pod {name}"))
    }

    /// Primary virtual address and port of a service.
    ///
    /// # Errors
    /// When there is none.
    pub fn service(&self, name: &str) -> Result<SocketAddr> {
        match self.addresses(name)?.first() {
            Some(address) => Ok(*address),
            None => bail!("service {name} without address"),
        }
    }

    /// All virtual addresses of a service, with its port.
    ///
    /// # Errors
    /// When there is none.
    pub fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>> {
        let (ips, port) = self
            .services
            .get(name)
            .with_context(|| format!("no service {name}"))?;
        Ok(ips.iter().map(|ip| SocketAddr::new(*ip, *port)).collect())
    }

    /// Starts clients that keep some traffic of every kind going. The load on nginx ends with
    /// what is returned, the others with the world.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_traffic(&self) -> Result<Hammer> {
        let client = self.pod("client")?;
        let cache = self.service("cache")?;
        let line = format!(
            "-h {} -p {} -r -1 -i 0.2 incr visits",
            cache.ip(),
            cache.port()
        );
        let redis = client.launch("redis-cli").args(line.split(' '));
        self.keep(client.spawn("redis-load", redis)?);
        let db = self.service("db")?;
        let line = format!("-h {} -p {} -U postgres", db.ip(), db.port());
        client.run(&format!("pgbench -i -q {line} postgres"))?;
        let line = format!("{line} -n -c 1 -R 5 -T 1000000 postgres");
        let pgbench = client.launch("pgbench").args(line.split(' '));
        self.keep(client.spawn("pgbench-load", pgbench)?);
        let args = ["--keep", "--pause-ms", "20", "--connections", "2"];
        Hammer::start(client, "web-load", self.service("web")?, &args)
    }

    /// What a person may try while the demo runs.
    ///
    /// # Errors
    /// When the cast is not whole.
    pub fn suggestions(&self) -> Result<String> {
        let enter = |pod: &Pod| {
            let procs = pod.cgroup().join("cgroup.procs");
            format!(
                "sh -c 'echo $$ > {}; exec {} bash'",
                procs.display(),
                pod.netns().enter_command()
            )
        };
        let (client, outsider) = (self.pod("client")?, self.pod(OUTSIDER)?);
        let web = self.service("web")?;
        let web_ip = web.ip();
        let n1 = self.world.node("n1")?.netns().enter_command();
        let n2 = self.world.node("n2")?.netns().enter_command();
        let web_2 = self.pod("web-2")?.ip();
        let net = self.world.underlay().enter_command();
        Ok(format!(
            "A shell in pod client (a process of the pod, so that its traffic is meshed):\n\
             \x20 {}\n\
             and in it:\n\
             \x20 curl http://{web_ip}/              # either replica answers\n\
             \x20 curl http://{web_ip}/client-id     # who nginx is told that you are\n\
             \x20 redis-cli -h {} get visits\n\
             \x20 psql -h {} -U postgres -c 'select version()'\n\
             \x20 curl http://{}/api/leaderboard\n\
             A shell in pod outsider, which is not meshed:\n\
             \x20 {}\n\
             \x20 curl http://{web_2}:{}/client-id\n\
             What goes over the wire between the nodes:\n\
             \x20 {net} tcpdump -ni n1 -A tcp\n\
             Metrics of a pod, and of all pods of each node:\n\
             \x20 {n2} curl http://{web_2}:4191/metrics\n\
             \x20 {n1} curl http://127.0.0.1:9990/metrics\n\
             \x20 {n2} curl http://127.0.0.1:9990/metrics\n\
             Logs and manifests (edit them, the controller follows): {}\n",
            enter(client),
            self.service("cache")?.ip(),
            self.service("db")?.ip(),
            self.service("vote-web")?,
            enter(outsider),
            apps::NGINX,
            self.world.folder().display(),
        ))
    }
}
