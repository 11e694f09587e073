# Template for a case: copy to NAME.sh (a name that begins with "_" is not a case) and fill in.
# Everything of lib/lib.sh is at hand, above all
#   spawn SIDE NAME CMD...      starts CMD in the client or server pod; client-host, server-host:
#                               in the machine's own namespace
#   $(as_mesh CMD)              runs it as the uid that redirects exempt
#   redirect_outbound P:Q ...   service address port P -> local proxy port Q
#   redirect_inbound Q          everything from the veth -> local port Q
#   wait_tcp SIDE HOST PORT, wait_for SECONDS WHAT CMD...
#   $PKI/{client,server}/{cert.pem,key.pem}, $PKI/ca.pem, $CASE_RUN (scratch, logs)
# Optional: set HTTP_URL, H2_URL, GRPC_URL, OPAQUE_URL, TCP_HOST (empty = not measured); the
# functions that lib/case.sh names.

LABEL="what the table's reader should know"
requires() { [ -x "${PROXY:-}" ] || echo "proxy binary (set PROXY)"; }

start_server_side() {
  spawn server proxy $(as_mesh "$PROXY") --listen $IP_S:4143 --app $IP_S
  wait_tcp server $IP_S 4143
}

start_client_side() {
  spawn client proxy $(as_mesh "$PROXY") --listen 127.0.0.1:4140 --peer $IP_S:4143
  redirect_outbound $PORT_H1:4140 $PORT_H2:4140 $PORT_GRPC:4140 $PORT_OPAQUE:4140 $PORT_TCP:4140
}

proof() { in_s curl -s 127.0.0.1:4191/metrics | grep 'tls="true"' | head -3; }
