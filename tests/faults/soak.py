#!/usr/bin/python3
"""Random faults on a job of hundreds of steps, again and again; every run must end with the digest of the
one that nothing disturbed.

  tests/faults/soak.py [--minutes N] [--seed N] [--coordinator_away N] [--results FILE]

Each round is a run of the same job on servers behind proxies, disturbed every few seconds by what
FAULTS lists, in an order that follows from the seed and the round's number. Processes that fail are started
again, as a supervisor would; the coordinator after up to --coordinator_away seconds. The first difference or hang ends it with the round's seed, its
schedule and what every process said. --results: write the counts to this file, as Markdown. Needs the
programs below bazel-bin.
"""

import argparse
import collections
import errno
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.faults import cluster as c
from tests.faults.failing_disk import shim
from tests.faults.duty_cycle import DutyCycle
from tests.faults.proxy import Proxy
from tests.faults.undisturbed import FLAGS, LEASE, SERVER_FLAGS, TIMEOUT, WORKER_FLAGS

JOB = c.job(steps=600, every_steps=20, edits={
    "d_model: 16": "d_model: 64", "lstm { hidden: 16": "lstm { hidden: 64",
    "hidden: 64 groups": "hidden: 256 groups", "lanes: 4 unroll: 8": "lanes: 16 unroll: 16"})
MOST = {"s": 3, "w": 4}
FIRST = ["s0", "s1", "w0", "w1"]
ROUND = 300 * c.DEADLINE_FACTOR  # seconds in which a round must end
PAUSE = 2.5 * c.DEADLINE_FACTOR  # seconds from a fault to the next, on average


class Round:
    def __init__(self, folder, data, seed, counts, away):
        self.away = away
        self.random = random.Random(seed)
        self.counts = counts
        self.schedule = []
        self.cluster = c.Cluster(folder, data, JOB)
        self.begin = time.monotonic()
        self.stopped = {}  # name: when it is to go on
        self.restarts = {}  # name: when it is to be started again
        self.healed = {}  # proxy: when
        self.dragged = {}  # duty cycle: when it ends
        self.disks = {}  # the file that makes a disk fail: when that ends
        self.proxies = {}
        self.listen = {}
        # The coordinator may come back before its port is free.
        self.address = c.free_address()
        for i in range(MOST["s"]):
            name = "s%d" % i
            self.listen[name] = c.free_address()
            self.proxies[name] = Proxy(self.listen[name])
        self.start("coordinator")
        for name in FIRST:
            self.start(name)

    def start(self, name):
        self.restarts.pop(name, None)
        # Each process has one way in which its disk may fail.
        disk = shim(self.cluster, fail_if=self.disk_of(name), fail=self.random.choice([
            "fsync:%d" % errno.EIO, "write:%d" % errno.EIO, "write:%d" % errno.ENOSPC,
            "rename:%d" % errno.EIO, "open:%d" % errno.ENOSPC]) + ":/checkpoints/")
        if name == "coordinator":
            # A disk that failed has ended the job.
            resume = ["--resume"] if self.cluster.checkpoints() else []
            self.cluster.start_coordinator(2, 2, listen=self.address, wait=False, env=disk,
                                           flags=FLAGS + ["--recoveries=1000"] + resume)
            self.cluster.address = self.address
        elif name[0] == "s":
            self.cluster.start_server(name, SERVER_FLAGS + [
                "--listen", self.listen[name], "--advertise", self.proxies[name].address], env=disk)
        else:
            self.cluster.start_worker(name, WORKER_FLAGS)

    def members(self, kind=""):
        return [name for name, process in self.cluster.processes.items()
                if name != "coordinator" and name.startswith(kind) and process.status is None
                and name not in self.stopped]

    # ---- faults

    def kill(self, kind):
        names = ["coordinator"] if kind == "coordinator" else self.members(kind)
        if names and kind not in self.restarts:
            self.kill_one(self.random.choice(names))

    def kill_one(self, name):
        process = self.cluster.processes.get(name)
        if process is None or process.status is not None:
            return
        self.stopped.pop(name, None)
        self.cluster.kill(name)
        longest = self.away if name == "coordinator" else 1.5
        self.restarts[name] = time.monotonic() + self.random.uniform(0, longest)

    def stop(self, kind, longest):
        names = ["coordinator"] if kind == "coordinator" else self.members(kind)
        names = [name for name in names if name in self.cluster.processes
                 and self.cluster[name].status is None and name not in self.stopped]
        if names:
            name = self.random.choice(names)
            self.cluster[name].send(signal.SIGSTOP)
            self.stopped[name] = time.monotonic() + self.random.uniform(0.2, longest)

    def block(self, ways, longest):
        proxy = self.random.choice(list(self.proxies.values()))
        proxy.blocked = set(ways)
        self.healed[proxy] = time.monotonic() + self.random.uniform(0.2, longest)

    def coordinator_down_for_long(self):
        self.kill_one("coordinator")
        self.restarts["coordinator"] = time.monotonic() + self.random.uniform(4, 10)

    def slow(self, rate, proxies=None):
        for proxy in proxies or [self.random.choice(list(self.proxies.values()))]:
            proxy.rate = rate
            self.healed[proxy] = time.monotonic() + self.random.uniform(0.5, 2)

    def drag(self):
        names = self.members("s")
        if names:
            cycle = DutyCycle(self.cluster[self.random.choice(names)])
            self.dragged[cycle] = time.monotonic() + self.random.uniform(0.5, 3)

    def disk_of(self, name):
        return os.path.join(self.cluster.folder, name + ".disk_fails")

    def fail_disk(self, name):
        if name:
            path = self.disk_of(name)
            with open(path, "w"):
                pass
            # Until a checkpoint has come, or about so long.
            self.disks[path] = time.monotonic() + self.random.uniform(0.5, 2)

    def moectl(self, *arguments):
        process = c.Process("moectl", [c.MOECTL, arguments[0], "--coordinator", self.address,
                                       "--timeout", "%gs" % (3 * c.DEADLINE_FACTOR)] + list(arguments[1:]),
                            self.cluster.folder, "moectl.%d" % len(self.schedule))
        # It may be refused, as when the job isn't training; what it asked for is then not done.
        if process.wait(10 * c.DEADLINE_FACTOR) is None:
            process.close()
        return process.status == 0

    def scale(self, kind, flag):
        wanted = self.random.randint(1, MOST[kind])
        if not self.moectl("scale", flag, str(wanted)):
            return
        for i in range(wanted):
            name = "%s%d" % (kind, i)
            if name not in self.cluster.processes:
                self.start(name)

    FAULTS = [
        ("a server killed", 3, lambda self: self.kill("s")),
        ("a worker killed", 3, lambda self: self.kill("w")),
        ("the coordinator killed", 2, lambda self: self.kill("coordinator")),
        ("all members killed", 1, lambda self: [self.kill_one(n) for n in self.members()]),
        ("everything killed", 1, lambda self: [
            self.kill_one(n) for n in self.members() + ["coordinator"]]),
        ("a server stopped, up to past its lease", 2, lambda self: self.stop("s", 2 * LEASE)),
        ("a worker stopped, up to past its lease", 2, lambda self: self.stop("w", 2 * LEASE)),
        ("the coordinator stopped", 1, lambda self: self.stop("coordinator", 2 * LEASE)),
        ("a server's connections broken", 2,
         lambda self: self.random.choice(list(self.proxies.values())).drop()),
        ("a server cut off", 2, lambda self: self.block(["to_target", "to_client"], 2 * TIMEOUT)),
        ("a server that isn't heard", 1, lambda self: self.block(["to_client"], 2 * TIMEOUT)),
        ("a server that hears nothing", 1, lambda self: self.block(["to_target"], 2 * TIMEOUT)),
        ("all connections broken", 1, lambda self: [p.drop() for p in self.proxies.values()]),
        ("a slow link", 2, lambda self: self.slow(300_000)),
        ("a clogged link", 2, lambda self: self.slow(50_000)),
        ("all links clogged", 1, lambda self: self.slow(50_000, list(self.proxies.values()))),
        ("a server ten times slower", 2, lambda self: self.drag()),
        ("a server's disk that fails at checkpoints", 1, lambda self: self.fail_disk(
            self.random.choice(self.members("s") or [None]))),
        ("the coordinator's disk that fails at checkpoints", 1,
         lambda self: self.fail_disk("coordinator")),
        ("the coordinator down for long", 1, lambda self: self.coordinator_down_for_long()),
        ("a checkpoint on demand", 2, lambda self: self.moectl("checkpoint")),
        ("servers scaled", 2, lambda self: self.scale("s", "--servers")),
        ("workers scaled", 2, lambda self: self.scale("w", "--workers")),
    ]

    # ---- the run

    def disturb(self):
        name, _, fault = self.random.choices(self.FAULTS, [weight for _, weight, _ in self.FAULTS])[0]
        self.schedule.append("%.2f %s" % (time.monotonic() - self.begin, name))
        self.counts[name] += 1
        fault(self)

    def tend(self):
        """What a supervisor and time do."""
        now = time.monotonic()
        for name, when in list(self.stopped.items()):
            if now >= when:
                del self.stopped[name]
                if name in self.cluster.processes and self.cluster[name].status is None:
                    self.cluster[name].send(signal.SIGCONT)
        for cycle, when in list(self.dragged.items()):
            if now >= when:
                del self.dragged[cycle]
                cycle.close()
        for path, when in list(self.disks.items()):
            if now >= when:
                del self.disks[path]
                os.remove(path)
        for proxy, when in list(self.healed.items()):
            if now >= when:
                del self.healed[proxy]
                proxy.blocked, proxy.rate = set(), None
        for name, process in list(self.cluster.processes.items()):
            if process.status is None or (name == "coordinator" and process.status == 0):
                continue
            del self.cluster.processes[name]
            # A member that ends well has been drained, or the job is finished.
            if process.status != 0:
                self.restarts.setdefault(name, now + 0.5)
            if name == "coordinator":
                # The job has failed. Then it takes again what its command line says.
                for member in FIRST:
                    if member not in self.cluster.processes:
                        self.restarts.setdefault(member, now + 0.5)
        for name, when in list(self.restarts.items()):
            if now >= when:
                self.start(name)

    def run(self):
        """The result, or raises with all that is known."""
        next_fault = time.monotonic() + 1
        while True:
            self.tend()
            now = time.monotonic()
            coordinator = self.cluster.processes.get("coordinator")
            if coordinator is not None and coordinator.status == 0:
                return self.cluster.result
            if now - self.begin > ROUND:
                raise AssertionError("the round hangs\n" + self.report())
            # The last third of the time is quiet, should the faults have left no progress.
            if now >= next_fault and now - self.begin < 2 * ROUND / 3:
                self.disturb()
                next_fault = time.monotonic() + self.random.expovariate(1 / PAUSE)
            time.sleep(0.02)

    def recoveries(self):
        return len(re.findall("^recovering: ", self.cluster_output(), re.M))

    def cluster_output(self):
        return c.read(os.path.join(self.cluster.folder, "coordinator.out"))

    def report(self):
        return "schedule:\n  %s\n%s" % ("\n  ".join(self.schedule), self.cluster.report())

    def close(self):
        for cycle in self.dragged:
            cycle.close()
        self.cluster.close()
        for proxy in self.proxies.values():
            proxy.close()


def undisturbed(folder, data):
    cluster = c.Cluster(folder, data, JOB)
    try:
        cluster.start(servers=1, workers=1)
        cluster.wait_all(c.PATIENCE)
        result = cluster.result
        assert result["phase"] == "FINISHED", cluster.report()
        return result
    finally:
        cluster.close()


def soak(root, data, seconds, seed, away=1.5):
    """(rounds, counts of faults, recoveries). Raises on the first difference."""
    expected = undisturbed(os.path.join(root, "undisturbed"), data)
    counts = collections.Counter()
    recoveries = 0
    begin = time.monotonic()
    rounds = 0
    while rounds == 0 or time.monotonic() - begin < seconds:
        folder = os.path.join(root, "round%d" % rounds)
        one = Round(folder, data, "%d/%d" % (seed, rounds), counts, away)
        try:
            result = one.run()
            for key in ("digest", "test_perplexity"):
                assert result[key] == expected[key], (key, result[key], expected[key], one.report())
            recoveries += one.recoveries()
            print("round %d: %.0f s, %d faults, %d recoveries, digest equal" %
                  (rounds, time.monotonic() - one.begin, len(one.schedule), one.recoveries()),
                  flush=True)
        except BaseException:
            print("seed %d, round %d" % (seed, rounds), file=sys.stderr)
            raise
        finally:
            one.close()
        shutil.rmtree(folder)
        rounds += 1
    return rounds, counts, recoveries


def write_results(path, minutes, seed, rounds, counts, recoveries):
    lines = [
        "# Random faults", "",
        "`tests/faults/soak.py --minutes %g --seed %d`: %d runs of a job of 600 steps, on 1 to 3 servers and 1 to 4"
        % (minutes, seed, rounds),
        "workers as they were scaled, disturbed every 2.5 s on average; %d times the job went back to a" % recoveries,
        "checkpoint. Every run ended with the digest and the test perplexity of the undisturbed one.", "",
        "| fault | how often |", "|---|---|"]
    lines += ["| %s | %d |" % (name, counts[name]) for name, _, _ in Round.FAULTS]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coordinator_away", type=float, default=1.5)
    parser.add_argument("--results")
    args = parser.parse_args()
    results = args.results and os.path.abspath(args.results)
    os.chdir(os.path.join(ROOT, "bazel-bin"))
    root = tempfile.mkdtemp(prefix="soak-")
    try:
        data = c.prepare_text(os.path.join(root, "text"))
        rounds, counts, recoveries = soak(root, data, 60 * args.minutes, args.seed,
                                          args.coordinator_away)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if results:
        write_results(results, args.minutes, args.seed, rounds, counts, recoveries)


if __name__ == "__main__":
    main()
