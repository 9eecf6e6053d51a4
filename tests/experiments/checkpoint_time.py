#!/usr/bin/python3
"""What a checkpoint that is being written costs the steps that go on meanwhile.

  tests/experiments/checkpoint_time.py DATA [--steps N] [--every N]

DATA is a folder of prepare_text, best with --validation_fraction=0: an evaluation at each checkpoint, for
which training pauses anyway, would leave few steps to measure. Trains deploy/configs/kjv-moe.textproto on
three servers and two workers for N steps (default 500) with a checkpoint every few (default 16), and compares
the steps that began while a checkpoint was under way with those between which none was: medians of the
times from one completed step to the next, side by side in one run. The job's first 20 steps and last one
don't count, nor the steps whose close has the cut. Needs the programs below bazel-bin.
"""
import argparse
import datetime
import os
import re
import shutil
import statistics
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.faults import cluster as c

WARM_UP = 20
LEAST = 50
STEP = re.compile(r"^I(?:\d{4})+ (\d\d):(\d\d):(\d\d\.\d+) .*\] step (\d+) is complete(, while .*)?$",
                  re.M)


def steps_of(log):
    """[(step, seconds of the day, whether a checkpoint was under way)]"""
    return [(int(step), 3600 * int(hour) + 60 * int(minute) + float(second), bool(under_way))
            for hour, minute, second, step, under_way in STEP.findall(log)]


def times_of(steps, every):
    """Seconds of steps that began with a checkpoint under way, and of those without."""
    day = datetime.timedelta(days=1).total_seconds()
    busy, quiet = [], []
    for (_, begin, at_begin), (step, end, at_end) in zip(steps, steps[1:]):
        if step <= WARM_UP or step == steps[-1][0]:
            continue
        if at_begin:
            busy.append((end - begin) % day)
        elif not at_end and step % every != 0:
            quiet.append((end - begin) % day)
    return busy, quiet


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=16)
    args = parser.parse_args()
    data = os.path.abspath(args.data)
    with open(os.path.join(ROOT, "deploy/configs/kjv-moe.textproto"), encoding="utf-8") as file:
        job = file.read()
    job = re.sub(r"every_steps: \d+", "every_steps: %d" % args.every, job)
    job = re.sub(r"epochs: \d+", "steps: %d" % args.steps, job)
    os.chdir(os.path.join(ROOT, "bazel-bin"))
    folder = tempfile.mkdtemp(prefix="checkpoint-")
    # The coordinator's log has each step then.
    os.environ["GLOG_v"] = "1"
    cluster = c.Cluster(os.path.join(folder, "run"), data, job)
    try:
        cluster.start(servers=3, workers=2)
        cluster.wait_all(3600)
        if any(process.status != 0 for process in cluster.processes.values()):
            raise SystemExit(cluster.report())
        busy, quiet = times_of(steps_of(cluster["coordinator"].stderr), args.every)
        if min(len(busy), len(quiet)) < LEAST:
            raise SystemExit("%d steps with a checkpoint under way and %d without are too few: "
                             "change --steps or --every" % (len(busy), len(quiet)))
        size = sum(file.stat().st_size for file in os.scandir(cluster.result["checkpoint"]))
        took = re.findall(r"^checkpoint .*\((?:([\d.]+) s|([\d.]+) ms)\)$",
                          cluster["coordinator"].stdout, re.M)
        print("%d checkpoints of %.1f MiB, median %.2f s from the cut to the commit" % (
            len(took), size / 2**20,
            statistics.median(float(s) if s else float(ms) / 1000 for s, ms in took)))
        for what, times in [("with a checkpoint under way", busy), ("without", quiet)]:
            deciles = statistics.quantiles(times, n=10)
            print("a step %s: median %.0f ms of %d (deciles %.0f to %.0f)" % (
                what, 1000 * statistics.median(times), len(times), 1000 * deciles[0],
                1000 * deciles[-1]))
        print("ratio of the medians: %.3f" % (statistics.median(busy) / statistics.median(quiet)))
    finally:
        cluster.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
