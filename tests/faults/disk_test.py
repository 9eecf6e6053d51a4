"""A disk that fails at a checkpoint ends the job with the cause; the one before stays good."""

import os
import resource
import subprocess
import time

from tests.faults import cluster as c

STEPS = 150
EVERY = 50


class DiskTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = c.job(steps=STEPS, every_steps=EVERY)

    def undisturbed(self):
        cluster = self.new_cluster(self.job).start(servers=2)
        return self.assert_finished(cluster)

    def assert_resumes(self, cluster, undisturbed, checkpoint_dir):
        again = self.new_cluster(self.job, checkpoint_dir=checkpoint_dir)
        again.start(servers=1, workers=2, flags=["--resume"])
        result = self.assert_finished(again)
        self.assertIn("starting from %s/step-%08d" % (checkpoint_dir, EVERY),
                      again["coordinator"].stdout)
        self.assertEqual(result["digest"], undisturbed["digest"])
        self.assertEqual(result["test_perplexity"], undisturbed["test_perplexity"])

    def test_full_disk(self):
        undisturbed = self.undisturbed()
        size = 512 * sum(file.stat().st_blocks for file in os.scandir(undisturbed["checkpoint"]))
        disk = os.path.join(self.root, "disk")
        os.makedirs(disk)
        # Room for one checkpoint, not for two.
        if not c.own_mounts() or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=%d" % (size * 3 // 2), "tmpfs", disk]).returncode:
            self.skipTest("this user may not mount")
        self.addCleanup(subprocess.run, ["umount", "-l", disk])
        cluster = self.new_cluster(self.job, checkpoint_dir=os.path.join(disk, "checkpoints"))
        cluster.start(servers=2)
        cluster.await_line("^checkpoint ")
        self.assert_failed(
            cluster, time.monotonic(),
            "%s/step-00000100.generation-1/.*: No space left on device" % cluster.checkpoint_dir)
        self.assertEqual(cluster.checkpoints(), [EVERY])
        subprocess.run(["mount", "-o", "remount,size=%d" % (size * 4), disk], check=True)
        self.assert_resumes(cluster, undisturbed, cluster.checkpoint_dir)

    def test_a_server_cannot_write_its_part(self):
        undisturbed = self.undisturbed()
        cluster = self.new_cluster(self.job)
        cluster.start_coordinator(servers=2)
        cluster.start_server("s0")
        # Python ignores SIGXFSZ, and so does the server then: writes fail, as on a bad disk.
        cluster.start_server("s1", restore_signals=False)
        cluster.start_worker("w0")
        cluster.await_line("^checkpoint ")
        resource.prlimit(cluster["s1"].pid, resource.RLIMIT_FSIZE, (8192, 8192))
        self.assert_failed(cluster, time.monotonic(), "server/s1: .*/step-.*: File too large")
        self.assertEqual(cluster.checkpoints(), [EVERY])
        self.assert_resumes(cluster, undisturbed, cluster.checkpoint_dir)


if __name__ == "__main__":
    c.main()
