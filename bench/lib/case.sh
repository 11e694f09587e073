#!/bin/bash
# Runs one step of one case: case.sh NAME requires|up|pids|proof|down (called by bench.py).
#   pods-up N, pods-down N: adds and removes N idle pods on the client's node.
. "$(dirname "$0")/lib.sh"
CASE=$1
CASE_RUN=$BENCH_TMP/case/$CASE
mkdir -p "$CASE_RUN"; chmod a+rx "$CASE_RUN"

# Defaults that a case file may override. Empty: not measured.
HTTP_URL=http://$SVC_IP:$PORT_H1/
H2_URL=http://$SVC_IP:$PORT_H2/
GRPC_URL=http://$SVC_IP:$PORT_GRPC/weft.echo.v1.Echo/Unary
OPAQUE_URL=http://$SVC_IP:$PORT_OPAQUE/
TCP_HOST=$SVC_IP
CONNECT_ADDR=                   # outbound connections alone
CONNECT_IN_ADDR=                # inbound connections alone
LABEL=$CASE
requires() { :; }               # prints what is missing, nothing if the case can run
start_server_side() { :; }
start_client_side() { :; }
pids() { cat "$CASE_RUN/pids" 2>/dev/null; } # lines: SIDE NAME PID
proof() { :; }                  # optional: evidence that traffic is mTLS, one line each
before_down() { :; }            # optional: what needs the processes
cleanup() { :; }                # optional: what is neither a process nor an nft rule
# pods_up N, pods_down N: optional, for the memory of an idle pod.

. "$BENCH_DIR/cases/$CASE.sh" || die "no such case: $CASE"

case $2 in
  requires) requires ;;
  up)
    rm -f "$CASE_RUN"/*.log "$CASE_RUN/pids"
    flush_redirects
    start_server_side
    start_client_side
    [ -n "$HTTP_URL" ] && wait_http "$HTTP_URL"
    [ -n "$OPAQUE_URL" ] && wait_http "$OPAQUE_URL"
    [ -x "$WEFT_BIN/grpc-client" ] || GRPC_URL=
    if [ -n "$GRPC_URL" ]; then
      target=${GRPC_URL#http://}
      in_c "$WEFT_BIN/grpc-client" --target "${target%%/*}" --count 3 || die "gRPC calls do not pass"
    fi
    [ -x "$WEFT_BIN/bench-connections" ] || { CONNECT_ADDR= CONNECT_IN_ADDR=; }
    for name in HTTP_URL H2_URL GRPC_URL OPAQUE_URL TCP_HOST CONNECT_ADDR CONNECT_IN_ADDR LABEL; do
      echo "$name=${!name}"
    done
    declare -F pods_up >/dev/null && echo IDLE_PODS=yes
    ;;
  pids) pids ;;
  proof) proof ;;
  pods-up) pods_up "$3" ;;
  pods-down) pods_down "$3" ;;
  down)
    before_down
    list=$(pids | awk '{print $3}')
    for p in $list; do kill "$p" 2>/dev/null; done
    for _ in $(seq 50); do
      alive=; for p in $list; do kill -0 "$p" 2>/dev/null && alive=1; done
      [ -z "$alive" ] && break; sleep 0.1
    done
    for p in $list; do kill -9 "$p" 2>/dev/null; done
    rm -f "$CASE_RUN/pids"
    cleanup
    flush_redirects
    ;;
  *) die "usage: case.sh NAME requires|up|pids|proof|pods-up N|pods-down N|down" ;;
esac
exit 0
