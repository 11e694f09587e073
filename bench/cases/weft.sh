LABEL="Weft pair, HTTP/1.1 in mTLS between the nodes (the default), one worker each"
H2_UPGRADE=false
. "$BENCH_DIR/cases/_weft.sh"
