# Envoy pair with static configuration. MESH = h2 | h1 | tcp: what the two
# proxies speak for HTTP ports; opaque ports always use tcp_proxy over mTLS.
requires() { [ -x "${ENVOY:-}" ] || echo "envoy binary (set ENVOY)"; }

tls_context() { # SIDE PEER_ID ALPN
  cat <<EOF
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.$([ $1 = client ] && echo UpstreamTlsContext || echo DownstreamTlsContext)
$([ $1 = client ] && echo "          sni: $2" || echo "          require_client_certificate: true")
          common_tls_context:
            alpn_protocols: [$3]
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: $PKI/$1/cert.pem}, private_key: {filename: $PKI/$1/key.pem}}]
            validation_context:
              trusted_ca: {filename: $PKI/ca.pem}
              match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: $2}}]
EOF
}

# listener NAME ADDRESS PORT CLUSTER KIND(http|tcp) [TLS]
listener() {
  echo "  - name: $1"
  echo "    address: {socket_address: {address: $2, port_value: $3}}"
  echo "    filter_chains:"
  echo "    - filters:"
  if [ $5 = http ]; then cat <<EOF
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: $1
          codec_type: AUTO
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: $4, timeout: 15s}}]}]}
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
EOF
  else cat <<EOF
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: $1, cluster: $4}
EOF
  fi
  if [ -n "${6:-}" ]; then
    echo "      transport_socket:"
    echo "        name: envoy.transport_sockets.tls"
    echo "        typed_config:"
    tls_context server $ID_C "$6"
  fi
}

# cluster NAME ADDRESS PORT PROTO(h2|h1|tcp) [TLS]
cluster() {
  cat <<EOF
  - name: $1
    type: STATIC
    connect_timeout: 1s
    load_assignment: {cluster_name: $1, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: $2, port_value: $3}}}}]}]}
EOF
  if [ $4 = h2 ]; then cat <<EOF
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
EOF
  fi
  if [ -n "${5:-}" ]; then
    echo "    transport_socket:"
    echo "      name: envoy.transport_sockets.tls"
    echo "      typed_config:"
    tls_context client $ID_S "$5" | sed 's/^  //'
  fi
}

start_server_side() {
  local kind=http alpn
  [ $MESH = tcp ] && kind=tcp
  case $MESH in h2) alpn=h2 ;; h1) alpn=http/1.1 ;; tcp) alpn=opaque ;; esac
  {
    echo "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}"
    echo "static_resources:"
    echo "  listeners:"
    listener http $IP_S 15001 app-h1 $kind $alpn
    listener http2 $IP_S 15002 app-h2 $kind $alpn
    listener opaque $IP_S 15003 app-opaque tcp opaque
    listener stream $IP_S 15004 app-tcp tcp opaque
    listener grpc $IP_S 15005 app-grpc $kind $alpn
    echo "  clusters:"
    cluster app-h1 $IP_S $PORT_H1 h1
    cluster app-h2 $IP_S $PORT_H2 $([ $MESH = tcp ] && echo h1 || echo h2)
    cluster app-opaque $IP_S $PORT_OPAQUE tcp
    cluster app-tcp $IP_S $PORT_TCP tcp
    cluster app-grpc $IP_S $PORT_GRPC $([ $MESH = tcp ] && echo h1 || echo h2)
  } >$CASE_RUN/server.yaml
  spawn server envoy $(as_mesh "$ENVOY") -c $CASE_RUN/server.yaml --concurrency $CONCURRENCY --base-id 1 -l warn
  wait_tcp server 127.0.0.1 15000
  wait_tcp server $IP_S 15005
}

start_client_side() {
  local kind=http proto=$MESH grpc=$MESH alpn
  [ $MESH = tcp ] && kind=tcp
  # gRPC needs trailers, which Envoy carries over HTTP/2 only.
  [ $MESH = h1 ] && GRPC_URL=
  case $MESH in h2) alpn=h2 ;; h1) alpn=http/1.1 ;; tcp) alpn=opaque ;; esac
  {
    echo "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}"
    echo "static_resources:"
    echo "  listeners:"
    listener http 127.0.0.1 15001 mesh-h1 $kind
    listener http2 127.0.0.1 15002 mesh-h2 $kind
    listener opaque 127.0.0.1 15003 mesh-opaque tcp
    listener stream 127.0.0.1 15004 mesh-tcp tcp
    listener grpc 127.0.0.1 15005 mesh-grpc $kind
    echo "  clusters:"
    cluster mesh-h1 $IP_S 15001 $proto $alpn
    cluster mesh-h2 $IP_S 15002 $proto $alpn
    cluster mesh-opaque $IP_S 15003 tcp opaque
    cluster mesh-tcp $IP_S 15004 tcp opaque
    cluster mesh-grpc $IP_S 15005 $grpc $alpn
  } >$CASE_RUN/client.yaml
  spawn client envoy $(as_mesh "$ENVOY") -c $CASE_RUN/client.yaml --concurrency $CONCURRENCY --base-id 2 -l warn
  redirect_outbound $PORT_H1:15001 $PORT_H2:15002 $PORT_OPAQUE:15003 $PORT_TCP:15004 $PORT_GRPC:15005
}

proof() {
  in_s curl -s -m 2 127.0.0.1:15000/stats | grep -E 'listener\.[^:]*\.ssl\.(handshake|fail_verify_no_cert|versions\.TLSv1\.3):' | head -8
}
