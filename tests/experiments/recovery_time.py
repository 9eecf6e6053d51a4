#!/usr/bin/python3
"""How long the default job stands still when a server is killed, and when one is taken in.

  tests/experiments/recovery_time.py DATA [--kills N]

DATA is a folder of prepare_text. Trains deploy/configs/kjv-moe.textproto on three servers and two workers with
the default lease and a checkpoint every 20 steps; kills a server N times (default 7) and starts it again
at once, as a supervisor does; then asks for a fourth one. Needs the programs below bazel-bin.
"""
import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.faults import cluster as c

SERVERS = 3
WORDS_A_STEP = 2048  # of that job


class Watched(c.Cluster):
    @property
    def output(self):
        return self["coordinator"].stdout

    def wait_for(self, condition):
        self.await_that(condition, "what is measured")

    def generations(self):
        """How many have begun to train."""
        return self.output.count("training kjv-moe")

    def words_per_second(self, generation):
        """As last printed in that generation."""
        lines = self.output.split("training kjv-moe")[generation]
        return float(re.findall(r"^step .*words/s ([\d,]+)", lines, re.M)[-1].replace(",", ""))

    def trains_in(self, generation):
        """Whether a step of that generation is complete."""
        return (self.generations() >= generation and
                re.search(r"^step ", self.output.rsplit("training kjv-moe", 1)[1], re.M))


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("data")
    parser.add_argument("--kills", type=int, default=7)
    args = parser.parse_args()
    data = os.path.abspath(args.data)
    with open(os.path.join(ROOT, "deploy/configs/kjv-moe.textproto"), encoding="utf-8") as file:
        job = re.sub(r"every_steps: \d+", "every_steps: 20", file.read())
    os.chdir(os.path.join(ROOT, "bazel-bin"))
    folder = tempfile.mkdtemp(prefix="recovery-")
    cluster = Watched(os.path.join(folder, "run"), data, job)
    try:
        cluster.start(servers=SERVERS, workers=2)
        cluster.await_line("^checkpoint ")
        seconds = []
        for kill in range(args.kills):
            generation = cluster.generations() + 1
            time.sleep(3)
            name = "s%d" % (kill % SERVERS)
            begin = time.monotonic()
            cluster.kill(name)
            cluster.start_server(name)
            cluster.wait_for(lambda: cluster.trains_in(generation))
            seconds.append(time.monotonic() - begin)
        print("from the kill of a server to the next completed step, its start included: "
              "median %.2f s (%s)" % (statistics.median(seconds),
                                      ", ".join("%.2f" % s for s in seconds)))
        generation = cluster.generations() + 1
        subprocess.run([c.MOECTL, "scale", "--servers", str(SERVERS + 1), "--coordinator",
                        cluster.address], check=True)
        cluster.start_server("s%d" % SERVERS)
        cluster.await_line("^scaled to ")
        begin = time.monotonic()
        cluster.wait_for(lambda: cluster.trains_in(generation))
        seconds = time.monotonic() - begin
        # Without the step itself.
        step = WORDS_A_STEP / cluster.words_per_second(generation - 1)
        print("from the step after which a server is taken in to the next completed one: %.2f s; a step "
              "takes %.2f s, so the pause is that of %.1f steps" %
              (seconds, step, seconds / step - 1))
    finally:
        cluster.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
