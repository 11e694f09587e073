LABEL="Weft pair, HTTP/2 in mTLS between the nodes, one worker each"
H2_UPGRADE=true
. "$BENCH_DIR/cases/_weft.sh"
