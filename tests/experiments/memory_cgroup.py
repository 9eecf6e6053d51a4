"""A control group whose processes have so much memory, for scripts and tests that may make one."""
import os
import time


def _mounts(kind):
    """Folders at which cgroups of a kind are mounted, with the mounts' options."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, folder, found, options = line.split()[:4]
            if found == kind:
                yield folder, options.split(",")


def _read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def _write(text, *path):
    with open(os.path.join(*path), "w", encoding="utf-8") as file:
        file.write(text)


def _own_group(controller):
    """The group of this process in the hierarchy of a controller of cgroups v1."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""


class MemoryCgroup:
    """At most `limit` bytes for those that command() starts, their share of the file cache included.
    OSError says why it can't be made. To be closed when they have ended."""

    def __init__(self, limit):
        name = "switchyard-%d-%d" % (os.getpid(), time.monotonic_ns())
        reasons = []
        for make in (self._make_v2, self._make_v1):
            try:
                if make(name, limit):
                    return
            except OSError as error:
                reasons.append(str(error))
        raise OSError("; ".join(reasons) or "no cgroup has a controller of memory")

    def _make_v2(self, name, limit):
        for folder, _ in _mounts("cgroup2"):
            if "memory" not in _read(folder, "cgroup.controllers").split():
                continue
            if "memory" not in _read(folder, "cgroup.subtree_control").split():
                _write("+memory", folder, "cgroup.subtree_control")
            self._limit(os.path.join(folder, name),
                        {"memory.max": limit, "memory.swap.max": 0}, ["memory.swap.max"])
            return True
        return False

    def _make_v1(self, name, limit):
        for folder, options in _mounts("cgroup"):
            if "memory" not in options:
                continue
            own = os.path.join(folder, _own_group("memory"))
            self._limit(os.path.join(own if os.path.isdir(own) else folder, name),
                        {"memory.limit_in_bytes": limit, "memory.swappiness": 0},
                        ["memory.swappiness"])
            return True
        return False

    def _limit(self, path, values, optional):
        os.mkdir(path)
        self.path = path
        try:
            for name, value in values.items():
                if name not in optional or os.path.exists(os.path.join(path, name)):
                    _write(str(value), path, name)
        except OSError:
            self.close()
            raise

    def command(self, command):
        """The command, as one that puts itself into the group first."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', os.path.join(self.path, "cgroup.procs"),
                *[str(word) for word in command]]

    def times_at_limit(self):
        """How often the kernel had to make room because of the limit."""
        try:
            events = dict(line.split() for line in _read(self.path, "memory.events").splitlines())
            return int(events["max"])
        except FileNotFoundError:
            return int(_read(self.path, "memory.failcnt"))

    def close(self):
        deadline = time.monotonic() + 10
        while os.path.isdir(self.path):
            try:
                os.rmdir(self.path)
            except OSError:  # the last process is still ending
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
