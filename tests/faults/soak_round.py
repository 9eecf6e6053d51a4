"""A run of a job that is disturbed at random, with a supervisor that starts again what fails."""

import errno
import itertools
import os
import random
import re
import signal
import time

from tests.faults import cluster as c
from tests.faults.duty_cycle import DutyCycle
from tests.faults.failing_disk import shim
from tests.faults.flip import Flip
from tests.faults.proxy import Proxy
from tests.faults.slow_disk import SlowDisk
from tests.faults.undisturbed import FLAGS, LEASE, SERVER_FLAGS, TIMEOUT, WORKER_FLAGS

JOB = c.job(steps=600, every_steps=20, edits={
    "d_model: 16": "d_model: 64", "lstm { hidden: 16": "lstm { hidden: 64",
    "hidden: 64 groups": "hidden: 256 groups", "lanes: 4 unroll: 8": "lanes: 16 unroll: 16"})
MOST = {"s": 3, "w": 4}
FIRST = ["s0", "s1", "w0", "w1"]
ROUND = 300  # seconds in which a round must end
A_ROUNDS = 12  # faults, about


class Round:
    def __init__(self, folder, data, seed, number, counts, away):
        self.away = away
        self.random = random.Random("%d/%d" % (seed, number))
        # Each kind in its turn, so that a few rounds have all.
        kinds = [kind for kind in self.FAULTS for _ in range(kind[1])]
        random.Random(seed).shuffle(kinds)
        begin = number * A_ROUNDS % len(kinds)
        self.kinds = itertools.cycle(kinds[begin:] + kinds[:begin])
        self.counts = counts
        self.schedule = []
        self.cluster = c.Cluster(folder, data, JOB)
        self.begin = time.monotonic()
        self.stopped = {}  # name: when it is to go on
        self.restarts = {}  # name: when it is to be started again
        self.healed = {}  # proxy: when
        self.dragged = {}  # duty cycle: when it ends
        self.disks = {}  # the file that makes a disk fail: when that ends
        self.flips = []
        self.requests = []  # of moectl, that nobody waits for
        self.later = []  # (when it is due, what then is to be done)
        self.slow_disk = SlowDisk(folder)
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
        slow = self.slow_disk.env
        disk = {**slow, **disk, "LD_PRELOAD": disk["LD_PRELOAD"] + ":" + slow["LD_PRELOAD"]}
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

    # ---- faults; False: there was nothing to be disturbed

    def kill(self, kind):
        names = ["coordinator"] if kind == "coordinator" else self.members(kind)
        return bool(names) and self.kill_one(self.random.choice(names))

    def kill_one(self, name):
        process = self.cluster.processes.get(name)
        if process is None or process.status is not None:
            return False
        self.stopped.pop(name, None)
        self.cluster.kill(name)
        longest = self.away if name == "coordinator" else 1.5
        self.restarts[name] = time.monotonic() + self.random.uniform(0, longest)
        return True

    def kill_all(self, names):
        return any([self.kill_one(name) for name in names])

    def kill_anyone(self):
        return self.kill_all([self.random.choice(self.members() + ["coordinator"])])

    def stop(self, kind, longest):
        names = ["coordinator"] if kind == "coordinator" else self.members(kind)
        names = [name for name in names if name in self.cluster.processes
                 and self.cluster[name].status is None and name not in self.stopped]
        if not names:
            return False
        name = self.random.choice(names)
        self.cluster[name].send(signal.SIGSTOP)
        self.stopped[name] = time.monotonic() + self.random.uniform(0.2, longest)
        return True

    def any_proxy(self):
        return self.random.choice(list(self.proxies.values()))

    def block(self, ways, longest):
        proxy = self.any_proxy()
        proxy.blocked = set(ways)
        self.healed[proxy] = time.monotonic() + self.random.uniform(0.2, longest)

    def coordinator_down_for_long(self):
        if not self.kill_one("coordinator"):
            return False
        self.restarts["coordinator"] = time.monotonic() + self.random.uniform(4, 10)
        return True

    def slow(self, rate, proxies=None):
        for proxy in proxies or [self.any_proxy()]:
            proxy.rate = rate
            self.healed[proxy] = time.monotonic() + self.random.uniform(0.5, 2)

    def drag(self):
        names = self.members("s")
        if not names:
            return False
        cycle = DutyCycle(self.cluster[self.random.choice(names)])
        self.dragged[cycle] = time.monotonic() + self.random.uniform(0.5, 3)
        return True

    def flip(self, large):
        proxy = self.any_proxy()
        way = self.random.choice(["to_target", "to_client"])
        rng = random.Random(self.random.random())
        self.flips.append((Flip(rng, proxy, way, large), len(self.schedule) - 1))

    def disk_of(self, name):
        return os.path.join(self.cluster.folder, name + ".disk_fails")

    def fail_disk(self, name):
        if not name:
            return False
        path = self.disk_of(name)
        with open(path, "w"):
            pass
        # Until a checkpoint has come, or about so long.
        self.disks[path] = time.monotonic() + self.random.uniform(0.5, 2)
        return True

    def slow_disks(self):
        self.slow_disk.take(self.random.randrange(10, 100))
        self.later.append((time.monotonic() + self.random.uniform(0.5, 3), self.slow_disk.recover))

    def ask(self, *arguments):
        return c.Process("moectl", [c.MOECTL, arguments[0], "--coordinator", self.address,
                                    "--timeout", "3s"] + list(arguments[1:]),
                         self.cluster.folder, "moectl.%d" % len(self.schedule))

    def moectl(self, *arguments):
        process = self.ask(*arguments)
        # It may be refused, as when the job isn't training; what it asked for is then not done.
        if process.wait(10) is None:
            process.close()
        return process.status == 0

    def scale(self, kind, flag):
        wanted = self.random.randint(1, MOST[kind])
        if not self.moectl("scale", flag, str(wanted)):
            return False
        for i in range(wanted):
            name = "%s%d" % (kind, i)
            if name not in self.cluster.processes:
                self.start(name)
        return True

    def kill_in_a_handover(self):
        """While shards are fetched in advance, or, as often, when they change hands."""
        begun = self.handovers()
        if not self.scale("s", "--servers"):
            return False
        if self.random.random() < 0.5:
            self.later.append((time.monotonic() + self.random.uniform(0, 1), self.kill_anyone))
            return True
        deadline = time.monotonic() + 5
        while self.handovers() == begun and time.monotonic() < deadline:
            self.tend()
            time.sleep(0.005)
        return self.handovers() > begun and self.kill_anyone()

    def kill_in_a_cut(self):
        self.requests.append(self.ask("checkpoint"))
        self.slow_disk.take(20)
        self.later.append((time.monotonic() + self.random.uniform(0, 0.5), self.kill_anyone))
        self.later.append((time.monotonic() + 1, self.slow_disk.recover))

    FAULTS = [
        ("a server killed", 3, lambda self: self.kill("s")),
        ("a worker killed", 3, lambda self: self.kill("w")),
        ("the coordinator killed", 2, lambda self: self.kill("coordinator")),
        ("all members killed", 1, lambda self: self.kill_all(self.members())),
        ("everything killed", 1, lambda self: self.kill_all(self.members() + ["coordinator"])),
        ("a server stopped, up to past its lease", 2, lambda self: self.stop("s", 2 * LEASE)),
        ("a worker stopped, up to past its lease", 2, lambda self: self.stop("w", 2 * LEASE)),
        ("the coordinator stopped", 1, lambda self: self.stop("coordinator", 2 * LEASE)),
        ("a server's connections broken", 2, lambda self: self.any_proxy().drop()),
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
        ("servers' disks slow at checkpoints", 2, lambda self: self.slow_disks()),
        ("a bit flipped on the wire, in a frame", 3, lambda self: self.flip(large=True)),
        ("a bit flipped on the wire, anywhere", 2, lambda self: self.flip(large=False)),
        ("the coordinator down for long", 1, lambda self: self.coordinator_down_for_long()),
        ("somebody killed with a cut under way", 2, lambda self: self.kill_in_a_cut()),
        ("somebody killed with a handover under way", 3, lambda self: self.kill_in_a_handover()),
        ("a checkpoint on demand", 2, lambda self: self.moectl("checkpoint")),
        ("servers scaled", 2, lambda self: self.scale("s", "--servers")),
        ("workers scaled", 2, lambda self: self.scale("w", "--workers")),
    ]

    # ---- the run

    def disturb(self):
        name, _, fault = next(self.kinds)
        self.schedule.append("%.2f %s" % (time.monotonic() - self.begin, name))
        if fault(self) is False:
            self.schedule[-1] += ": nothing to disturb"
        elif "flipped" not in name:
            self.counts[name] += 1

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
        for flip, place in list(self.flips):
            if flip.done.is_set():
                self.flips.remove((flip, place))
                self.counts[self.schedule[place].split(" ", 1)[1]] += 1
        due = [what for when, what in self.later if now >= when]
        self.later = [(when, what) for when, what in self.later if now < when]
        for what in due:
            what()
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
                next_fault = time.monotonic() + self.random.expovariate(1 / 2.5)
            time.sleep(0.02)

    def recoveries(self):
        return len(re.findall("^recovering: ", self.cluster_output(), re.M))

    def handovers(self):
        return len(re.findall("^scaled to ", self.cluster_output(), re.M))

    def cluster_output(self):
        return c.read(os.path.join(self.cluster.folder, "coordinator.out"))

    def report(self):
        return "schedule:\n  %s\n%s" % ("\n  ".join(self.schedule), self.cluster.report())

    def close(self):
        for cycle in self.dragged:
            cycle.close()
        self.cluster.close()
        for request in self.requests:
            request.close()
        for proxy in self.proxies.values():
            proxy.close()
