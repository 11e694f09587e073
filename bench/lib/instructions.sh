# Instructions per request of the agents, user space only: callgrind counts them repeatably, where
# time on shared cores is noise. Sourced by run.sh --instructions.
#
# Each agent runs under callgrind; counters are zeroed, requests made, counters dumped, for a short
# and a long run: the difference leaves out what connections and start cost.

command -v callgrind_control >/dev/null || die "valgrind is missing"
out=$BENCH_TMP/callgrind
rm -rf "$out"; mkdir -p "$out"; chmod 777 "$out"
export WEFT_AGENT_WRAP="valgrind --tool=callgrind --callgrind-out-file=$out/%p"
"$BENCH_DIR/lib/case.sh" $UP up 9>&- >"$out/env" || die "$(cat "$out/env")"

# total PID: instructions since the last call. A dump is asked for by the agent's own user, for
# another user's request is never answered.
total() {
  local part=$(($(ls "$out" | grep -c "^$1\.") + 1))
  timeout 30 $(as_mesh callgrind_control --dump "$1") >/dev/null 2>&1 || die "callgrind does not answer for $1"
  wait_for 20 "a dump of $1" grep -q '^summary:' "$out/$1.$part"
  awk '/^summary:/ { print $2 }' "$out/$1.$part"
}

# load PROTOCOL REQUESTS
load() {
  local args="-t1 -c4 -n$2" url
  [ $1 = h1 ] && args="$args --h1"
  [ $1 = h1 ] && url=http://$SVC_IP:$PORT_H1/ || url=http://$SVC_IP:$PORT_H2/
  in_c h2load $args "$url" | grep -q "$2 2xx" || die "h2load failed"
}

agents=$("$BENCH_DIR/lib/case.sh" $UP pids | awk '$2 == "agent" { print $1 ":" $3 }')
[ -n "$agents" ] || die "the case has no agents"
SHORT=500 LONG=2500
printf '%-10s %-8s %s\n' protocol side "instructions/request"
for protocol in h1 h2; do
  load $protocol 200
  for a in $agents; do total ${a#*:} >/dev/null; done
  load $protocol $SHORT
  for a in $agents; do eval "short_${a%:*}=$(total ${a#*:})"; done
  load $protocol $LONG
  for a in $agents; do
    side=${a%:*} short=short_${a%:*}
    long=$(total ${a#*:})
    printf '%-10s %-8s %s\n' $protocol $side $(((long - ${!short}) / (LONG - SHORT)))
  done
done | tee "$out/instructions.txt"
