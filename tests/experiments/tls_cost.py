#!/usr/bin/python3
"""What TLS costs a step: the default job with TLS and in plaintext, by turns.

  tests/experiments/tls_cost.py DATA [--rounds N] [--steps N]

DATA is a folder of prepare_text. Trains deploy/configs/kjv-moe.textproto on two servers and two workers for
some steps (default 40), N times each way (default 5), and prints of each run the words/s and the seconds
of processor time, and the ratios of the medians. The latter hardly depend on what else the machine does.
Needs the programs below bazel-bin.
"""
import argparse
import os
import re
import resource
import shutil
import statistics
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.faults import cluster as c


def processor_seconds():
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder, data, job, certificates):
    """Words/s, and seconds of processor time."""
    before = processor_seconds()
    run = c.Cluster(folder, data, job)
    flags = lambda name: c.tls_flags(certificates, name) if certificates else []
    try:
        run.start(servers=2, workers=2, flags=flags("coordinator"), server_flags=flags("server"),
                  worker_flags=flags("worker"))
        run.wait_all(600)
        if run["coordinator"].status != 0:
            raise SystemExit(run.report())
        return run.result["words_per_second"], processor_seconds() - before
    finally:
        run.close()


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    data = os.path.abspath(args.data)
    with open(os.path.join(ROOT, "deploy/configs/kjv-moe.textproto"), encoding="utf-8") as file:
        job = file.read()
    job, changed = re.subn(r"epochs: \d+|(?<!_)steps: \d+", "steps: %d" % args.steps, job)
    assert changed == 1, "the job says how long it is in another way"
    folder = tempfile.mkdtemp(prefix="tls-")
    c.MAKE_CERTIFICATES = os.path.join(ROOT, c.MAKE_CERTIFICATES)
    certificates = c.make_certificates(os.path.join(folder, "certificates"))
    os.chdir(os.path.join(ROOT, "bazel-bin"))
    runs = {"TLS": [], "plaintext": []}
    try:
        for n in range(args.rounds):
            for way, files in (("TLS", certificates), ("plaintext", None)):
                runs[way].append(
                    measure(os.path.join(folder, "%s-%d" % (way, n)), data, job, files))
    finally:
        shutil.rmtree(folder)
    for i, (unit, inverse) in enumerate((("words/s", True), ("s of processor time", False))):
        medians = {}
        for way in runs:
            measured = [run[i] for run in runs[way]]
            medians[way] = statistics.median(measured)
            print("%s: median %.1f %s (%s)" % (way, medians[way], unit, ", ".join(
                "%.1f" % value for value in measured)))
        ratio = medians["TLS"] / medians["plaintext"]
        print("TLS to plaintext, %s: %.3f" % ("time of a step" if inverse else unit,
                                             1 / ratio if inverse else ratio))


if __name__ == "__main__":
    main()
