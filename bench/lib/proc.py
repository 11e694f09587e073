"""Processes: how they are run in the pods, and what they used of CPU and memory."""
import glob
import os
import re
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TMP = os.environ["BENCH_TMP"]
TICK = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count()


def sh(args, timeout=120, **kw):
    return subprocess.run(args, capture_output=True, text=True, timeout=timeout, **kw)


def enter(side, *args):
    """The command line that runs args in the pod of that side."""
    return [os.path.join(HERE, "enter"), side, *args]


def in_client(*args, timeout=120):
    """Runs a load generator in the client pod; returns (what it printed, its CPU seconds)."""
    before = os.times()
    p = sh(enter("client", *args), timeout=timeout)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return p.stdout + p.stderr, cpu


def start(side, *args, **kw):
    """Starts a helper in a pod; its output is dropped unless kw says otherwise."""
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen(enter(side, *args), **{**quiet, **kw})


def case_step(case, step, *args):
    """Runs case.sh; returns (exit code, what it printed)."""
    # Files, not pipes: the proxies it starts would keep a pipe open.
    with open(os.path.join(TMP, "step.out"), "w+") as f:
        p = subprocess.Popen([os.path.join(HERE, "case.sh"), case, step, *args], stdout=f, stderr=subprocess.STDOUT,
                             stdin=subprocess.DEVNULL)
        try:
            rc = p.wait(timeout=180)
        except subprocess.TimeoutExpired:
            p.kill()
            rc = p.wait()
        f.seek(0)
        return rc, f.read()


def children(pid):
    """The process and all below it."""
    found = [pid]
    for p in found:
        for f in glob.glob(f"/proc/{p}/task/*/children"):
            try:
                found += [int(x) for x in open(f).read().split()]
            except OSError:
                pass
    return found


def cpu_of(pid):
    """CPU seconds that a process has used."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except OSError:
        return float("nan")


def rss_of(pid):
    """Resident memory in MiB."""
    try:
        with open(f"/proc/{pid}/status") as f:
            m = re.search(r"VmRSS:\s+(\d+) kB", f.read())
        return int(m.group(1)) / 1024 if m else 0.0
    except OSError:
        return float("nan")


def machine_busy():
    """CPU seconds of the whole machine: (not idle, all)."""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    return (sum(v) - v[3] - v[4]) / TICK, sum(v) / TICK


class Processes:
    """The processes of a case: {pid: (side, name)} of proxies, of applications, of helpers."""

    def __init__(self, case, apps):
        self.proxies, self.apps, self.aux = {}, dict(apps), {}
        for pid, who in read_pids(case_step(case, "pids")[1]):
            kind = self.aux if who[1].startswith("aux") else self.apps if who[1].startswith("app") else self.proxies
            kind[pid] = who

    def rss(self, side=None):
        """Memory of the proxies by `side name`, in MiB."""
        found = {}
        for pid, (at, name) in self.proxies.items():
            if side in (None, at):
                found[f"{at} {name}"] = found.get(f"{at} {name}", 0) + rss_of(pid)
        return found


def read_pids(text):
    """Lines SIDE NAME PID as (pid, (side, name)); children count as their parent."""
    for line in text.splitlines():
        side, name, pid = line.split()
        for p in children(int(pid)):
            yield p, (side, name)


class Window:
    """CPU that proxies, applications, helpers and the whole machine used over a time span."""

    def __init__(self, processes):
        self.of = processes

    def __enter__(self):
        self.start = {p: cpu_of(p) for p in [*self.of.proxies, *self.of.apps, *self.of.aux]}
        self.busy0, self.all0 = machine_busy()
        self.app_cpu = 0.0  # of applications that did not run all the time
        return self

    def __exit__(self, *exc):
        used = {p: cpu_of(p) - at for p, at in self.start.items()}
        self.by_name = {}
        for p, who in self.of.proxies.items():
            self.by_name[" ".join(who)] = self.by_name.get(" ".join(who), 0) + used[p]
        self.proxy_cpu = sum(self.by_name.values())
        self.app_cpu += sum(used[p] for p in self.of.apps)
        self.aux_cpu = sum(used[p] for p in self.of.aux)
        busy, total = machine_busy()
        self.busy, self.total = busy - self.busy0, total - self.all0

    def figures(self, count, load_cpu, unit=1e6):
        """CPU per operation (µs by default), and the share of the machine that others used."""
        ours = self.proxy_cpu + self.app_cpu + self.aux_cpu + load_cpu
        n = max(count, 1e-9)
        return {
            "proxy_cpu": self.proxy_cpu / n * unit,
            "by_name": {name: cpu / n * unit for name, cpu in self.by_name.items()},
            "all_cpu": ours / n * unit,
            "other_load": max(0.0, (self.busy - ours) / max(self.total, 1e-9)),
        }


def wait_quiet(budget):
    """Waits until others leave 92 % of the machine idle, at most budget seconds; returns the seconds waited."""
    t0 = time.monotonic()
    while budget > 0:
        b0, a0 = machine_busy()
        time.sleep(2)
        b1, a1 = machine_busy()
        if (b1 - b0) / max(a1 - a0, 1e-9) < .08 or time.monotonic() - t0 > budget:
            break
        time.sleep(3)
    return time.monotonic() - t0
