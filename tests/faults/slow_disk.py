"""A disk on which the shards of some processes take their time."""

import os

LIBRARY = "tests/faults/slow_disk_shim.so"


class SlowDisk:
    """As fast as any until it is told otherwise. `env`: of the processes that write to it."""

    def __init__(self, folder):
        self._path = os.path.join(folder, "slow-disk")
        self.env = {"LD_PRELOAD": os.path.abspath(LIBRARY), "SLOW_DISK": self._path}

    def take(self, milliseconds):
        """For each write, also for one that is under way; 0: no time."""
        if milliseconds == 0:
            if os.path.exists(self._path):
                os.remove(self._path)
            return
        with open(self._path + ".new", "w") as file:
            file.write("%d\n" % milliseconds)
        os.rename(self._path + ".new", self._path)

    def hang(self):
        self.take(3600 * 1000)

    def recover(self):
        self.take(0)
