#!/usr/bin/python3
"""Random faults on a job of hundreds of steps, again and again; every run must end with the digest of the
one that nothing disturbed.

  tests/faults/soak.py [--minutes N] [--seed N] [--coordinator_away N] [--results FILE]

Each round is a run of the same job on servers behind proxies, disturbed every few seconds by what
Round.FAULTS lists, in an order that follows from the seed and the round's number. Processes that fail are started
again, as a supervisor would; the coordinator after up to --coordinator_away seconds. The first difference or
hang ends it with the round's seed, its schedule and what every process said; else it prints how often each
fault happened. --results: write that to this file, too, as Markdown. Needs the programs below bazel-bin.
"""

import argparse
import collections
import os
import shutil
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.faults import cluster as c
from tests.faults.soak_round import JOB, Round


def undisturbed(folder, data):
    cluster = c.Cluster(folder, data, JOB)
    try:
        cluster.start(servers=1, workers=1)
        cluster.wait_all(c.PATIENCE)
        result = cluster.result
        assert result["phase"] == "FINISHED", cluster.report()
        return result
    finally:
        cluster.close()


def soak(root, data, seconds, seed, away=1.5):
    """(rounds, counts of faults, recoveries). Raises on the first difference."""
    expected = undisturbed(os.path.join(root, "undisturbed"), data)
    counts = collections.Counter()
    recoveries = 0
    begin = time.monotonic()
    rounds = 0
    while rounds == 0 or time.monotonic() - begin < seconds:
        folder = os.path.join(root, "round%d" % rounds)
        one = Round(folder, data, seed, rounds, counts, away)
        try:
            result = one.run()
            for key in ("digest", "test_perplexity"):
                assert result[key] == expected[key], (key, result[key], expected[key], one.report())
            recoveries += one.recoveries()
            print("round %d: %.0f s, %d faults, %d recoveries, digest equal" %
                  (rounds, time.monotonic() - one.begin, len(one.schedule), one.recoveries()),
                  flush=True)
        except BaseException:
            print("seed %d, round %d" % (seed, rounds), file=sys.stderr)
            raise
        finally:
            one.close()
        shutil.rmtree(folder)
        rounds += 1
    for name, _, _ in Round.FAULTS:
        print("%5d  %s" % (counts[name], name))
    return rounds, counts, recoveries


def write_results(path, minutes, seed, rounds, counts, recoveries):
    lines = [
        "# Random faults", "",
        "`tests/faults/soak.py --minutes %g --seed %d`: %d runs of a job of 600 steps, on 1 to 3 servers and 1 to 4"
        % (minutes, seed, rounds),
        "workers as they were scaled, disturbed every 2.5 s on average; %d times the job went back to a" % recoveries,
        "checkpoint. Every run ended with the digest and the test perplexity of the undisturbed one.", "",
        "| fault | how often |", "|---|---|"]
    lines += ["| %s | %d |" % (name, counts[name]) for name, _, _ in Round.FAULTS]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coordinator_away", type=float, default=1.5)
    parser.add_argument("--results")
    args = parser.parse_args()
    results = args.results and os.path.abspath(args.results)
    os.chdir(os.path.join(ROOT, "bazel-bin"))
    root = tempfile.mkdtemp(prefix="soak-")
    try:
        data = c.prepare_text(os.path.join(root, "text"))
        rounds, counts, recoveries = soak(root, data, 60 * args.minutes, args.seed,
                                          args.coordinator_away)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if results:
        write_results(results, args.minutes, args.seed, rounds, counts, recoveries)


if __name__ == "__main__":
    main()
