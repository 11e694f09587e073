"""Runs the cases interleaved, measures, writes JSON and Markdown.

Started by run.sh, which has set up the two pods and the applications.
"""
import argparse
import datetime
import glob
import json
import os
import platform
import re
import time

import load
from load import METRICS, NEEDS, wire_check, wrk
from proc import CPUS, HERE, TMP, Processes, Window, case_step, read_pids, sh, wait_quiet
from report import markdown, summarise

DEFAULT = ["direct", "envoy-h2-c1", "weft", "weft-h2", "capture"]
# Of a load in seconds; of idle* how many are held.
QUICK = dict(idlepods=10, idleconn=500, idleopaque=200, http1=2, lat=3, h2=1, grpc=1, tcp=1, conn=1, connopaque=1,
             connect=1, connectin=1)
LONG = dict(idlepods=20, idleconn=1000, idleopaque=500, http1=6, lat=10, h2=4, grpc=4, tcp=4, conn=3, connopaque=3,
            connect=3, connectin=3)


def measure(case, args, sizes, apps):
    """One round of one case, from its start to its end."""
    rc, out = case_step(case, "up")
    try:
        if rc:
            return {"error": out.strip()[-400:] or "did not start"}
        env = dict(l.split("=", 1) for l in out.splitlines() if re.match(r"[A-Z0-9_]+=", l))
        return measure_up(case, env, args, sizes, Processes(case, apps))
    finally:
        case_step(case, "down")


def measure_up(case, env, args, sizes, processes):
    res = {"label": env.get("LABEL", case)}
    wanted = [m for m in args.metrics if env.get(NEEDS[m])]
    win = Window(processes)
    time.sleep(1)
    res["rss_idle"] = processes.rss()
    # Memory first, before the allocators hold what loads have left behind.
    with idle_pods(case, sizes["idlepods"], "idlepods" in wanted, win) as res["idlepods"]:
        for m in ("idleconn", "idleopaque"):
            if m in wanted:
                res[m] = attempt(m, env, win, sizes[m])
    if env.get("HTTP_URL"):
        res["wire"] = wire_check(env)
        wrk(env["HTTP_URL"], 1)  # warm-up
    for m in wanted:
        if not m.startswith("idle"):
            res[m] = attempt(m, env, win, sizes[m])
            time.sleep(0.2)
    res["rss_loaded"] = processes.rss()
    res["proof"] = case_step(case, "proof")[1].strip().splitlines()
    return res


def attempt(metric, env, win, size):
    """A metric's figures, or what went wrong; the other metrics go on."""
    try:
        return getattr(load, "m_" + metric)(env, win, size)
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"[:400]}


class idle_pods:
    """Idle pods on the client's node while the block runs; gives the memory that each takes."""

    def __init__(self, case, count, wanted, win):
        self.case, self.count, self.wanted, self.win = case, count, wanted, win

    def __enter__(self):
        if not self.wanted:
            return None
        before = self.win.of.rss("client")
        rc, out = case_step(self.case, "pods-up", str(self.count))
        time.sleep(2)
        after = self.win.of.rss("client")
        if rc:
            return {"error": out.strip()[-400:]}
        by_name = {name: (after[name] - before[name]) * 1024 / self.count for name in after}
        return {"count": self.count, "kib": sum(by_name.values()), "by_name": by_name}

    def __exit__(self, *exc):
        if self.wanted:
            case_step(self.case, "pods-down", str(self.count))


def version(path, *args):
    if not path:
        return None
    try:
        return (sh([path, *args], timeout=20).stdout.strip() or "?").splitlines()[0].replace(path, "").strip()
    except OSError:
        return None


def describe(args, sizes):
    """Where and how this was measured."""
    lines = open("/proc/cpuinfo").read().splitlines()
    cpu = next((l.split(":", 1)[1].strip() for l in lines if l.startswith("model name")), platform.machine())
    memory = next(l.split()[1] for l in open("/proc/meminfo") if l.startswith("MemTotal"))
    commit = sh(["git", "-C", HERE, "rev-parse", "--short", "HEAD"]).stdout.strip()
    return {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "reps": args.reps,
            "quick": args.quick, "sizes": sizes, "cpu": cpu, "cpus": CPUS, "memory_gib": round(int(memory) / 2**20),
            "kernel": platform.release(), "commit": commit, "command": args.command,
            "loadavg": os.getloadavg(), "conns": load.CONNS, "rate": load.RATE,
            "envoy": version(os.environ.get("ENVOY"), "--version")}


def arguments():
    ap = argparse.ArgumentParser(prog="run.sh")
    ap.add_argument("cases", nargs="*", metavar="case", help=f"default: {' '.join(DEFAULT)}")
    ap.add_argument("--all", action="store_true", help="every case")
    ap.add_argument("--quick", action="store_true", help="shorter measurements")
    ap.add_argument("--reps", type=int, default=3, help="rounds")
    ap.add_argument("--metrics", default=",".join(METRICS), help="subset of " + ",".join(METRICS))
    ap.add_argument("--wait", type=float, default=0, metavar="SECONDS",
                    help="wait for quiet moments between measurements, at most this long in all")
    ap.add_argument("--out", default=os.path.join(TMP, "results"))
    ap.add_argument("--command", default="bench/run.sh", help="the command to name in the report")
    args = ap.parse_args()
    args.metrics = args.metrics.split(",")
    for m in args.metrics:
        if m not in METRICS:
            ap.error(f"--metrics {m}: no such metric; there are {', '.join(METRICS)}")
    known = {os.path.basename(f)[:-3] for f in glob.glob(os.path.join(HERE, "..", "cases", "[a-z]*.sh"))}
    for c in args.cases:
        if c not in known:
            ap.error(f"no such case: {c}; there are {', '.join(sorted(known))}")
    if not args.cases:
        args.cases = sorted(known, key=lambda c: (c != "direct", c)) if args.all else DEFAULT
    return args


def main():
    args = arguments()
    order = args.cases
    sizes = QUICK if args.quick else LONG
    apps = dict(read_pids(open(os.path.join(TMP, "pids")).read()))
    doc = {"meta": describe(args, sizes), "order": order, "cases": {c: {"runs": []} for c in order}}
    for c in order:
        rc, missing = case_step(c, "requires")
        if rc or missing.strip():
            doc["cases"][c]["skipped"] = missing.strip().replace("\n", ", ")
            print(f"{c}: skipped, needs {doc['cases'][c]['skipped']}", flush=True)
    t0, waited = time.monotonic(), 0.0
    for rep in range(args.reps):
        for c in order:
            if "skipped" in doc["cases"][c]:
                continue
            waited += wait_quiet(args.wait - waited)
            r = measure(c, args, sizes, apps)
            doc["cases"][c]["runs"].append(r)
            print(f"[{time.monotonic() - t0:4.0f}s] round {rep + 1} {c}: {headline(r)}", flush=True)
    doc["meta"] |= {"waited": round(waited), "seconds": round(time.monotonic() - t0), "loadavg_after": os.getloadavg()}
    for c in order:
        doc["cases"][c]["summary"] = summarise(doc["cases"][c]["runs"])
    write(doc, args.out)


def headline(r):
    if "error" in r:
        return "ERROR " + r["error"]
    for m, unit in (("http1", "req/s"), ("connect", "connections/s")):
        if "rate" in (r.get(m) or {}):
            return f"{r[m]['rate']:.0f} {unit}, proxy CPU {r[m]['proxy_cpu']:.1f} µs each"
    return "measured"


def write(doc, out):
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "results.json"), "w") as f:
        json.dump(doc, f, indent=1)
    md = markdown(doc)
    with open(os.path.join(out, "results.md"), "w") as f:
        f.write(md)
    print("\n" + md)
    print(f"{doc['meta']['seconds']} s; wrote results.json and results.md to {out}")


main()
