"""The loads: each runs one generator over a Window and returns its figures.

A metric is a function m_NAME(env, win, seconds). NEEDS says which setting of the case must not be
empty for it; a case that has none is not measured there.
"""
import csv
import json
import os
import re
import struct
import time
from contextlib import contextmanager

from proc import TMP, cpu_of, enter, in_client, rss_of, sh, start

CANARY = b"canary-7f3a91c2"
CONNS = 32
RATE = 1000

NEEDS = {
    "idlepods": "IDLE_PODS", "idleconn": "HTTP_URL", "idleopaque": "OPAQUE_URL",
    "http1": "HTTP_URL", "lat": "HTTP_URL", "h2": "H2_URL", "grpc": "GRPC_URL", "tcp": "TCP_HOST",
    "conn": "HTTP_URL", "connopaque": "OPAQUE_URL", "connect": "CONNECT_ADDR", "connectin": "CONNECT_IN_ADDR",
}
METRICS = list(NEEDS)


def weft_bin(name):
    return os.path.join(os.environ["WEFT_BIN"], name)


# --- requests ------------------------------------------------------------------

def wrk(url, secs, *extra):
    out, cpu = in_client("wrk", "-t1", f"-c{CONNS}", f"-d{secs}s", *extra, url, timeout=secs + 60)
    m = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", out)
    rps = re.search(r"Requests/sec:\s+([\d.]+)", out)
    if not m or not rps or int(m.group(1)) == 0:
        raise RuntimeError("wrk: " + out.strip()[-300:])
    bad = 0
    e = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    bad += int(e.group(1)) if e else 0
    e = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    if e:
        c, r, w, t = map(int, e.groups())
        # With Connection: close, wrk counts the server's close as a read error.
        bad += c + w + t + (0 if extra else r)
    return float(rps.group(1)), int(m.group(1)), bad, cpu


def m_http1(env, win, t):
    with win:
        rps, n, bad, cpu = wrk(env["HTTP_URL"], t)
    return {"rate": rps, "errors": bad, **win.figures(n, cpu)}


def m_conn(env, win, t, url="HTTP_URL"):
    with win:
        rps, n, bad, cpu = wrk(env[url], t, "-H", "Connection: close")
    return {"rate": rps, "errors": bad, **win.figures(n, cpu)}


def m_connopaque(env, win, t):
    return m_conn(env, win, t, "OPAQUE_URL")


def h2load(url, t, *extra):
    out, cpu = in_client("h2load", "-t1", "-c4", "-m8", f"-D{t}", *extra, url, timeout=t + 60)
    n = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", out)
    rps = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", out)
    fail = re.search(r"requests: .* (\d+) failed, (\d+) errored, (\d+) timeout", out)
    if not n or int(n.group(1)) == 0:
        raise RuntimeError("h2load: " + out.strip()[-300:])
    bad = sum(int(n.group(i)) for i in (3, 4)) + (int(fail.group(1)) if fail else 0)
    return float(rps.group(1)), int(n.group(1)), bad, cpu, out


def m_h2(env, win, t):
    with win:
        rps, n, bad, cpu, _ = h2load(env["H2_URL"], t)
    return {"rate": rps, "errors": bad, **win.figures(n, cpu)}


def m_grpc(env, win, t):
    # One `Ping` with 1 KiB of payload, framed: not compressed, length, message. The answer has it too.
    payload = b"weftbench " * 102 + b"weft"
    message = b"\x0a" + bytes([0x80 | len(payload) & 0x7f, len(payload) >> 7]) + payload
    body = os.path.join(TMP, "ping.bin")
    with open(body, "wb") as f:
        f.write(struct.pack(">BI", 0, len(message)) + message)
    with win:
        rps, n, bad, cpu, out = h2load(env["GRPC_URL"], t, "-d", body, "-H", "content-type: application/grpc",
                                       "-H", "te: trailers")
    # h2load sees statuses of 200 only, which failed calls have as well: their answers are shorter.
    data = re.search(r"([\d.]+)([KMG]?)B \((\d+)\) data", out)
    if not data or int(data.group(3)) < n * len(payload):
        raise RuntimeError("h2load: answers without payload: " + out.strip()[-200:])
    return {"rate": rps, "errors": bad, **win.figures(n, cpu)}


def m_lat(env, win, t):
    vegeta = os.environ.get("VEGETA")
    if not vegeta:
        return None
    raw = os.path.join(TMP, "vegeta.bin")
    targets = os.path.join(TMP, "targets")
    with open(targets, "w") as f:
        f.write(f"GET {env['HTTP_URL']}\n")
    with win:
        out, cpu = in_client(vegeta, "attack", f"-rate={RATE}", f"-duration={t}s", "-workers=32",
                             "-max-workers=256", "-http2=false", f"-targets={targets}", f"-output={raw}")
    rows = list(csv.reader(sh([vegeta, "encode", "-to=csv", raw]).stdout.splitlines()))
    lat = sorted(int(r[2]) / 1000 for r in rows)
    if not lat:
        raise RuntimeError("vegeta: " + out[-300:])

    def q(p):
        return lat[min(len(lat) - 1, int(p * len(lat)))]

    return {"p50": q(.5), "p90": q(.9), "p99": q(.99), "p999": q(.999), "samples": len(lat),
            "errors": sum(r[1] != "200" for r in rows), **win.figures(len(lat), cpu)}


# --- bytes and connections --------------------------------------------------------

def m_tcp(env, win, t):
    server = start("server", "iperf3", "-s", "-1", "-p", "5201")
    try:
        time.sleep(0.3)
        app0 = cpu_of(server.pid)
        with win:
            out, cpu = in_client("iperf3", "-J", "-c", env["TCP_HOST"], "-p", "5201", "-t", str(t), timeout=t + 30)
            app1 = cpu_of(server.pid)
        end = json.loads(out)["end"]
        got = end["sum_received"]
        if app1 != app1:  # it has ended already: its own report, in percent of a core
            win.app_cpu += end["cpu_utilization_percent"]["remote_total"] / 100 * got["seconds"]
        else:
            win.app_cpu += app1 - app0
        return {"rate": got["bits_per_second"] / 1e9, **win.figures(got["bytes"] / 1e9, cpu, unit=1)}
    finally:
        if server.poll() is None:
            server.terminate()
        server.wait()


def m_connect(env, win, t, addr="CONNECT_ADDR"):
    with win:
        out, cpu = in_client(weft_bin("bench-connections"), "connect", env[addr], "--seconds", str(t))
    got = json.loads(out)
    if not got["connected"]:
        raise RuntimeError("no connection to " + env[addr])
    return {"rate": got["connected"] / t, "errors": got["failed"], **win.figures(got["connected"], cpu)}


def m_connectin(env, win, t):
    return m_connect(env, win, t, "CONNECT_IN_ADDR")


# --- memory -------------------------------------------------------------------------

@contextmanager
def held(url, count):
    """Keeps count connections open, each after one request."""
    p = start("client", "python3", os.path.join(os.path.dirname(__file__), "hold.py"), url, str(count),
              stdin=-1, stdout=-1, text=True)
    try:
        line = p.stdout.readline().strip()
        if line != "held":
            raise RuntimeError("hold.py: " + (line or "ended"))
        time.sleep(2)
        yield
    finally:
        p.stdin.close()
        p.wait(timeout=30)


def rss_sum(win):
    return sum(rss_of(p) for p in win.of.proxies)


def m_idleconn(env, win, count, url="HTTP_URL"):
    before = rss_sum(win)
    with held(env[url], count):
        after = rss_sum(win)
    return {"count": count, "kib": (after - before) * 1024 / count}


def m_idleopaque(env, win, count):
    return m_idleconn(env, win, count, "OPAQUE_URL")


# --- what an observer between the nodes sees -------------------------------------------

def wire_check(env):
    """Captures the veth while marked requests pass; says what could be read there."""
    cap = os.path.join(TMP, "wire.pcap")
    dump = start("client", "tcpdump", "-i", "eth0", "-U", "-w", cap, "tcp")
    time.sleep(0.7)
    for name in ("HTTP_URL", "OPAQUE_URL"):
        for _ in range(3 if env.get(name) else 0):
            sh(enter("client", "curl", "-s", "-m", "3", "-o", "/dev/null", "-H", "X-Canary: " + CANARY.decode(), env[name]))
    time.sleep(0.4)
    dump.terminate()
    dump.wait()
    with open(cap, "rb") as f:
        data = f.read()
    return {"bytes": len(data), "canary": data.count(CANARY) + data.count(b"weftbench weftbench"),
            "tls_records": len(re.findall(rb"\x17\x03\x03", data))}
