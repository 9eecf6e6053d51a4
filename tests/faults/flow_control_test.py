"""Who is slow slows others down, but costs them no memory."""

import re
import threading
import time

from tests.faults import cluster as c
from tests.faults.duty_cycle import DutyCycle
from tests.faults.silent_client import SilentClient
from tests.faults.undisturbed import FLAGS, SERVER_FLAGS, WORKER_FLAGS, UndisturbedCase

# A step moves about 2 MB, so queues that grow would have hundreds in a run.
STEPS = 200
JOB = c.job(steps=STEPS, every_steps=100, edits={
    "d_model: 16": "d_model: 64", "lstm { hidden: 16": "lstm { hidden: 64",
    "hidden: 64 groups": "hidden: 256 groups", "lanes: 4 unroll: 8": "lanes: 16 unroll: 16"})
# What may come on top: the allocator's holes, and threads.
SLACK = 24 << 20
# Of each method that begin and are never read.
CALLS = 30


class MemoryWatch:
    """The most memory that each process of a cluster has had."""

    def __init__(self, cluster):
        self._cluster = cluster
        self.peak = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        while not self._over.wait(0.02):
            for name, process in list(self._cluster.processes.items()):
                found = re.search(r"VmHWM:\s+(\d+) kB", c.read("/proc/%d/status" % process.pid))
                if found:
                    self.peak[name] = int(found[1]) << 10

    def close(self):
        self._over.set()
        self._thread.join()


class FlowControlTest(UndisturbedCase):
    job = JOB

    @classmethod
    def setUpClass(cls):
        c.give_back_freed_memory()
        super().setUpClass()
        run = c.Cluster(cls.root + "/in_their_shape", cls.data, cls.job)
        cls.addClassCleanup(run.close)
        run.start(3, 2)
        watch = MemoryWatch(run)
        run.wait_all(c.PATIENCE)
        watch.close()
        cls.usual = watch.peak
        assert run.result["digest"] == cls.undisturbed["digest"], run.report()

    def watched(self, cluster):
        watch = MemoryWatch(cluster)
        self.addCleanup(watch.close)
        return watch

    def assert_usual(self, watch):
        for name, peak in watch.peak.items():
            self.assertLess(peak, self.usual[name] + SLACK,
                            "%s; usually %s" % (watch.peak, self.usual))

    def start_three(self):
        cluster = self.new_cluster(self.job)
        cluster.start(3, 2, flags=FLAGS, server_flags=SERVER_FLAGS, worker_flags=WORKER_FLAGS)
        return cluster

    def test_a_server_ten_times_slower(self):
        cluster = self.start_three()
        watch = self.watched(cluster)
        cluster.await_training()
        slow = DutyCycle(cluster["s1"])
        self.addCleanup(slow.close)
        self.assert_undisturbed(cluster, generations=1)
        self.assertGreater(slow.stops, 10)
        self.assert_usual(watch)

    def test_all_links_clogged_in_turn(self):
        cluster = self.start_with_proxies(servers=3)
        watch = self.watched(cluster)
        for proxy in self.proxies.values():
            proxy.rate = 50_000
            time.sleep(1)
            proxy.rate = None
        self.assert_undisturbed(cluster)
        self.assert_usual(watch)

    def test_answers_that_trickle(self):
        cluster = self.start_with_proxies(servers=3)
        watch = self.watched(cluster)
        for name in ["s0", "s2"]:
            self.proxies[name].slow = {"to_client"}
            self.proxies[name].rate = 1_000_000
        time.sleep(4)
        for name in ["s0", "s2"]:
            self.proxies[name].rate = None
        self.assert_undisturbed(cluster, generations=1)
        self.assert_usual(watch)

    def test_clients_that_read_nothing(self):
        cluster = self.start_three()
        watch = self.watched(cluster)
        cluster.await_training()
        joined = dict(re.findall(r"server/(s\d) .* has joined at (\S+)", cluster["coordinator"].stderr))
        self.assertEqual(sorted(joined), ["s0", "s1", "s2"])
        calls = [(cluster.address, "ClusterStatusService/GetClusterStatus")]
        for address in joined.values():
            calls += [(address, "ServerStatusService/GetServerStatus"),
                      (address, "ServerStatusService/GetTensorDigests"),
                      (address, "ShardService/Exchange")]
        for address, method in calls:
            client = SilentClient(address)
            self.addCleanup(client.close)
            for _ in range(CALLS):
                client.call("/moe.v1." + method, end=method != "ShardService/Exchange")
            if "Status" in method:
                self.assertEqual(client.begun(), CALLS, method)
        self.assert_undisturbed(cluster, generations=1)
        self.assert_usual(watch)


if __name__ == "__main__":
    c.main()
