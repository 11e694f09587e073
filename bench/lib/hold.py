"""Opens connections, makes one request on each, says `held`, and keeps them until stdin ends.

hold.py URL COUNT
"""
import resource
import socket
import sys
from urllib.parse import urlsplit

url, count = urlsplit(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, max(count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
request = f"GET {url.path or '/'} HTTP/1.1\r\nhost: {url.netloc}\r\n\r\n".encode()
held = []
for _ in range(count):
    s = socket.create_connection((url.hostname, url.port), timeout=10)
    s.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += s.recv(65536) or sys.exit("closed")
    head, body = answer.split(b"\r\n\r\n", 1)
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit("answered " + head.split(b"\r\n")[0].decode())
    length = next(int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += s.recv(65536) or sys.exit("closed")
    held.append(s)
print("held", flush=True)
sys.stdin.read()
