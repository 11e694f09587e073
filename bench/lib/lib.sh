# Shared shell functions of the benchmarks. Sourced by run.sh and by lib/case.sh.

BENCH_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BENCH_TMP=${BENCH_TMP:-/tmp/weft-bench}

NS_C=weft-bench-c  # client pod
NS_S=weft-bench-s  # server pod
IP_C=10.210.0.2
IP_S=10.210.0.3
SVC_IP=10.96.210.10 # service address, which nobody owns
MESH_UID=2102      # proxies run as this uid; the nft redirects exempt it

PORT_H1=8080       # nginx, HTTP/1.1
PORT_H2=8081       # nginx, HTTP/2 with prior knowledge
PORT_OPAQUE=8082   # nginx, HTTP/1.1, to be carried as opaque bytes
PORT_GRPC=8083     # grpc-echo
PORT_TCP=5201      # iperf3, to be carried as opaque bytes
PORT_ACCEPT=9099   # bench-connections on an ordinary listener
PORT_STEERED=9098  # nobody listens; answered only if inbound steering works

ID_C=client.bench.serviceaccount.identity.linkerd.cluster.local
ID_S=server.bench.serviceaccount.identity.linkerd.cluster.local
PKI=$BENCH_TMP/pki
BPFFS=/sys/fs/bpf/weft-bench

# Field 5 of mountinfo is the mount point, field 4 the part of the hierarchy that it shows.
CGROUP2=$(awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i+1) == "cgroup2" && $4 == "/") { print $5; exit } }' /proc/self/mountinfo)
CGROUP=$CGROUP2/weft-bench # node of SIDE: $CGROUP/SIDE, its pod: $CGROUP/SIDE/pod, daemons: $CGROUP/host

die() { echo "bench: $*" >&2; exit 1; }

ns_of() { [ "$1" = client ] && echo $NS_C || echo $NS_S; }

# In the pod SIDE: its namespace and its cgroup.
in_c() { "$BENCH_DIR/lib/enter" client "$@"; }
in_s() { "$BENCH_DIR/lib/enter" server "$@"; }

# spawn SIDE NAME COMMAND...: runs COMMAND in the background in the pod SIDE (client|server), or in
# the machine's own namespace if SIDE is client-host or server-host, and records its pid for SIDE.
# NAME says how it counts: "app..." is an application, "aux..." a helper; anything else is a proxy.
spawn() {
  local side=${1%-host} into=$1 name=$2
  shift 2
  [ "$into" = "$side" ] || into=host
  # The keeper shell stays as parent: Envoy ends itself when its parent does.
  setsid bash -c 'f=$1 l=$2; shift 2; "$@" & echo "$l $!" >>"$f"; wait' _ "$CASE_RUN/pids" "$side $name" \
    "$BENCH_DIR/lib/enter" $into "$@" >"$CASE_RUN/$side-$name.log" 2>&1 </dev/null &
  until grep -qs "^$side $name " "$CASE_RUN/pids"; do sleep 0.02; done
}

# as_mesh COMMAND...: prefix for spawn that drops to the mesh uid.
as_mesh() { echo setpriv --reuid $MESH_UID --regid $MESH_UID --clear-groups -- "$@"; }

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds.
wait_for() {
  local tries=$(($1 * 10)) what=$2
  shift 2
  for _ in $(seq $tries); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  die "waited in vain for $what (logs in ${CASE_RUN:-$BENCH_TMP})"
}

# wait_tcp SIDE HOST PORT: until something accepts there.
wait_tcp() {
  wait_for 10 "a listener on $2:$3 ($1)" "$BENCH_DIR/lib/enter" "$1" $(as_mesh) bash -c "exec 3<>/dev/tcp/$2/$3"
}

is_200() { [ "$(in_c curl -s -m 1 -o /dev/null -w '%{http_code}' "$1")" = 200 ]; }
wait_http() { wait_for 20 "status 200 from $1" is_200 "$1"; }

# redirect_outbound PORT:PROXYPORT...: connections of the client pod to the service address go to
# the local proxy, as an iptables-based mesh does it.
redirect_outbound() {
  local p rules=
  for p in "$@"; do
    rules="$rules meta skuid != $MESH_UID ip daddr $SVC_IP tcp dport ${p%:*} redirect to :${p#*:};"
  done
  printf 'table ip mesh { chain out {\n type nat hook output priority -100;\n %s\n }\n }\n' "$rules" | in_c nft -f - || die "nft failed"
}

# redirect_inbound PROXYPORT: all connections from other nodes go to that port.
redirect_inbound() {
  printf 'table ip mesh { chain pre {\n type nat hook prerouting priority -100;\n iifname eth0 ip protocol tcp redirect to :%s;\n }\n }\n' "$1" |
    in_s nft -f - || die "nft failed"
}

flush_redirects() { in_c nft flush ruleset; in_s nft flush ruleset; }

# --- the two pods ------------------------------------------------------------

nodes_up() {
  nodes_down
  [ -n "$CGROUP2" ] || die "no cgroup2 is mounted: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
  mkdir -p "$CGROUP"/{client/pod,server/pod,host} || die "cannot make cgroups below $CGROUP"
  ip netns add $NS_C && ip netns add $NS_S || die "cannot create network namespaces"
  ip link add eth0 netns $NS_C type veth peer name eth0 netns $NS_S || die "cannot create veth"
  ip -n $NS_C addr add $IP_C/24 dev eth0
  ip -n $NS_S addr add $IP_S/24 dev eth0
  local side ns
  for side in client server; do
    ns=$(ns_of $side)
    ip -n $ns link set lo up
    ip -n $ns link set eth0 up
    "$BENCH_DIR/lib/enter" $side sysctl -qw net.ipv4.ip_local_port_range="20000 64999" net.ipv4.tcp_tw_reuse=1
    "$BENCH_DIR/lib/enter" $side sysctl -qw net.ipv4.conf.all.rp_filter=0 net.core.somaxconn=4096 2>/dev/null
  done
  # Each is the other's way out, and forwards nothing: no packet leaves the machine.
  ip -n $NS_C route add default via $IP_S
  ip -n $NS_S route add default via $IP_C
  return 0
}

# Ends what runs in the cgroups of this harness, whoever started it, and removes them and the pods.
nodes_down() {
  local ns p
  for p in $(members); do kill "$p" 2>/dev/null; done
  for _ in $(seq 20); do [ -z "$(members)" ] && break; sleep 0.1; done
  for p in $(members); do kill -9 "$p" 2>/dev/null; done
  for ns in $(ip netns list 2>/dev/null | awk '/^weft-bench-/ { print $1 }'); do ns_down $ns; done
  rm -rf $BPFFS # detaches what a killed run left
  [ -d "$CGROUP" ] && find "$CGROUP" -depth -type d -exec rmdir {} \; 2>/dev/null
  return 0
}

members() { [ -d "$CGROUP" ] && find "$CGROUP" -name cgroup.procs -exec cat {} +; }

ns_down() { [ -e "/run/netns/$1" ] && ip netns del "$1"; }

# --- certificates for proxies that are given them as files --------------------

pki_up() {
  [ -s $PKI/done ] && [ -z "$(find $PKI/done -mtime +20)" ] && return
  rm -rf $PKI; mkdir -p $PKI; (
    cd $PKI || exit 1
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ca.key
    openssl req -x509 -new -key ca.key -sha256 -days 30 -subj "/CN=root.bench" -out ca.pem \
      -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    for side in client server; do
      [ $side = client ] && id=$ID_C || id=$ID_S
      mkdir $side
      openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $side/key.pem
      openssl req -new -key $side/key.pem -sha256 -subj "/CN=$id" -addext "subjectAltName=DNS:$id" -out $side/csr.pem
      printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:FALSE\n' \
        "$id" >$side/ext
      openssl x509 -req -in $side/csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days 30 \
        -extfile $side/ext -out $side/cert.pem
    done
    chmod -R a+rX .
    echo ok >done
  ) >$PKI/log 2>&1
  [ -s $PKI/done ] || die "cannot make certificates: $PKI/log"
}

# --- the applications ---------------------------------------------------------

apps_up() {
  local body
  body=$(printf 'weftbench %.0s' $(seq 103) | head -c 1024)
  mkdir -p $BENCH_TMP/nginx
  cat >$BENCH_TMP/nginx.conf <<EOF
daemon off; worker_processes 1; pid $BENCH_TMP/nginx/pid; error_log $BENCH_TMP/nginx/error.log warn;
worker_rlimit_nofile 65536;
events { worker_connections 16384; }
http {
  access_log off; keepalive_timeout 300s; keepalive_requests 1000000000; tcp_nodelay on; default_type text/plain;
  http2_max_concurrent_streams 1024;
  client_body_temp_path $BENCH_TMP/nginx; proxy_temp_path $BENCH_TMP/nginx; fastcgi_temp_path $BENCH_TMP/nginx;
  uwsgi_temp_path $BENCH_TMP/nginx; scgi_temp_path $BENCH_TMP/nginx;
  server { listen $PORT_H1 backlog=4096; listen $PORT_OPAQUE backlog=4096; listen $PORT_H2 http2 backlog=4096;
    location / { return 200 "$body"; } }
}
EOF
  CASE_RUN=$BENCH_TMP
  spawn server app-nginx "$NGINX" -c $BENCH_TMP/nginx.conf
  wait_tcp server 127.0.0.1 $PORT_H1
  if [ -x "$WEFT_BIN/grpc-echo" ]; then
    spawn server app-grpc "$WEFT_BIN/grpc-echo" --listen 0.0.0.0:$PORT_GRPC
    wait_tcp server 127.0.0.1 $PORT_GRPC
  fi
  if [ -x "$WEFT_BIN/bench-connections" ]; then
    spawn client app-acceptor "$WEFT_BIN/bench-connections" accept $IP_C:$PORT_ACCEPT
    spawn server app-acceptor "$WEFT_BIN/bench-connections" accept $IP_S:$PORT_ACCEPT
  fi
}
