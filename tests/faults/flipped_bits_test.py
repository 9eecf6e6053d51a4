"""Bits that change on their way between workers and servers, where no checksum of TCP's sees it: the
job ends with the digest of the undisturbed run, or says why it doesn't, but never with another one."""

import os
import random
import time

from tests.faults import cluster as c
from tests.faults.flip import Flip
from tests.faults.undisturbed import UndisturbedCase

SEED = int(os.environ.get("FLIP_SEED", random.SystemRandom().randrange(1 << 32)))
FLIPS = int(os.environ.get("FLIPS", "12"))
# Seconds in which a flipped bit that matters is noticed.
NOTICED = 5 * c.DEADLINE_FACTOR


class FlippedBitsTest(UndisturbedCase):
    def test_flips(self):
        rng = random.Random(SEED)
        seed = "seed %d (FLIP_SEED)" % SEED
        outcomes = {"noticed": 0, "no effect": 0, "failed": 0}
        cluster = None
        for number in range(FLIPS):
            if cluster is None:
                cluster = self.start_with_proxies(flags=["--recoveries=1000"])
            proxy = self.proxies[rng.choice(["s0", "s1"])]
            flip = Flip(rng, proxy, rng.choice(["to_target", "to_client"]), number % 3 > 0)
            before = self.noticed(cluster)
            # What is left of the job is undisturbed.
            if not self.await_either(cluster, flip.done.is_set, c.PATIENCE):
                self.assertTrue(self.is_over(cluster), seed + "\n" + cluster.report())
            elif self.await_either(cluster, lambda: self.noticed(cluster) > before, NOTICED):
                outcomes["noticed"] += 1
                self.await_training_again(cluster, seed)
            elif self.has_failed(cluster):
                outcomes["failed"] += 1
            else:
                outcomes["no effect"] += 1
            if self.is_over(cluster):
                self.assert_end(cluster, seed)
                cluster = None
        if cluster is not None:
            for proxy in self.proxies.values():
                proxy.spoil = None
            self.assert_end(cluster, seed)
        print(seed, outcomes)
        # Most of what is carried are frames, whose bits all matter.
        self.assertGreaterEqual(outcomes["noticed"], FLIPS // 3, outcomes)

    def await_either(self, cluster, condition, seconds):
        """Until the condition holds (True), or time or the job is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.is_over(cluster):
                return False
            time.sleep(0.02)
        return False

    def await_training_again(self, cluster, seed):
        lines = len(cluster["coordinator"].stdout.splitlines())

        def trains():
            new = cluster["coordinator"].stdout.splitlines()[lines:]
            return any(line.startswith("step ") for line in new)

        if not self.await_either(cluster, trains, c.PATIENCE):
            self.assertTrue(self.is_over(cluster), seed + "\n" + cluster.report())

    @staticmethod
    def noticed(cluster):
        """How often a stream was taken up, or the job went back to a checkpoint."""
        return (cluster["coordinator"].stdout.count("recovering: ") +
                sum(cluster[name].stderr.count("took up the stream") for name in ["w0", "w1"]))

    @staticmethod
    def is_over(cluster):
        return cluster["coordinator"].status is not None

    @staticmethod
    def has_failed(cluster):
        return cluster["coordinator"].status == 1

    def assert_end(self, cluster, seed):
        """The digest, or a cause."""
        cluster.wait_all(c.PATIENCE)
        if not self.has_failed(cluster):
            self.assert_undisturbed(cluster)
            return
        result = cluster.result
        self.assertEqual(result["phase"], "FAILED", seed + "\n" + cluster.report())
        self.assertNotEqual(result["failure"], "", seed + "\n" + cluster.report())
        print("failed:", result["failure"])
        for process in cluster.processes.values():
            self.assertEqual(process.status, 1, seed + "\n" + cluster.report())


if __name__ == "__main__":
    c.main()
