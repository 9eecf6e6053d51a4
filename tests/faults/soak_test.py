"""Three minutes of random faults."""

from tests.faults import cluster as c
from tests.faults import soak


class SoakTest(c.TestCase):
    def test_every_run_ends_with_the_same_bits(self):
        rounds, counts, _ = soak.soak(self.root, self.data, seconds=180, seed=1)
        self.assertGreater(rounds, 1)
        # A slow machine comes to less.
        self.assertGreater(len(counts), 20)


if __name__ == "__main__":
    c.main()
