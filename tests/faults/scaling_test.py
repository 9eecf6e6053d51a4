"""A job gets and gives away servers and workers while it runs, and ends with the same bits."""

import os
import re

from tests.faults import cluster as c
from tests.faults.undisturbed import STEPS, UndisturbedCase


class ScalingTest(UndisturbedCase):
    def moectl(self, cluster, *arguments, status=0):
        command, flags = arguments[0], list(arguments[1:])
        process = self.run_program([c.MOECTL, command, "--coordinator", cluster.address] + flags)
        self.assertEqual(process.status, status, process.report())
        return process.stdout + process.stderr

    def assert_leaves(self, cluster, *names):
        """They end well while the job goes on."""
        for name in names:
            process = cluster.processes.pop(name)
            self.addCleanup(process.close)
            self.assertEqual(process.wait(c.FAULT), 0, process.report())
        self.assertIsNone(cluster["coordinator"].status, cluster.report())

    def test_checkpoint_on_demand(self):
        cluster = self.start(servers=1, workers=2)
        told = self.moectl(cluster, "checkpoint")
        folder, digest = re.match(r"(\S+)  digest (\w+)$", told.strip()).groups()
        step = int(folder[-8:])
        self.assertIn(step, cluster.checkpoints())
        self.assertLess(step, STEPS)
        live = self.run_program([c.MOECTL, "digest", "--checkpoint", folder])
        self.assertEqual(live.stdout.strip() or digest, digest, live.report())
        self.assert_undisturbed(cluster, generations=1)

    def test_more_servers(self):
        cluster = self.start(servers=1, workers=2)
        told = self.moectl(cluster, "scale", "--servers", "3")
        self.assertIn("3 servers and 2 workers, once 2 of 3 servers have joined", told)
        self.start_server(cluster, "s1")
        self.start_server(cluster, "s2")
        cluster.await_line("^training small on 3 servers and 2 workers$")
        self.assert_undisturbed(cluster, generations=1)

    def test_more_workers_then_fewer(self):
        cluster = self.start(servers=2, workers=1)
        self.moectl(cluster, "scale", "--workers", "4")
        for name in ["w1", "w2", "w3"]:
            self.start_worker(cluster, name)
        cluster.await_line("^training small on 2 servers and 4 workers$")
        told = self.moectl(cluster, "scale", "--workers", "2", "--servers", "1")
        self.assertIn("1 server and 2 workers", told)
        self.assert_leaves(cluster, "w3", "w2", "s1")
        self.assert_undisturbed(cluster, generations=1)

    def test_drain(self):
        cluster = self.start(servers=3, workers=2)
        self.moectl(cluster, "drain", "--member", "server/s0")
        self.assert_leaves(cluster, "s0")
        cluster.await_line("^training small on 2 servers and 2 workers$")
        self.moectl(cluster, "drain", "--member", "worker/w0")
        self.assert_leaves(cluster, "w0")
        cluster.await_line("^training small on 2 servers and 1 worker$")
        self.assert_undisturbed(cluster, generations=1)

    def test_newcomer_killed_while_it_is_taken_in(self):
        cluster = self.start(servers=1, workers=2)
        self.moectl(cluster, "scale", "--servers", "2")
        self.start_server(cluster, "s1")
        cluster.await_line("^scaled to 2 servers and 2 workers$")
        cluster.kill("s1")
        self.start_server(cluster, "s1")
        cluster.await_line("^training small on 2 servers")
        self.assert_undisturbed(cluster)

    def test_source_killed_while_it_gives_away(self):
        cluster = self.start(servers=1, workers=2)
        self.moectl(cluster, "scale", "--servers", "2")
        self.start_server(cluster, "s1")
        cluster.await_line("^scaled to 2 servers and 2 workers$")
        cluster.kill("s0")
        self.start_server(cluster, "s0")
        cluster.await_line("^training small on 2 servers")
        self.assert_undisturbed(cluster)

    def test_newcomer_that_dies_before_it_takes_part_is_no_loss(self):
        cluster = self.start(servers=1, workers=2)
        self.moectl(cluster, "scale", "--servers", "3")
        self.start_server(cluster, "s1")
        self.await_joined(cluster, "s1")
        cluster.kill("s1")
        cluster.await_line(r"^server/s1 .* was lost")
        self.moectl(cluster, "scale", "--servers", "1")
        self.assert_undisturbed(cluster, generations=1)

    def test_wrong_requests(self):
        cluster = self.start(servers=1, workers=2)
        for arguments, cause in [
            (["scale"], "give --servers N or --workers N"),
            (["scale", "--workers", "5"], "the job has 4 replicas, so it takes at most as many"),
            (["drain", "--member", "server/s7"],
             "there is no member server/s7; there are server/s0, worker/w0, worker/w1"),
            (["drain", "--member", "server/s0"], "at least one server and one worker"),
        ]:
            self.assertIn(cause, self.moectl(cluster, *arguments, status=1))
        self.assert_undisturbed(cluster, generations=1)


if __name__ == "__main__":
    c.main()
