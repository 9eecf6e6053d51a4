"""Hosts of a test on a network of their own, whose links can be cut as real ones are: packets vanish, and no
end is told.

Each host is a network namespace with one link to a bridge, which is in the test's own namespace.
"""

import ctypes
import os
import subprocess
import time

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SUBNET = "10.77.0."
BRIDGE = "switch"
LINK = "eth0"  # each host's
# A link-layer address that no link has.
NOWHERE = "02:00:00:00:ff:ff"


def own_network():
    """Gives this process, which may have one thread only, a network of its own, which ends with it. Why that
    isn't possible, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) != 0:
        # Who may not do so can be root of a user namespace.
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return "no network namespaces here: " + os.strerror(ctypes.get_errno())
        try:
            for name, text in [("setgroups", "deny"), ("uid_map", "0 %d 1" % uid),
                               ("gid_map", "0 %d 1" % gid)]:
                with open("/proc/self/" + name, "w") as file:
                    file.write(text)
        except OSError as error:
            return "no user namespaces here: %s" % error
    for command in [["link", "set", "lo", "up"], ["link", "add", BRIDGE, "type", "bridge"],
                    ["link", "set", BRIDGE, "up"]]:
        try:
            process = subprocess.run(["/sbin/ip"] + command, capture_output=True, text=True)
        except FileNotFoundError:
            return "no ip (iproute2) here"
        if process.returncode != 0:
            return "ip %s: %s" % (" ".join(command), process.stderr.strip())
    return None


def ip(*command, inside=()):
    subprocess.run(list(inside) + ["/sbin/ip"] + list(command), check=True)


class Host:
    """One with an address, on the network of the process that makes it, until it is closed."""

    _made = 0

    def __init__(self):
        Host._made += 1
        self.address = SUBNET + str(Host._made)
        self._port = "port%d" % Host._made  # of the bridge
        # Somebody must be in a namespace.
        self._keeper = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
        self._await_own_namespace()
        self._inside = ["nsenter", "--net=/proc/%d/ns/net" % self._keeper.pid]
        ip("link", "add", self._port, "type", "veth", "peer", "name", LINK, "netns",
           str(self._keeper.pid))
        ip("link", "set", self._port, "master", BRIDGE, "up")
        for command in [["addr", "add", self.address + "/24", "dev", LINK],
                        ["link", "set", LINK, "up"], ["link", "set", "lo", "up"]]:
            ip(*command, inside=self._inside)

    def _await_own_namespace(self):
        ours = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 30
        while os.readlink("/proc/%d/ns/net" % self._keeper.pid) == ours:
            assert self._keeper.poll() is None and time.monotonic() < deadline, "no namespace"
            time.sleep(0.01)

    def command(self, words):
        """That runs the command on this host."""
        return self._inside + list(words)

    def lose_packets_to(self, other):
        """From now on, whatever this host sends to the other doesn't arrive there."""
        ip("neigh", "replace", other.address, "lladdr", NOWHERE, "dev", LINK, "nud", "permanent",
           inside=self._inside)

    def reach(self, other):
        """Ends what lose_packets_to() began."""
        ip("neigh", "del", other.address, "dev", LINK, inside=self._inside)

    def unplug(self):
        ip("link", "set", self._port, "down")

    def plug(self):
        ip("link", "set", self._port, "up")

    def close(self):
        # Its link ends with the namespace, which is when nobody is in it any more.
        self._keeper.kill()
        self._keeper.wait()
