"""What a disk may hold after a power cut, by what was done to it and what was made to last.

The worst that file systems are allowed: bytes last once the file was fsynced, a name (created, renamed,
removed) once its folder was, and until then any of these changes may have reached the disk without
the others; a file that has its name but not its bytes is empty, full of zeros or cut off.
"""

import functools
import hashlib
import itertools
import json
import os


class _File:
    def __init__(self):
        self.now = b""
        self.safe = b""
        self._variants = {}

    def variant(self, name, make):
        """make(safe, now), made once, as states are compared by their hash, which bytes keep."""
        made = self._variants.get(name)
        if made is None or made[0] is not self.safe or made[1] is not self.now:
            made = self._variants[name] = (self.safe, self.now, make(self.safe, self.now))
        return made[2]


class _Folder:
    def __init__(self):
        self.now = {}
        self.safe = {}


class _Change:
    """Of a folder's names: {name: what it stands for, None for nothing}, all or nothing."""

    def __init__(self, folder, names):
        self.folder = folder
        self.names = names


class Disk:
    """Follows a log of disk_shim.cc, below `root`, which begins empty."""

    def __init__(self, root):
        self.root = _Folder()
        self._path = root.rstrip("/") + "/"
        self._pending = []
        self._dirty = []  # files with bytes that aren't safe

    def _parts(self, path):
        assert path.startswith(self._path), path
        return path[len(self._path):].split("/")

    def _find(self, parts):
        node = self.root
        for part in parts:
            node = node.now[part]
        return node

    def _set(self, parts_of, node):
        """Several names of one folder."""
        names = {parts[-1]: n for parts, n in zip(parts_of, node)}
        folder = self._find(parts_of[0][:-1])
        assert all(folder is self._find(parts[:-1]) for parts in parts_of)
        for name, what in names.items():
            if what is None:
                del folder.now[name]
            else:
                folder.now[name] = what
        self._pending.append(_Change(folder, names))

    def apply(self, line):
        path = line["path"]
        if path + "/" == self._path:
            # The root's own name is not in question.
            if line["call"] == "fsync":
                self._sync(self.root)
            return
        parts = self._parts(path)
        call = line["call"]
        if call == "open":
            if parts[-1] not in self._find(parts[:-1]).now:
                self._set([parts], [_File()])
            elif line.get("truncate"):
                self._write(self._find(parts), b"")
        elif call == "mkdir":
            self._set([parts], [_Folder()])
        elif call == "write":
            file, data, at = self._find(parts), bytes.fromhex(line["bytes"]), line["at"]
            self._write(file, file.now[:at].ljust(at, b"\0") + data + file.now[at + len(data):])
        elif call == "truncate":
            file = self._find(parts)
            self._write(file, file.now[:line["size"]].ljust(line["size"], b"\0"))
        elif call == "fsync":
            self._sync(self._find(parts))
        elif call == "rename":
            self._set([parts, self._parts(line["to"])], [None, self._find(parts)])
        elif call == "unlink":
            self._set([parts], [None])
        else:
            raise AssertionError(line)

    def _write(self, file, content):
        file.now = content
        if file not in self._dirty:
            self._dirty.append(file)

    def _sync(self, node):
        if isinstance(node, _File):
            node.safe = node.now
            if node in self._dirty:
                self._dirty.remove(node)
            return
        node.safe = dict(node.now)
        self._pending = [change for change in self._pending if change.folder is not node]

    # ---- states

    def now(self):
        """{path: bytes, None for a folder} as a process sees it."""
        return dict(_walk(self.root, lambda folder: folder.now, lambda file: file.now))

    def after_power_cut(self):
        """States that the disk may be in, each as `now`."""
        pending = self._pending
        some = [[], pending] + [[change] for change in pending]
        some += [pending[:i] + pending[i + 1:] for i in range(len(pending))]
        some += [pending[:n] for n in range(2, len(pending))]
        for kept, content in itertools.product(some, _CONTENTS if self._dirty else _CONTENTS[:1]):
            yield self._state(kept, content)
        # One file at a time is behind.
        for file in self._dirty:
            yield self._state(self._pending,
                              lambda other: other.safe if other is file else other.now)

    def _state(self, kept, content):
        names = {}
        for change in kept:
            entries = names.setdefault(id(change.folder), dict(change.folder.safe))
            for name, node in change.names.items():
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        return dict(_walk(self.root, lambda folder: names.get(id(folder), folder.safe), content))


_CONTENTS = [
    lambda file: file.safe,
    lambda file: file.now,
    lambda file: file.variant("zeros", lambda safe, now: safe.ljust(len(now), b"\0")),
    lambda file: file.variant("half", lambda safe, now: now[:(len(safe) + len(now)) // 2]),
]


def _walk(folder, names, content, prefix=""):
    for name, node in names(folder).items():
        if isinstance(node, _Folder):
            yield prefix + name, None
            yield from _walk(node, names, content, prefix + name + "/")
        else:
            yield prefix + name, content(node)


def key(state):
    """Equal for equal states."""
    return frozenset(state.items())


def make(state, root):
    """Writes the state below `root`, which begins empty."""
    os.makedirs(root)
    for path, content in sorted(state.items()):
        where = os.path.join(root, path)
        if content is None:
            os.makedirs(where, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(where), exist_ok=True)
        with open(where, "wb") as file:
            file.write(content)


def read_tree(root):
    """What is below `root`, as `now`."""
    state = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            state[os.path.relpath(os.path.join(folder, name), root)] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                state[os.path.relpath(path, root)] = file.read()
    return state


def read_log(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


# ---- what must hold of a state


_sha256 = functools.lru_cache(maxsize=None)(lambda content: hashlib.sha256(content).hexdigest())


def checkpoints(state, folder):
    """The steps of what looks like a checkpoint below `folder`; an AssertionError if one isn't whole."""
    steps = []
    for path in sorted(state):
        parts = path.split("/")
        if parts[:-2] != folder.split("/") or parts[-1] != "manifest.json":
            continue
        name = parts[-2]
        if not name.startswith("step-") or ".generation-" in name:
            continue
        try:
            manifest = json.loads(state[path])
        except ValueError:
            raise AssertionError("%s: its manifest is damaged" % name)
        for shard in manifest["shards"]:
            content = state.get("%s/%s/%s" % (folder, name, shard["file"]))
            assert content is not None, "%s has no %s" % (name, shard["file"])
            assert _sha256(content) == shard["sha256"], \
                "%s: %s is damaged" % (name, shard["file"])
        steps.append(int(name[len("step-"):]))
    return steps


def stored(state, path):
    """{key: value} of a coordinator's file store; an AssertionError if it is damaged."""
    if path not in state:
        return {}
    head, _, body = state[path].partition(b"\n")
    magic = b"switchyard-state 1 "
    assert head.startswith(magic) and hashlib.sha256(body).hexdigest().encode() == \
        head[len(magic):], "the coordinator's state is damaged: %r" % state[path][:200]
    return {key.decode(): value.decode() for _, key, value in
            (line.split(b"\t") for line in body.splitlines())}
