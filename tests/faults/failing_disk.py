"""How a process gets a disk as disk_shim.cc describes."""

import os

_LIBRARY = "tests/faults/disk_shim.so"


def shim(cluster, **settings):
    """Its environment. settings: kill, torn, fail, fail_if, flip, log."""
    env = {"LD_PRELOAD": os.path.abspath(_LIBRARY),
           "DISK_SHIM_FOLDERS": "%s:%s" % (cluster.checkpoint_dir,
                                           os.path.join(cluster.folder, "state"))}
    env.update({"DISK_SHIM_" + name.upper(): str(value) for name, value in settings.items()})
    return env
