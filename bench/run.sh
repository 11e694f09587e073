#!/bin/bash
# Benchmarks mesh data planes between two network namespaces. See README.md; `cargo xtask bench`
# installs and builds what this needs and calls it.
#   run.sh [--quick] [--reps N] [--metrics a,b] [--wait SECONDS] [--out DIR] [case...]
#   run.sh --list               names of the cases
#   run.sh --up CASE            start one case and leave it up until Enter (debugging)
#   run.sh --instructions       instructions per request of the agents, by callgrind
set -u
. "$(dirname "$0")/lib/lib.sh"

if [ "${1:-}" = --list ]; then
  for f in "$BENCH_DIR"/cases/[a-z]*.sh; do basename "$f" .sh; done
  exit
fi

export BENCH_TMP BENCH_CGROUP2=$CGROUP2 PYTHONDONTWRITEBYTECODE=1
export NGINX=${NGINX:-$(command -v nginx || echo /usr/sbin/nginx)}
export ENVOY=${ENVOY:-$(command -v envoy)}
export VEGETA=${VEGETA:-$(command -v vegeta)}
export WEFT_BIN=${WEFT_BIN:-$BENCH_DIR/../target/release}

[ "$(id -u)" = 0 ] || die "needs root (network namespaces)"
mkdir -p "$BENCH_TMP"; chmod a+rx "$BENCH_TMP"
exec 9>"$BENCH_TMP/lock"
flock -n 9 || die "another run is under way ($BENCH_TMP/lock)"

for t in ip nsenter nft wrk h2load iperf3 curl tcpdump openssl setpriv python3; do
  command -v $t >/dev/null || die "$t is missing (see README.md, Tools)"
done
[ -x "$NGINX" ] || die "nginx is missing"
[ -x "$VEGETA" ] || echo "vegeta is missing: no latency figures"
[ -x "$WEFT_BIN/grpc-echo" ] || echo "$WEFT_BIN/grpc-echo is missing: no gRPC figures"
[ -x "$WEFT_BIN/bench-connections" ] || echo "$WEFT_BIN/bench-connections is missing: no connect figures"

# A case that a killed run left up, for its pids may belong to others by now.
rm -rf "$BENCH_TMP/case" "$BENCH_TMP/pids"

UP=
finish() {
  [ -n "$UP" ] && "$BENCH_DIR/lib/case.sh" "$UP" down
  nodes_down
}
trap finish EXIT
trap 'exit 130' INT TERM
pki_up
nodes_up
apps_up 9>&-
case ${1:-} in
  --up)
    UP=${2:?case}
    "$BENCH_DIR/lib/case.sh" "$UP" up 9>&-
    "$BENCH_DIR/lib/case.sh" "$UP" proof
    read -rp "up: $BENCH_DIR/lib/enter client curl ... ; logs in $BENCH_TMP/case/$UP. Enter ends it. "
    ;;
  --instructions)
    UP=weft
    . "$BENCH_DIR/lib/instructions.sh"
    ;;
  *) python3 "$BENCH_DIR/lib/bench.py" "$@" 9>&- ;;
esac
