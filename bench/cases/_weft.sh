# Two Weft nodes on one machine: for each side a weft-node and a weft-agent in the machine's own
# namespace, with run folder, pins and cgroup subtree of their own; one standalone controller. The
# pods are the namespaces of the harness, entered through weft-cni after "another plugin" made them.
# H2_UPGRADE = true | false: whether the agents speak HTTP/2 to each other.
# WEFT_AGENT_WRAP: command that the agents run under (callgrind).

CONTROLLER=127.0.0.1:18086
CONTROLLER_ADMIN=127.0.0.1:19996
export WEFT_LOG=${WEFT_LOG:-warn}

requires() {
  local b
  for b in weft-node weft-cni weft-agent weft-controller; do
    [ -x "$WEFT_BIN/$b" ] || echo "$WEFT_BIN/$b (cargo xtask bench builds it)"
  done
}

admin_of() { # SIDE DAEMON
  case $1-$2 in
    client-node) echo 127.0.0.1:19991 ;; client-agent) echo 127.0.0.1:19990 ;;
    server-node) echo 127.0.0.1:29991 ;; server-agent) echo 127.0.0.1:29990 ;;
  esac
}

ready() { curl -sf -m 1 -o /dev/null "http://$1/ready"; }

# --- what the mesh is told ----------------------------------------------------

# pod_manifest NAME NODE IP [ANNOTATION...]
pod_manifest() {
  local name=$1 node=$2 ip=$3 annotation
  shift 3
  cat <<EOF
---
apiVersion: v1
kind: Pod
metadata:
  name: $name
  namespace: bench
  uid: bench-$name
  labels: {app: $name}
  annotations:
    linkerd.io/inject: enabled
EOF
  for annotation in "$@"; do echo "    $annotation"; done
  cat <<EOF
spec:
  nodeName: $node
  serviceAccountName: ${name%-*}
  containers:
  - name: app
    image: app
    ports: [{containerPort: $PORT_H1}, {containerPort: $PORT_H2}, {containerPort: $PORT_OPAQUE}, {containerPort: $PORT_GRPC}, {containerPort: $PORT_TCP}]
status:
  phase: Running
  podIP: $ip
  podIPs: [{ip: $ip}]
  conditions: [{type: Ready, status: "True"}]
EOF
}

OPAQUE_PORTS="config.linkerd.io/opaque-ports: \"$PORT_OPAQUE,$PORT_TCP\""

manifests() {
  local account port
  mkdir -p "$CASE_RUN/manifests"
  {
    printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: bench}\n'
    for account in client server idle; do
      printf -- '---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: bench}\n' $account
    done
    cat <<EOF
---
apiVersion: v1
kind: Service
metadata:
  name: server
  namespace: bench
  annotations:
    $OPAQUE_PORTS
spec:
  clusterIP: $SVC_IP
  clusterIPs: [$SVC_IP]
  selector: {app: server}
  ports:
EOF
    for port in $PORT_H1 $PORT_H2 $PORT_OPAQUE $PORT_GRPC $PORT_TCP; do
      echo "  - {name: p$port, port: $port, targetPort: $port, protocol: TCP}"
    done
    pod_manifest client client $IP_C "config.linkerd.io/skip-outbound-ports: \"$PORT_STEERED\""
    pod_manifest server server $IP_S "$OPAQUE_PORTS"
  } >"$CASE_RUN/manifests/bench.yaml"
}

# --- daemons ------------------------------------------------------------------

controller_up() {
  local state=$CASE_RUN/state side
  rm -rf "$state" "$CASE_RUN/manifests"
  manifests
  # The state folder is root's alone; agents are not root and get copies of what is theirs.
  spawn client-host aux-controller "$WEFT_BIN/weft-controller" run --source "dir:$CASE_RUN/manifests" \
    --state "$state" --listen $CONTROLLER --admin-addr $CONTROLLER_ADMIN --cluster-networks 10.0.0.0/8 \
    --h2-upgrade "$H2_UPGRADE"
  wait_for 10 "weft-controller" ready $CONTROLLER_ADMIN
  for side in client server; do
    "$WEFT_BIN/weft-controller" join-token --state "$state" --node $side >"$CASE_RUN/$side.token" || die "no join token"
    chown $MESH_UID "$CASE_RUN/$side.token"; chmod 600 "$CASE_RUN/$side.token"
  done
  install -m 644 "$state/trust-anchors.pem" "$CASE_RUN/trust-anchors.pem"
}

# What both daemons of a node are told.
joined() { # SIDE
  echo --node-name $1 --controller $CONTROLLER --trust-anchors "$CASE_RUN/trust-anchors.pem" \
    --token-file "$CASE_RUN/$1.token" --run-dir "$CASE_RUN/$1.run"
}

node_up() { # SIDE
  mkdir -p "$CASE_RUN/$1.run"; chmod 755 "$CASE_RUN/$1.run"
  spawn $1-host node "$WEFT_BIN/weft-node" run $(joined $1) --bpffs $BPFFS/$1 --cgroup "$CGROUP/$1" \
    --admin-addr $(admin_of $1 node) --agent-uid $MESH_UID
  wait_for 15 "weft-node ($1)" test -S "$CASE_RUN/$1.run/cni.sock"
}

agent_up() { # SIDE
  spawn $1-host agent $(as_mesh ${WEFT_AGENT_WRAP:-} "$WEFT_BIN/weft-agent") $(joined $1) \
    --admin-addr $(admin_of $1 agent) --workers 1 --cluster-networks 10.0.0.0/8
  wait_for 60 "weft-agent ($1)" ready $(admin_of $1 agent)
}

# cni COMMAND NODE POD NAMESPACE IP: plays the kubelet.
cni() {
  cat >"$CASE_RUN/cni.json" <<EOF
{"cniVersion": "1.0.0", "name": "bench", "type": "weft-cni", "socket": "$CASE_RUN/$2.run/cni.sock",
 "capabilities": {"cgroupPath": true}, "runtimeConfig": {"cgroupPath": "/weft-bench/$2/pod"},
 "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/$4"}],
  "ips": [{"address": "$5/24", "interface": 0}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}}
EOF
  CNI_COMMAND=$1 CNI_CONTAINERID=sandbox-$3 CNI_NETNS=/run/netns/$4 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
    CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=$3;K8S_POD_UID=bench-$3" \
    timeout 30 "$WEFT_BIN/weft-cni" <"$CASE_RUN/cni.json" >"$CASE_RUN/cni-$1-$3.out" 2>&1 ||
    die "weft-cni $1 of $3: $(cat "$CASE_RUN/cni-$1-$3.out")"
}

# --- the case -----------------------------------------------------------------

start_server_side() {
  controller_up
  node_up server
  agent_up server
  cni ADD server server $NS_S $IP_S
}

start_client_side() {
  node_up client
  agent_up client
  cni ADD client client $NS_C $IP_C
}

proof() {
  in_s curl -s -m 2 http://$IP_S:4191/metrics | grep -E '^(request_total|tcp_open_total).*tls="true"' | head -4
}

# Processes first forget their pods as they would on a node; then what is left is removed by force,
# so that the next case does not run under the hooks of this one.
before_down() {
  [ -e "$CASE_RUN/idle-pods" ] && pods_down "$(cat "$CASE_RUN/idle-pods")"
  (cni DEL client client $NS_C $IP_C)
  (cni DEL server server $NS_S $IP_S)
}

cleanup() {
  local side
  for side in client server; do
    "$WEFT_BIN/weft-node" cleanup --run-dir "$CASE_RUN/$side.run" --bpffs $BPFFS/$side --cgroup "$CGROUP/$side" \
      >"$CASE_RUN/cleanup-$side.out" 2>&1
    rm -rf "$CASE_RUN/$side.run"
  done
  rm -rf $BPFFS
}

# --- idle pods, on the client's node -------------------------------------------

pods_up() {
  local i
  echo "$1" >"$CASE_RUN/idle-pods"
  for i in $(seq "$1"); do
    ip netns add weft-bench-$i
    ip link add eth0 netns weft-bench-$i type veth peer name idle$i netns $NS_C
    ip -n weft-bench-$i addr add 10.210.1.$i/24 dev eth0
    ip -n weft-bench-$i link set lo up
    ip -n weft-bench-$i link set eth0 up
    ip -n $NS_C link set idle$i up
    ip -n weft-bench-$i route add default dev eth0
  done
  for i in $(seq "$1"); do pod_manifest idle-$i client 10.210.1.$i; done >"$CASE_RUN/manifests/idle.new"
  mv "$CASE_RUN/manifests/idle.new" "$CASE_RUN/manifests/idle.yaml"
  for i in $(seq "$1"); do cni ADD client idle-$i weft-bench-$i 10.210.1.$i; done
}

pods_down() {
  local i
  rm -f "$CASE_RUN/idle-pods"
  for i in $(seq "$1"); do
    (cni DEL client idle-$i weft-bench-$i 10.210.1.$i)
    ns_down weft-bench-$i
  done
  rm -f "$CASE_RUN/manifests/idle.yaml"
}
