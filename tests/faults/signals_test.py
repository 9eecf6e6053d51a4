"""SIGINT and SIGTERM end every kind of process in order, at any moment."""

import os
import signal
import time

from tests.faults import cluster as c

STOPPED = "this process was told to stop"


class SignalsTest(c.TestCase):
    def start(self):
        cluster = self.new_cluster().start(servers=2, workers=2, flags=["--recoveries=0"])
        cluster.await_training()
        return cluster

    def test_coordinator(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                cluster = self.start()
                cluster["coordinator"].send(number)
                self.assert_failed(cluster, time.monotonic(), "the coordinator was told to stop")
                self.assertIn("stopped: the coordinator was told to stop",
                              cluster["coordinator"].stdout)
                self.assertEqual(cluster.result["failure"], "the coordinator was told to stop")

    def test_server(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                cluster = self.start()
                cluster["s0"].send(number)
                self.assert_failed(cluster, time.monotonic(), r"server/s0\b",
                                   causes={"s0": STOPPED}, statuses={"s0": 0})

    def test_worker(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                cluster = self.start()
                cluster["w1"].send(number)
                self.assert_failed(cluster, time.monotonic(), r"worker/w1\b",
                                   causes={"w1": STOPPED}, statuses={"w1": 0})

    def test_everybody_at_once(self):
        # Ctrl-C in a terminal reaches all processes of the foreground.
        cluster = self.start()
        for process in cluster.processes.values():
            process.send(signal.SIGINT)
        cluster.wait_all(c.FAULT)
        for process in cluster.processes.values():
            self.assertIn(process.status, (0, 1), cluster.report())
            self.assertRegex(process.last_line, "told to stop|left before|stream", cluster.report())

    def test_while_the_cluster_is_incomplete(self):
        cluster = self.new_cluster()
        cluster.start_coordinator(servers=2, workers=2)
        cluster.start_server("s0")
        cluster.start_worker("w0")
        cluster.await_line("waiting for 1 of 2 servers and 1 of 2 workers")
        since = time.monotonic()
        cluster["s0"].send(signal.SIGTERM)
        cluster["w0"].send(signal.SIGTERM)
        for name in ("s0", "w0"):
            process = cluster.processes.pop(name)
            self.addCleanup(process.close)
            self.assertEqual(process.wait(c.FAULT), 0, process.report())
            self.assertIn(STOPPED, process.last_line)
        self.assertLess(time.monotonic() - since, c.FAULT)
        # Nothing was lost, so the coordinator waits for others.
        cluster.await_line("waiting for 2 of 2 servers and 2 of 2 workers")
        cluster["coordinator"].send(signal.SIGTERM)
        self.assert_failed(cluster, time.monotonic(), "the coordinator was told to stop")

    def test_while_there_is_no_coordinator(self):
        cluster = self.new_cluster()
        cluster.address = c.free_address()
        processes = [cluster.start_server("s0"), cluster.start_worker("w0")]
        for process in processes:
            cluster.await_that(lambda: "waiting for the coordinator" in process.stderr, "it waits")
        since = time.monotonic()
        for process in processes:
            process.send(signal.SIGTERM)
        for process in processes:
            self.assertEqual(process.wait(c.FAULT), 0, process.report())
        self.assertLess(time.monotonic() - since, c.FAULT)

    def test_nothing_is_left_behind(self):
        cluster = self.new_cluster(c.job(every_steps=3)).start(servers=2, workers=2)
        cluster.await_line("^checkpoint ")
        cluster["coordinator"].send(signal.SIGTERM)
        self.assert_failed(cluster, time.monotonic(), "the coordinator was told to stop")
        self.assertTrue(cluster.checkpoints())
        for folder, _, files in os.walk(cluster.folder):
            for name in files:
                self.assertNotRegex(name, "tmp|temp|new", "in " + folder)


if __name__ == "__main__":
    c.main()
