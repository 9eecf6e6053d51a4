"""A process that dies or stands still ends a job without recoveries, and everyone says why."""

import signal
import time

from tests.faults import cluster as c


class LostProcessTest(c.TestCase):
    def start(self, **options):
        lost = ["--coordinator_timeout=%gs" % (3 * c.DEADLINE_FACTOR)]
        cluster = self.new_cluster(**options).start(
            servers=2, workers=2, flags=["--recoveries=0"], server_flags=lost, worker_flags=lost)
        cluster.await_training()
        return cluster

    def test_worker_killed_in_mid_step(self):
        cluster = self.start()
        cluster["w1"].send(signal.SIGKILL)
        self.assert_failed(cluster, time.monotonic(), r"worker/w1\b", killed=["w1"])
        self.assert_coordinator_says(cluster, "the stream of worker/w1 broke")

    def test_server_killed_in_mid_step(self):
        cluster = self.start()
        cluster["s0"].send(signal.SIGKILL)
        self.assert_failed(cluster, time.monotonic(), r"server/s0\b", killed=["s0"])
        self.assert_coordinator_says(cluster, r"server/s0\b")

    def test_all_members_killed(self):
        cluster = self.start()
        members = ["s0", "s1", "w0", "w1"]
        for name in members:
            cluster[name].send(signal.SIGKILL)
        self.assert_failed(cluster, time.monotonic(), r"(server/s[01]|worker/w[01])\b",
                           killed=members)

    def test_coordinator_killed(self):
        cluster = self.start()
        cluster["coordinator"].send(signal.SIGKILL)
        self.assert_failed(cluster, time.monotonic(), "lost the coordinator " + cluster.address,
                           killed=["coordinator"])

    def test_worker_stands_still(self):
        cluster = self.start()
        cluster["w1"].send(signal.SIGSTOP)
        since = time.monotonic()
        stopped = cluster.processes.pop("w1")
        self.addCleanup(stopped.close)
        self.assert_failed(cluster, since,
                           r"worker/w1 \(.* pid %d\) was lost: no heartbeat for [0-9.]+ s" %
                           stopped.pid)
        # Awake again, it learns that there is no job for it any more.
        stopped.send(signal.SIGCONT)
        self.assertEqual(stopped.wait(c.FAULT), 1, stopped.report())
        self.assertRegex(stopped.last_line, r"^worker w1: .*(coordinator|no heartbeat)")

    def test_server_stands_still(self):
        cluster = self.start()
        cluster["s1"].send(signal.SIGSTOP)
        since = time.monotonic()
        stopped = cluster.processes.pop("s1")
        self.addCleanup(stopped.close)
        self.assert_failed(cluster, since, r"server/s1 \(.* pid %d\) was lost: no heartbeat" %
                           stopped.pid)
        stopped.send(signal.SIGCONT)
        self.assertEqual(stopped.wait(c.FAULT), 1, stopped.report())

    def test_worker_killed_before_the_start(self):
        # Nothing is lost yet: another takes the place.
        cluster = self.new_cluster(c.job(steps=3))
        cluster.start_coordinator()
        first = cluster.start_worker("w0")
        cluster.await_line("waiting for 1 of 1 server$")
        first.send(signal.SIGKILL)
        first.wait()
        del cluster.processes["w0"]
        cluster.await_line(r"worker/w0 .* was lost")
        cluster.start_worker("w0")
        cluster.start_server("s0")
        self.assert_finished(cluster)

    def assert_coordinator_says(self, cluster, cause):
        coordinator = cluster["coordinator"]
        self.assertRegex(coordinator.last_line, "^coordinator: .*" + cause, coordinator.report())
        self.assertRegex(coordinator.stdout, r"(?m)^failed: .*" + cause)
        self.assertEqual(cluster.result["phase"], "FAILED")
        self.assertRegex(cluster.result["failure"], cause)


if __name__ == "__main__":
    c.main()
