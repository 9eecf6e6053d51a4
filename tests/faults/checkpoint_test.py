"""Checkpoints are written while training goes on, and are what they would be if it didn't."""

import json
import os
import re
import shutil
import time

from tests.faults import cluster as c
from tests.faults.slow_disk import SlowDisk
from tests.faults.undisturbed import (EVERY, FLAGS, SERVER_FLAGS, STEPS, TIMEOUT, WORKER_FLAGS,
                                      UndisturbedCase)


class CheckpointTest(UndisturbedCase):
    # All of them, to be compared.
    job = c.job(steps=STEPS, every_steps=EVERY,
                edits={"checkpointing {": "checkpointing { keep_last: 1000"})

    def start_with_slow_disk(self, server_flags=(), worker_flags=()):
        """Two servers and two workers; the first server's disk is slow when it is told so."""
        cluster = self.new_cluster(self.job)
        self.disk = SlowDisk(cluster.folder)
        self.addCleanup(self.disk.recover)
        cluster.start_coordinator(2, 2, flags=FLAGS)
        self.server_flags = SERVER_FLAGS + list(server_flags)
        cluster.start_server("s0", self.server_flags, env=self.disk.env)
        cluster.start_server("s1", self.server_flags)
        for name in ["w0", "w1"]:
            cluster.start_worker(name, WORKER_FLAGS + list(worker_flags))
        self.await_checkpoint(cluster)
        return cluster

    def status(self, cluster, command="status"):
        process = self.run_program([c.MOECTL, command, "--json", "--coordinator", cluster.address])
        self.assertEqual(process.status, 0, process.report())
        return json.loads(process.stdout)

    def begin_slow_cut(self, cluster):
        """Returns the step of a cut that isn't committed before the disk recovers."""
        self.disk.hang()
        while True:
            cut = self.status(cluster).get("cut")
            if cut and re.search("server/s0 to write", cut["waiting_for"]):
                return int(cut["step"])
            self.assertIsNone(cluster["coordinator"].status, cluster.report())

    def step(self, cluster):
        return int(self.status(cluster)["progress"]["step"])

    def manifest(self, folder, step):
        path = os.path.join(folder, "step-%08d" % step, "manifest.json")
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        return {
            "digest": manifest["digest"],
            "validation_perplexity": manifest["validation_perplexity"],
            "shards": {shard["shard"]: shard for shard in manifest["shards"]},
        }

    def assert_same_checkpoints(self, cluster):
        steps = cluster.checkpoints()
        self.assertIn(3 * EVERY, steps)
        for step in steps:
            if step % EVERY == 0:
                self.assertEqual(
                    self.manifest(cluster.checkpoint_dir, step),
                    self.manifest(os.path.dirname(self.undisturbed["checkpoint"]), step))

    def test_training_goes_on(self):
        cluster = self.start_with_slow_disk()
        cut = self.begin_slow_cut(cluster)
        # Up to the next cut, which waits for this one.
        last = cut + EVERY - 1 - cut % EVERY
        while self.step(cluster) < last:
            self.assertNotIn(cut, cluster.checkpoints())
        time.sleep(0.5)
        self.assertEqual(self.step(cluster), last)
        waiting = {m["member"]: m.get("waiting_for") for m in self.status(cluster)["members"]}
        self.assertEqual(waiting["worker/w0"], "the checkpoint of step %d" % cut)
        self.assertNotIn(cut, cluster.checkpoints())
        self.disk.recover()
        self.assert_undisturbed(cluster, generations=1)
        self.assert_same_checkpoints(cluster)

        # The one that was written under way is good to go on from.
        folder = self.new_folder()
        name = "step-%08d" % cut
        shutil.copytree(os.path.join(cluster.checkpoint_dir, name), os.path.join(folder, name))
        again = self.new_cluster(self.job, checkpoint_dir=folder)
        again.start(servers=1, workers=1, flags=["--resume"])
        result = self.assert_finished(again)
        self.assertIn("starting from %s/%s" % (folder, name), again["coordinator"].stdout)
        self.assertEqual(result["digest"], self.undisturbed["digest"])

    def test_a_disk_that_is_a_little_slow(self):
        cluster = self.start_with_slow_disk()
        self.disk.take(10)
        self.assert_undisturbed(cluster, generations=1)
        self.assert_same_checkpoints(cluster)

    def test_a_step_waits_for_the_disk(self):
        # Room for no copy.
        cluster = self.start_with_slow_disk(server_flags=["--copy_gib=0.000000001"])
        cut = self.begin_slow_cut(cluster)
        stuck = self.step(cluster)
        begin = time.monotonic()
        waiting = ""
        while "the disk to take the checkpoint of step %d" % cut not in waiting:
            members = self.status(cluster)["members"]
            waiting = [m for m in members if m["member"] == "server/s0"][0].get("waiting_for", "")
            self.assertLess(time.monotonic() - begin, c.FAULT, cluster.report())
        self.assertIn("--copy_gib", waiting)
        # Longer than any other answer may take.
        time.sleep(1.5 * TIMEOUT)
        self.assertLessEqual(self.step(cluster), stuck + 1)
        self.disk.recover()
        self.assert_undisturbed(cluster, generations=1)
        self.assert_same_checkpoints(cluster)

    def test_a_disk_that_is_slower_than_a_worker_is_patient(self):
        cluster = self.start_with_slow_disk(server_flags=["--copy_gib=0.000000001"],
                                            worker_flags=["--cut_timeout=%gs" % c.DEADLINE_FACTOR])
        self.begin_slow_cut(cluster)
        cluster.await_line("^recovering: .*server/s0")
        self.disk.recover()
        self.assert_undisturbed(cluster)
        self.assert_same_checkpoints(cluster)

    def test_killed_while_a_checkpoint_is_written(self):
        cluster = self.start_with_slow_disk()
        port = cluster.address
        for name in ["s0", "s1", "w0", "coordinator"]:
            cut = self.begin_slow_cut(cluster)
            cluster.kill(name)
            if name == "coordinator":
                cluster.start_coordinator(2, 2, listen=port, flags=FLAGS)
            elif name == "s0":
                cluster.start_server("s0", self.server_flags, env=self.disk.env)
            elif name == "s1":
                cluster.start_server("s1", self.server_flags)
            else:
                cluster.start_worker("w0", WORKER_FLAGS)
            if name == "coordinator":
                # Nothing is lost, so it isn't written again but to the end.
                cluster.await_line(r"^generation \d+ goes on: all are back$")
            else:
                cluster.await_line(r"^generation \d+ goes on from .*step-%08d$" % (cut - EVERY))
            self.assertNotIn(cut, cluster.checkpoints())
            self.disk.recover()
            cluster.await_that(lambda: cut in cluster.checkpoints(), "it is written")
        self.assert_undisturbed(cluster, generations=None)
        self.assert_same_checkpoints(cluster)

    def test_scaling_waits_for_a_checkpoint_under_way(self):
        cluster = self.start_with_slow_disk()
        cut = self.begin_slow_cut(cluster)
        process = self.run_program([c.MOECTL, "scale", "--servers", "3", "--coordinator",
                                    cluster.address])
        self.assertEqual(process.status, 0, process.report())
        cluster.start_server("s2", self.server_flags)
        self.await_joined(cluster, "s2")
        last = cut + EVERY - 1 - cut % EVERY
        while self.step(cluster) < last:
            pass
        time.sleep(0.5)
        self.assertNotIn("scaled to", cluster["coordinator"].stdout)
        self.assertNotIn(cut, cluster.checkpoints())
        self.disk.recover()
        cluster.await_line("^training small on 3 servers and 2 workers$")
        self.assertIn(cut, cluster.checkpoints())
        self.assert_undisturbed(cluster, generations=1)
        self.assert_same_checkpoints(cluster)


if __name__ == "__main__":
    c.main()
