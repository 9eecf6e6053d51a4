"""Hosts that are slower than this machine, for scripts that root may run: network namespaces on one
bridge, each with a link of so many bits a second in either direction, and with a part of a processor."""
import os
import subprocess
import time

# Headers of a packet: Ethernet, IPv4, TCP with timestamps.
HEADERS = 14 + 20 + 32
CPU_GROUPS = "/sys/fs/cgroup/cpu"
PERIOD_US = 10000
# Beside 1,024 of what else runs here.
SHARES = 100000
FEW_BITS = 100e6


def run(*command):
    subprocess.run([str(word) for word in command], check=True)


class Hosts:
    """`with Hosts(3, 100e6) as hosts`: hosts 0 to 2, and a hub that no limit is for. Used with `with`:
    nothing of them outlives it. bits: a second, or None for no limit. processors: what each host has of
    one, or None."""

    def __init__(self, count, bits=None, processors=None):
        self.name = "sy%d" % os.getpid()
        self.count = count
        self.bits = bits
        self.processors = processors
        self.spaces = []
        self.groups = []

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False)
        for group in self.groups:
            deadline = time.monotonic() + 10
            while os.path.isdir(group):
                try:
                    os.rmdir(group)
                except OSError:  # the last process is still ending
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def _make(self):
        hub = self._space("hub")
        run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", hub, "addr", "add", self.hub_address() + "/24", "dev", "bridge")
        run("ip", "-n", hub, "link", "set", "bridge", "up")
        for i in range(self.count):
            space, plug = self._space(str(i)), "host%d" % i
            run("ip", "-n", hub, "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns",
                space)
            run("ip", "-n", hub, "link", "set", plug, "master", "bridge", "up")
            run("ip", "-n", space, "addr", "add", self.address(i) + "/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            if self.bits:
                self._shape(hub, plug)
                self._shape(space, "eth0")
            if self.processors:
                group = os.path.join(CPU_GROUPS, "%s-%d" % (self.name, i))
                os.mkdir(group)
                self.groups.append(group)
                for name, value in (("cpu.cfs_period_us", PERIOD_US),
                                    ("cpu.cfs_quota_us", int(self.processors * PERIOD_US)),
                                    ("cpu.shares", SHARES)):
                    with open(os.path.join(group, name), "w", encoding="utf-8") as file:
                        file.write(str(value))

    def _space(self, name):
        space = "%s-%s" % (self.name, name)
        run("ip", "netns", "add", space)
        self.spaces.append(space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        return space

    def _shape(self, space, device):
        # Packets as a network has them, where that costs no processor, and a queue that loses none of a
        # step's.
        if self.bits <= FEW_BITS:
            run("ip", "-n", space, "link", "set", device, "gso_max_segs", "1")
        run("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", "rate",
            "%dbit" % self.bits, "burst", max(16000, int(self.bits / 8 * 0.002)), "limit", 64 << 20)

    def hub_address(self):
        return "10.77.0.1"

    def address(self, host):
        return "10.77.0.%d" % (10 + host)

    def on_hub(self, command):
        return ["ip", "netns", "exec", self.name + "-hub", *command]

    def on(self, host, command):
        command = ["ip", "netns", "exec", "%s-%d" % (self.name, host), *command]
        if not self.groups:
            return command
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"',
                os.path.join(self.groups[host], "cgroup.procs"), *command]

    def bytes(self, host):
        """Sent and received by the host so far, in TCP's streams."""
        text = subprocess.run(["ip", "netns", "exec", "%s-%d" % (self.name, host), "cat",
                               "/proc/net/dev"], stdout=subprocess.PIPE, text=True, check=True).stdout
        fields = text.split("eth0:")[1].split()
        received, sent = (int(fields[i]) - HEADERS * int(fields[i + 1]) for i in (0, 8))
        return sent, received
