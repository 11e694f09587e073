# Capture and steering without a proxy: the pods are enrolled by real node daemons, and what they
# lend goes to an acceptor that resets each connection. `direct` measures the same acceptor on
# ordinary listeners: what is missing here against it is what capture costs.
LABEL="capture and steering alone, no proxy"
H2_UPGRADE=false
. "$BENCH_DIR/cases/_weft.sh"
HTTP_URL= H2_URL= GRPC_URL= OPAQUE_URL= TCP_HOST=
# Outbound: hook, mark, route and sk_lookup.
CONNECT_ADDR=$SVC_IP:$PORT_H1
# Inbound: the client's pod skips this port (manifest), so that only tc at the server steers.
CONNECT_IN_ADDR=$IP_S:$PORT_STEERED

agent_up() { # SIDE
  spawn $1-host app-acceptor "$WEFT_BIN/bench-connections" borrow "$CASE_RUN/$1.run/node.sock"
  wait_for 10 "the acceptor ($1)" grep -q ready "$CASE_RUN/$1-app-acceptor.log"
}
unset -f pods_up pods_down
before_down() { (cni DEL client client $NS_C $IP_C); (cni DEL server server $NS_S $IP_S); }
proof() {
  local side
  for side in client server; do
    curl -s "http://$(admin_of $side node)/metrics" | grep -E '^weft_kernel_decisions_total.*(captured|steered)' | grep -v ' 0$' | sed "s/^/$side /"
  done
}
