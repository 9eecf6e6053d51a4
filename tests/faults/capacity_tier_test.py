"""Experts on disk: what a full disk, a small budget and a killed server leave behind."""

import os
import re
import signal
import subprocess
import time

from tests.experiments.memory_cgroup import MemoryCgroup
from tests.faults import cluster as c

STEPS = 60
EVERY = 20
# A step touches few of the 512 experts, and every step some for the first time.
EDITS = {
    "experts: 8 k: 2 hidden: 64 groups: 4": "experts: 512 k: 1 hidden: 64 groups: 4",
    "replicas: 4 waves: 2 lanes: 4 unroll: 8": "replicas: 1 waves: 1 lanes: 4 unroll: 4",
}
# Of a server's memory, whose experts are more than that.
LIMIT = 96 << 20
ON_DISK = re.compile(r"server/s0 has ([0-9.]+ .iB) of the")


class CapacityTierTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        c.give_back_freed_memory()
        super().setUpClass()
        cls.job = c.job(steps=STEPS, every_steps=EVERY, edits=EDITS)

    def new_disk(self, size):
        """A folder on a disk of its own; skips where this user may not mount."""
        disk = os.path.join(self.new_folder(), "disk")
        os.makedirs(disk)
        if not c.own_mounts() or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=%d" % size, "tmpfs", disk]).returncode:
            self.skipTest("this user may not mount")
        self.addCleanup(subprocess.run, ["umount", "-l", disk])
        return disk

    def assert_resumes(self, checkpoint_dir, flags, undisturbed):
        again = self.new_cluster(self.job, checkpoint_dir=checkpoint_dir)
        again.start(servers=2, server_flags=flags, flags=["--resume"])
        result = self.assert_finished(again)
        self.assertIn("starting from %s/step-000000" % checkpoint_dir, again["coordinator"].stdout)
        self.assertEqual(result["digest"], undisturbed["digest"])

    def failed_after_a_checkpoint(self, flags, cause):
        cluster = self.new_cluster(self.job).start(servers=1, server_flags=flags)
        cluster.await_line("^checkpoint ")
        self.assert_failed(cluster, time.monotonic(), cause)
        self.assertIn(cluster.checkpoints()[-1], [EVERY, 2 * EVERY])
        return cluster

    def room_for_one_checkpoint(self):
        """Bytes that the experts take until a little after the second cut, before which the first
        checkpoint is committed."""
        first = self.train(c.job(steps=2 * EVERY + 2, every_steps=EVERY, edits=EDITS))
        touched = 0
        for name in os.listdir(first["checkpoint"]):
            if "group" not in name:
                continue
            with open(os.path.join(first["checkpoint"], name), "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                touched += len(re.findall(rb'#count": *"[1-9]', file.read(size)))
        self.assertGreater(touched, 50)
        # A matrix of 16 by 64 with two moments, in whole pages.
        return touched * 4 * 4096

    def test_full_disk(self):
        undisturbed = self.train(self.job)
        room = self.room_for_one_checkpoint()
        disk = self.new_disk(room)
        flags = ["--disk_dir", disk, "--disk_gib", "1"]
        cluster = self.failed_after_a_checkpoint(
            flags, r"server/s0( at \S+)?: layer1.moe.expert[0-9]+.w[12]: cannot take .* of the disk in .*: "
            "No space left on device; make room")
        self.assertEqual(os.listdir(disk), [])
        subprocess.run(["mount", "-o", "remount,size=%d" % (room * 20), disk], check=True)
        self.assert_resumes(cluster.checkpoint_dir, flags, undisturbed)

    def test_budget(self):
        undisturbed = self.train(self.job)
        folder = self.new_folder()
        os.makedirs(folder)
        room = self.room_for_one_checkpoint()
        flags = ["--disk_dir", folder, "--disk_gib"]
        cluster = self.failed_after_a_checkpoint(
            flags + ["%.9f" % (room / 2**30)],
            r"server/s0( at \S+)?: layer1.moe.expert[0-9]+.w[12]: .* of --disk_gib; raise it")
        self.assert_resumes(cluster.checkpoint_dir, flags + ["1"], undisturbed)

    def test_a_killed_server_leaves_nothing_on_the_disk(self):
        undisturbed = self.train(self.job)
        folder = self.new_folder()
        os.makedirs(folder)
        flags = ["--disk_dir", folder, "--disk_gib", "1"]
        cluster = self.new_cluster(self.job.replace("steps: 60", "steps: 100000"))
        cluster.start(servers=1, server_flags=flags, flags=["--recoveries=0"])
        cluster.await_line("^checkpoint ")
        shards = self.run_program([c.MOECTL, "shards", "--coordinator", cluster.address])
        self.assertRegex(shards.stdout, ON_DISK)
        cluster["s0"].send(signal.SIGKILL)
        self.assert_failed(cluster, time.monotonic(), "server/s0", killed=["s0"])
        self.assertEqual(os.listdir(folder), [])
        kept = cluster.checkpoints()[-1]
        again = self.new_cluster(self.job.replace("steps: 60", "steps: %d" % (kept + 5)),
                                 checkpoint_dir=cluster.checkpoint_dir)
        again.start(servers=1, server_flags=flags, flags=["--resume"])
        undisturbed = self.train(self.job.replace("steps: 60", "steps: %d" % (kept + 5)))
        self.assertEqual(self.assert_finished(again)["digest"], undisturbed["digest"])

    def test_more_experts_than_memory(self):
        folder = self.new_folder()
        os.makedirs(folder)
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], stdout=subprocess.PIPE,
                              check=True).stdout.decode().strip()
        if kind in ("tmpfs", "ramfs"):
            self.skipTest("the disk is memory: " + kind)
        try:
            cgroup = MemoryCgroup(LIMIT)
        except OSError as error:
            self.skipTest("this user may not make a cgroup: %s" % error)
        self.addCleanup(cgroup.close)
        # Experts of 1.5 MiB with their moments.
        job = c.job(steps=STEPS, every_steps=STEPS, edits={
            "experts: 8 k: 2 hidden: 64 groups: 4": "experts: 512 k: 1 hidden: 4096 groups: 4",
            "replicas: 4 waves: 2 lanes: 4 unroll: 8": "replicas: 1 waves: 1 lanes: 4 unroll: 4",
        })
        undisturbed = self.train(job)
        limited = self.train(job, server_cgroup=cgroup, server_flags=[
            "--disk_dir", folder, "--disk_gib", "4", "--rendezvous_timeout", "2m"])
        self.assertEqual(limited["digest"], undisturbed["digest"])
        checkpoint = limited["checkpoint"]
        touched = sum(os.path.getsize(os.path.join(checkpoint, name))
                      for name in os.listdir(checkpoint) if "group" in name)
        self.assertGreater(touched, LIMIT)
        self.assertGreater(cgroup.times_at_limit(), 0)

    def test_wrong_flags(self):
        for flags, said in [
            (["--disk_dir", "/tmp"], "--disk_dir needs --disk_gib"),
            (["--disk_gib", "1"], "--disk_gib needs --disk_dir"),
            (["--disk_dir", "/tmp", "--disk_gib", "-1"], "disk_gib"),
        ]:
            server = self.run_program([c.EXPERT_SERVER, "--name", "s", "--coordinator", "x:1"] + flags)
            self.assertEqual(server.status, 2)
            self.assertIn(said, server.stderr)
        server = self.run_program([c.EXPERT_SERVER, "--name", "s", "--coordinator", "x:1",
                                   "--disk_dir", "/no/folder", "--disk_gib", "1"])
        self.assertEqual(server.status, 1)
        self.assertIn("cannot create a file in /no/folder: No such file", server.stderr)


if __name__ == "__main__":
    c.main()
