"""Runs that are disturbed, and end with the bits of the one that wasn't."""

import os
import re

from tests.faults import cluster as c

STEPS = 1500
EVERY = 100
LEASE = 1.5  # seconds
FLAGS = ["--heartbeat_ms=200", "--lease_ms=%d" % (1000 * LEASE)]
# Seconds that a peer may be silent.
TIMEOUT = 3
SERVER_FLAGS = ["--rendezvous_timeout=%ds" % TIMEOUT]
WORKER_FLAGS = ["--step_timeout=%ds" % TIMEOUT]


class UndisturbedCase(c.TestCase):
    # Of the job's text.
    edits = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = c.job(steps=STEPS, every_steps=EVERY, edits=cls.edits)
        run = c.Cluster(os.path.join(cls.root, "undisturbed"), cls.data, cls.job)
        cls.addClassCleanup(run.close)
        run.start(servers=1, workers=1)
        run.wait_all(c.PATIENCE)
        cls.undisturbed = run.result
        assert cls.undisturbed["phase"] == "FINISHED", run.report()

    def start(self, servers=2, workers=2, flags=(), **options):
        cluster = self.new_cluster(self.job)
        cluster.start(servers, workers, flags=FLAGS + list(flags), server_flags=SERVER_FLAGS,
                      worker_flags=WORKER_FLAGS, **options)
        self.await_checkpoint(cluster)
        return cluster

    def start_server(self, cluster, name, flags=()):
        return cluster.start_server(name, SERVER_FLAGS + list(flags))

    def start_worker(self, cluster, name):
        return cluster.start_worker(name, WORKER_FLAGS)

    def await_joined(self, cluster, name):
        """Waits until the process of that name, no other, is a member."""
        joined = r"/%s \(.* pid %d\) has joined" % (name, cluster[name].pid)
        cluster.await_that(lambda: re.search(joined, cluster["coordinator"].stderr), joined)

    def await_checkpoint(self, cluster):
        cluster.await_line(r"^checkpoint .*step-00000%d00 " % (2 * EVERY // 100))

    def assert_undisturbed(self, cluster, generations=None):
        result = self.assert_finished(cluster)
        self.assertEqual(result["digest"], self.undisturbed["digest"], cluster.report())
        self.assertEqual(result["test_perplexity"], self.undisturbed["test_perplexity"])
        if generations is not None:
            lines = cluster["coordinator"].stdout.splitlines()
            recoveries = [line for line in lines if line.startswith("recovering: ")]
            self.assertEqual(len(recoveries) + 1, generations, recoveries)
        leftovers = [name for name in os.listdir(cluster.checkpoint_dir) if ".generation-" in name]
        self.assertEqual(leftovers, [])
