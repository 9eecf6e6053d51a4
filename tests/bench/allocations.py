"""How often our processes allocate memory while they train (allocations.cc counts)."""
import os
import struct


class Counted:
    """The environment of processes that are counted, by name, and their counts."""

    def __init__(self, binaries, folder):
        self.library = os.path.abspath(os.path.join(binaries, "tests/bench/liballocations.so"))
        self.folder = folder

    def __call__(self, name):
        return {"LD_PRELOAD": self.library, "ALLOCATION_COUNTS": self._path(name)}

    def _path(self, name):
        return os.path.join(self.folder, name + ".allocations")

    def read(self, name):
        """(all, of 4 KiB or more) so far."""
        with open(self._path(name), "rb") as file:
            return struct.unpack("<QQ", file.read(16))
