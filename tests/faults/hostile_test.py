"""Strangers on the network: whatever they send, the job goes on, and takes no more memory for it."""

import json
import os
import random
import re
import time

from tests.faults import cluster as c

HOSTILE = "tests/hostile/hostile"
# 100,000 of them take some minutes (docs/results/fuzzing.md).
REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", 20000 // c.DEADLINE_FACTOR))
SEED = int(os.environ.get("HOSTILE_SEED", random.SystemRandom().randrange(1 << 32)))
# Seconds.
LIMIT = int((300 + REQUESTS // 50) * c.DEADLINE_FACTOR)

# What a process may take beyond its quiet memory. gRPC keeps about two of each connection's messages of
# 4 MiB and buffers of its threads; it's less than what one bomb would take.
MARGIN_MIB = 160
MORE_THREADS = 200


def status_of(pid):
    """Numbers of /proc/PID/status: MiB, and threads."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+)", c.read("/proc/%d/status" % pid), re.M))
    return {"rss": int(fields["VmRSS"]) / 1024, "peak": int(fields["VmHWM"]) / 1024,
            "threads": int(fields["Threads"])}


class HostileTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        c.give_back_freed_memory()
        super().setUpClass()

    def test_strangers(self):
        cluster = self.new_cluster(c.job())
        cluster.start_coordinator(2, 2)
        addresses = []
        for name in ["s0", "s1"]:
            port_file = os.path.join(cluster.folder, name + ".port")
            cluster.start_server(name, ["--port_file", port_file])
            cluster.await_that(lambda: os.path.exists(port_file), name + " listens")
            addresses.append(c.read(port_file).strip())
        for name in ["w0", "w1"]:
            cluster.start_worker(name)
        cluster.await_training()
        quiet = {name: status_of(process.pid) for name, process in cluster.processes.items()}
        before = self.steps(cluster)

        seed = "seed %d (HOSTILE_SEED)" % SEED
        attacker = c.Process(
            "hostile", [HOSTILE, "--coordinator", cluster.address, "--servers",
                        ",".join(addresses), "--requests", REQUESTS, "--seed", SEED,
                        "--limit", "%ds" % LIMIT], cluster.folder)
        self.addCleanup(attacker.close)
        most_threads = {name: 0 for name in quiet}
        deadline = time.monotonic() + LIMIT + 60
        while attacker.status is None and time.monotonic() < deadline:
            for name, process in cluster.processes.items():
                if process.status is not None:
                    self.fail("%s ended; %s\n%s" % (name, seed, cluster.report()))
                most_threads[name] = max(most_threads[name], status_of(process.pid)["threads"])
            time.sleep(0.1)
        self.assertEqual(attacker.status, 0, seed + "\n" + attacker.report())
        told = json.loads(attacker.stdout)
        print(json.dumps(told["counts"], indent=1, sort_keys=True))
        self.assertEqual(told["made"], REQUESTS, seed)
        after = self.steps(cluster)
        print("steps during %d attacks: %d" % (REQUESTS, after - before))
        self.assertGreater(after, before, "training stood still; " + seed)

        for name, process in cluster.processes.items():
            now = status_of(process.pid)
            print("%s: quiet %d MiB, at most %d MiB and %d threads" %
                  (name, quiet[name]["rss"], now["peak"], most_threads[name]))
            self.assertLess(now["peak"], quiet[name]["rss"] + MARGIN_MIB, name + "; " + seed)
            self.assertLess(most_threads[name], quiet[name]["threads"] + MORE_THREADS,
                            name + "; " + seed)
        self.assert_refused(told["counts"], seed)
        self.assertNotIn("recovering: ", cluster["coordinator"].stdout, seed)
        self.assert_undisturbed(cluster, seed)

    def assert_undisturbed(self, cluster, seed):
        """That the parameters are now those of a run without strangers after as many steps."""
        taken = self.run_program([c.MOECTL, "checkpoint", "--coordinator", cluster.address])
        self.assertEqual(taken.status, 0, taken.report() + cluster.report())
        steps = cluster.checkpoints()[-1]
        digest = self.digest_at(cluster, steps)
        cluster.close()
        undisturbed = self.new_cluster(c.job(steps=steps)).start()
        undisturbed.wait_all(LIMIT)
        self.assertEqual(undisturbed.result["phase"], "FINISHED", undisturbed.report())
        self.assertEqual(digest, undisturbed.result["digest"], seed)

    @staticmethod
    def digest_at(cluster, steps):
        folder = "step-%08d" % steps
        return json.loads(c.read(os.path.join(cluster.checkpoint_dir, folder,
                                              "manifest.json")))["digest"]

    def steps(self, cluster):
        return int(re.findall(r"^step ([0-9,]+)/", cluster["coordinator"].stdout,
                              re.M)[-1].replace(",", ""))

    def assert_refused(self, counts, seed):
        """That each attack happened, and how it may have been answered: grpc.StatusCode."""
        ok, invalid, deadline, not_found, exists = "0", "3", "4", "5", "6"
        denied, exhausted, precondition, aborted = "7", "8", "9", "10"
        unimplemented, internal, unavailable = "12", "13", "14"
        cancelled, unknown = "1", "2"
        # Goodbyes and causes of strangers are ignored, and states may be asked for.
        call = {ok, invalid, not_found, exists, denied, precondition, aborted, internal,
                unavailable, exhausted}
        allowed = {
            "random bytes": call,
            "odd message": call,
            "truncated message": call,
            "unknown method": {unimplemented},
            "stream": call | {unimplemented, cancelled, unknown},
            "dropped stream": None,
            # gRPC also breaks the connection.
            "metadata of 100 kB": {exhausted, unavailable, internal, cancelled, unknown, ok,
                                   not_found},
            "message of 4 MiB": call,
            # To make it takes seconds.
            "bomb": {unimplemented, internal, exhausted, cancelled, deadline},
            "garbage": None,
            "idle": None,
        }
        self.assertEqual(set(counts), set(allowed), seed)
        for attack, codes in allowed.items():
            if codes is not None:
                # An attack may break the connection of the next one.
                self.assertLessEqual(set(counts[attack]), codes | {unavailable},
                                     attack + "; " + seed)


if __name__ == "__main__":
    c.main()
