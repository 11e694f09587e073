# No proxy: the client reaches the server over the veth in plain text.
LABEL="no proxy, no TLS"
HTTP_URL=http://$IP_S:$PORT_H1/
H2_URL=http://$IP_S:$PORT_H2/
GRPC_URL=http://$IP_S:$PORT_GRPC/weft.echo.v1.Echo/Unary
OPAQUE_URL=http://$IP_S:$PORT_OPAQUE/
TCP_HOST=$IP_S
# Outbound capture ends in the client's own namespace, so that is where its floor is measured.
CONNECT_ADDR=$IP_C:$PORT_ACCEPT
CONNECT_IN_ADDR=$IP_S:$PORT_ACCEPT
