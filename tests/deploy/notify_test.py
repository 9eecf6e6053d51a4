"""What the programs tell a service manager on $NOTIFY_SOCKET, as systemd would hear it."""

import os
import re
import select
import signal
import socket
import tempfile
import time

from tests.faults import cluster as c


class Manager:
    """The receiving end of one process's notifications."""

    def __init__(self, folder, name):
        self.path = os.path.join(folder, name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.lines = []
        self._at = 0  # what await_line has looked at

    def _take(self, seconds):
        if select.select([self._socket], [], [], seconds)[0]:
            self.lines += self._socket.recv(65536).decode().splitlines()

    def await_line(self, pattern, process):
        """The first line that matches, of those that no call has looked at yet."""
        deadline = time.monotonic() + c.PATIENCE
        while True:
            while self._at < len(self.lines):
                line = self.lines[self._at]
                self._at += 1
                if re.search(pattern, line):
                    return line
            assert time.monotonic() < deadline, "no {} in {}\n{}".format(
                pattern, self.lines, process.report())
            self._take(0.2)

    def drain(self):
        while select.select([self._socket], [], [], 0)[0]:
            self._take(0)
        return self.lines

    def close(self):
        self._socket.close()


class NotifyTest(c.TestCase):
    def setUp(self):
        # A socket's path must be short.
        folder = tempfile.TemporaryDirectory(dir="/tmp", prefix="notify-")
        self.addCleanup(folder.cleanup)
        self.sockets = folder.name
        self.managers = {}

    def env(self, name, **more):
        manager = self.managers[name] = Manager(self.sockets, name)
        self.addCleanup(manager.close)
        return {"NOTIFY_SOCKET": manager.path, **more}

    def start(self, flags=(), **more):
        """One of each kind, each with a manager."""
        cluster = self.new_cluster(c.job(every_steps=3))
        cluster.start_coordinator(flags=flags, env=self.env("coordinator", **more))
        self.await_line(cluster, "coordinator", "^READY=1$")
        cluster.start_server("s0", env=self.env("s0", **more))
        self.await_line(cluster, "s0", "^READY=1$")
        cluster.start_worker("w0", env=self.env("w0", **more))
        self.await_line(cluster, "w0", "^READY=1$")
        return cluster

    def await_line(self, cluster, name, pattern):
        return self.managers[name].await_line(pattern, cluster[name])

    def test_ready_status_and_stopping(self):
        cluster = self.start()
        self.await_line(cluster, "coordinator", r"^STATUS=generation 1, step \d+ of \d+$")
        self.await_line(cluster, "s0", r"^STATUS=generation 1.*its shards have taken \d+ steps?$")
        first = self.await_line(cluster, "w0", r"^STATUS=generation 1, step \d+")
        second = self.await_line(cluster, "w0", r"^STATUS=generation 1, step \d+")
        self.assertNotEqual(first, second)
        for name in ("w0", "s0"):
            process = cluster.processes.pop(name)
            self.addCleanup(process.close)
            process.send(signal.SIGTERM)
            self.managers[name].await_line("^STOPPING=1$", process)
            self.assertEqual(process.wait(c.FAULT), 0, process.report())
        self.await_line(cluster, "coordinator",
                        r"^STATUS=generation \d+, waiting for 1 of 1 server and 1 of 1 worker")
        cluster["coordinator"].send(signal.SIGTERM)
        self.await_line(cluster, "coordinator", "^STOPPING=1$")
        self.assertEqual(cluster["coordinator"].wait(c.FAULT), 1)

    def test_not_ready_before_it_has_joined(self):
        cluster = self.new_cluster()
        cluster.address = c.free_address()
        for name, start in (("s0", cluster.start_server), ("w0", cluster.start_worker)):
            with self.subTest(name):
                process = start(name, env=self.env(name))
                self.await_line(cluster, name, "^STATUS=.*joins the coordinator " + cluster.address)
                cluster.await_that(lambda: "waiting for the coordinator" in process.stderr, "it waits")
                self.assertNotIn("READY=1", self.managers[name].drain())
                process.send(signal.SIGTERM)
                self.await_line(cluster, name, "^STOPPING=1$")
                self.assertEqual(cluster.processes.pop(name).wait(c.FAULT), 0, process.report())

    def test_the_end_of_a_job(self):
        cluster = self.new_cluster(c.job(steps=5))
        cluster.start_coordinator(env=self.env("coordinator"))
        cluster.start_server("s0", env=self.env("s0"))
        cluster.start_worker("w0", env=self.env("w0"))
        self.assert_finished(cluster)
        for name, manager in self.managers.items():
            lines = manager.drain()
            self.assertEqual(lines.count("READY=1"), 1, (name, lines))
            self.assertEqual(lines.count("STOPPING=1"), 1, (name, lines))
            self.assertLess(lines.index("READY=1"), lines.index("STOPPING=1"), (name, lines))

    def test_signs_of_life(self):
        cluster = self.start(WATCHDOG_USEC="400000", flags=["--lease_ms=60000"])
        for name, manager in self.managers.items():
            with self.subTest(name):
                process = cluster[name]
                for _ in range(5):
                    self.await_line(cluster, name, "^WATCHDOG=1$")
                process.send(signal.SIGSTOP)
                self.addCleanup(lambda p=process: p.status is None and p.send(signal.SIGCONT))
                # What it had said before it stood still.
                time.sleep(0.5)
                manager.drain()
                before = len(manager.lines)
                time.sleep(1)
                self.assertEqual(manager.drain()[before:], [])
                process.send(signal.SIGCONT)
                self.await_line(cluster, name, "^WATCHDOG=1$")


if __name__ == "__main__":
    c.main()
