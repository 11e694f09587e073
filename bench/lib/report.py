"""Medians of the rounds, and the tables made of them."""
import statistics

from load import METRICS

KEYS = ["rate", "p50", "p90", "p99", "p999", "proxy_cpu", "all_cpu", "kib", "errors", "other_load"]

# Targets of the first release: text, case, key, against which case, bound (negative: at least), and what
# the Envoy pair took on the machine the bounds were set on. A bound in seconds of CPU or of waiting holds on
# that machine; elsewhere it holds in proportion to the Envoy pair of the same run.
TARGETS = [
    ("connections/s with outbound capture alone, against direct", "capture", "connect.rate", "direct", -0.95, None),
    ("connections/s with inbound capture alone, against direct", "capture", "connectin.rate", "direct", -0.95, None),
    ("proxy CPU µs per HTTP/1.1 request", "weft", "http1.proxy_cpu", None, 37, 73.7),
    ("proxy CPU µs per HTTP/2 request", "weft", "h2.proxy_cpu", None, 40, 59.2),
    ("proxy CPU µs per request at 1,000 requests/s", "weft", "lat.proxy_cpu", None, 190, 431),
    ("added p50 µs at 1,000 requests/s", "weft", "lat.p50", "+direct", 250, 633),
    ("added p99 µs at 1,000 requests/s", "weft", "lat.p99", "+direct", 700, 1224),
    ("proxy CPU s per GB of one TCP stream", "weft", "tcp.proxy_cpu", None, 1.5, 1.54),
    ("proxy CPU µs per opaque connection", "weft", "connopaque.proxy_cpu", None, 480, 817),
    ("idle memory of an agent, MiB", "weft", "rss_idle.client agent", None, 25, None),
]
ENVOY = "envoy-h2-c1"


def stat(vals):
    vals = [v for v in vals if isinstance(v, (int, float)) and v == v]
    if not vals:
        return None
    return {"median": statistics.median(vals), "min": min(vals), "max": max(vals), "n": len(vals)}


def summarise(runs):
    """{`metric.key`: median, min, max, n} over the rounds, and what was seen on the wire."""
    s = {}
    for m in METRICS:
        figures = [r.get(m) or {} for r in runs]
        for k in KEYS:
            s[f"{m}.{k}"] = stat([f.get(k) for f in figures])
        for name in {n for f in figures for n in f.get("by_name", {})}:
            s[f"{m}.by_name.{name}"] = stat([f.get("by_name", {}).get(name) for f in figures])
    for when in ("rss_idle", "rss_loaded"):
        for name in {n for r in runs for n in r.get(when, {})}:
            s[f"{when}.{name}"] = stat([r.get(when, {}).get(name) for r in runs])
    wires = [r["wire"] for r in runs if "wire" in r]
    if wires:
        s["wire"] = "TLS" if all(w["canary"] == 0 and w["tls_records"] > 0 for w in wires) else (
            "plain text" if all(w["canary"] > 0 for w in wires) else "unclear")
    return {k: v for k, v in s.items() if v}


def cell(v, fmt="{:.0f}", spread=True):
    if v is None:
        return "–"
    t = fmt.format(v["median"])
    if spread and v["n"] > 1:
        t += f" ({fmt.format(v['min'])}–{fmt.format(v['max'])})"
    return t


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def markdown(doc):
    S = {c: doc["cases"][c]["summary"] for c in doc["order"] if doc["cases"][c]["summary"]}
    parts = [heading(doc["meta"]), cases(doc), targets(S), requests(S), latency(S), streams(S), capture(S), memory(S), notes(doc)]
    return "\n".join(line for part in parts for line in part)


def heading(m):
    return [f"Run of {m['date']} at commit {m['commit']}: `{m['command']}`. {m['reps']} rounds, interleaved. {m['cpu']}, {m['cpus']} CPUs, "
            f"{m['memory_gib']} GiB, kernel {m['kernel']}; load average before the run {m['loadavg'][0]:.2f}. Median (min–max).", ""]


def cases(doc):
    rows = [(f"`{c}`", next((r["label"] for r in doc["cases"][c]["runs"] if "label" in r), "–")) for c in doc["order"]]
    return table(["case", "what it is"], rows)


def targets(S):
    rows = []
    for what, case, key, against, target, envoy_there in TARGETS:
        got = measured(S, case, key, against)
        if got is None:
            continue
        envoy_here = measured(S, ENVOY, key, against) if envoy_there else None
        if envoy_here:
            bound, share = target / envoy_there, got / envoy_here
            row = [f"≤ {target:g}", f"{got:.3g}", f"≤ {bound:.2f}", f"{share:.2f}"]
            met = share <= bound
        else:
            sign = "≥" if target < 0 else "≤"
            row = [f"{sign} {abs(target):g}", f"{got:.3g}", "–", "–"]
            met = got >= -target if target < 0 else got <= target
        rows.append([what, f"`{case}`", *row, "yes" if met else "**no**"])
    head = ["target of the first release", "case", "target", "measured", "target, × Envoy pair", "measured, × Envoy pair", "met"]
    return table(head, rows) if rows else []


def measured(S, case, key, against):
    """The median; against another case a share of it, or what is added to it (`+`)."""
    mine = S.get(case, {}).get(key)
    if against is None or mine is None:
        return mine and mine["median"]
    other = S.get(against.lstrip("+"), {}).get(key)
    if other is None:
        return None
    if against.startswith("+"):
        return mine["median"] - other["median"]
    return mine["median"] / other["median"]


def requests(S):
    S = {c: s for c, s in S.items() if any(f"{m}.rate" in s for m in ("http1", "h2", "grpc"))}
    ref = S.get("envoy-h2-c1", {}).get("http1.proxy_cpu")
    rows = []
    for c, s in S.items():
        v = s.get("http1.proxy_cpu")
        rows.append((c, s.get("wire", "–"), f"**{cell(v, '{:.1f}')}**", cell(s.get("http1.all_cpu"), "{:.1f}", False), cell(s.get("http1.rate")),
                     cell(s.get("lat.proxy_cpu"), "{:.0f}", False), cell(s.get("h2.proxy_cpu"), "{:.1f}", False), cell(s.get("h2.rate"), spread=False),
                     cell(s.get("grpc.proxy_cpu"), "{:.1f}", False), cell(s.get("grpc.rate"), spread=False),
                     f"× {v['median'] / ref['median']:.2f}" if v and v["median"] and ref else "–"))
    if not rows:
        return []
    return ["Requests, 1 KiB each. Proxy CPU is that of both sides together, µs per request.", ""] + table(
        ["case", "wire", "**HTTP/1.1: proxy CPU**", "all CPU", "requests/s", "proxy CPU at 1,000 rps", "HTTP/2: proxy CPU", "requests/s",
         "gRPC: proxy CPU", "requests/s", "HTTP/1.1 against envoy-h2-c1"], rows)


def latency(S):
    base = S.get("direct", {})
    keys = ("lat.p50", "lat.p99", "lat.p999")
    rows = []
    for c, s in S.items():
        if "lat.p50" in s:
            added = [f"{s[k]['median'] - base[k]['median']:+.0f}" if c != "direct" and k in base else "–" for k in keys]
            rows.append([c, *(cell(s[k]) for k in keys), *added])
    if not rows:
        return []
    return ["Latency in µs, open loop at 1,000 requests/s, HTTP/1.1: measured, and added to `direct` (difference of medians).", ""] + table(
        ["case", "p50", "p99", "p99.9", "added p50", "added p99", "added p99.9"], rows)


def streams(S):
    rows = [(c, cell(s.get("tcp.rate"), "{:.2f}"), cell(s.get("tcp.proxy_cpu"), "{:.2f}", False), cell(s.get("conn.rate")),
             cell(s.get("conn.proxy_cpu"), "{:.0f}", False), cell(s.get("connopaque.rate")), cell(s.get("connopaque.proxy_cpu"), "{:.0f}", False))
            for c, s in S.items() if any(f"{m}.rate" in s for m in ("tcp", "conn", "connopaque"))]
    if not rows:
        return []
    return ["Streams and connections. One iperf3 stream; connections with one request each, through the HTTP path and through the opaque path "
            "(there a new mTLS connection between the proxies per connection of the application, where the proxy does it so).", ""] + table(
        ["case", "TCP Gb/s", "proxy CPU s/GB", "HTTP conns/s", "proxy CPU µs/conn", "opaque conns/s", "proxy CPU µs/conn"], rows)


def capture(S):
    rows = [(c, cell(s.get("connect.rate")), cell(s.get("connect.all_cpu"), "{:.1f}", False),
             cell(s.get("connectin.rate")), cell(s.get("connectin.all_cpu"), "{:.1f}", False))
            for c, s in S.items() if "connect.rate" in s or "connectin.rate" in s]
    if not rows:
        return []
    return ["Capture alone: connections that are accepted and reset at once, nothing is proxied. Outbound ends in the client's own namespace, "
            "inbound crosses the veth. All CPU of client, acceptor and kernel, µs per connection.", ""] + table(
        ["case", "outbound connections/s", "all CPU", "inbound connections/s", "all CPU"], rows)


def memory(S):
    def sides(s, when):
        names = sorted({k.split(" ")[1] for k in s if k.startswith(when + ".")})
        pairs = [(n, s.get(f"{when}.client {n}"), s.get(f"{when}.server {n}")) for n in names]
        return ", ".join(f"{n} {cell(a, spread=False)} + {cell(b, spread=False)}" for n, a, b in pairs) or "–"

    rows = [(c, sides(s, "rss_idle"), sides(s, "rss_loaded"), cell(s.get("idlepods.kib")), cell(s.get("idleconn.kib"), "{:.1f}"),
             cell(s.get("idleopaque.kib"), "{:.1f}")) for c, s in S.items() if any(k.startswith("rss_idle.") for k in s)]
    if not rows:
        return []
    return ["Resident memory: MiB of each process, client + server; KiB on both sides together per idle pod, per idle HTTP/1.1 connection "
            "(one request was made on it) and per idle opaque connection.", ""] + table(
        ["case", "idle, MiB", "after load, MiB", "per idle pod, KiB", "per idle connection, KiB", "per idle opaque connection, KiB"], rows)


def notes(doc):
    found = []
    for c in doc["order"]:
        d = doc["cases"][c]
        disturbed = [r[k]["other_load"] for r in d["runs"] for k in METRICS if (r.get(k) or {}).get("other_load", 0) > .1]
        if disturbed:
            found.append(f"- {c}: other processes used more than 10 % of the machine in {len(disturbed)} measurements, {max(disturbed):.0%} at most")
        if d.get("skipped"):
            found.append(f"- {c}: skipped, needs {d['skipped']}")
        for i, r in enumerate(d["runs"]):
            if r.get("error"):
                found.append(f"- {c}, round {i + 1}: did not start: {r['error'].splitlines()[-1]}")
            for k in METRICS:
                e = r.get(k) or {}
                if e.get("error"):
                    found.append(f"- {c}, round {i + 1}, {k}: {e['error'].splitlines()[-1]}")
                if e.get("errors"):
                    found.append(f"- {c}, round {i + 1}, {k}: {e['errors']} failed requests")
    return ["Notes", "", *found, ""] if found else []
