#!/usr/bin/python3
"""The table of tests/experiments/kjv.sh, from the result.json of its runs."""
import os
import statistics
import sys

from results import read_result, write_csv

COLUMNS = ["run", "test_perplexity", "validation_perplexity", "cv_importance", "cv_load",
           "max_over_mean_load", "words_per_second", "seconds", "digest"]


def main():
    out = sys.argv[1]
    runs = [f"{model}-{seed}" for model in ("moe", "dense") for seed in (1, 2, 3)]
    rows = [{"run": run, **read_result(os.path.join(out, run))}
            for run in runs + ["moe-1-no-losses"]]
    write_csv(os.path.join(out, "kjv.csv"), COLUMNS, rows)
    print(f"{'run':18} {'test ppl':>8} {'CV(imp)':>8} {'CV(load)':>8} {'max/mean':>8}")
    for row in rows:
        print(f"{row['run']:18} {row['test_perplexity']:8.2f} {row['cv_importance']:8.3f} "
              f"{row['cv_load']:8.3f} {row['max_over_mean_load']:8.2f}")
    for model in ("moe", "dense"):
        values = [r["test_perplexity"] for r in rows[:6] if r["run"].startswith(model)]
        print(f"{model}: mean test perplexity {statistics.mean(values):.2f}, "
              f"standard deviation {statistics.stdev(values):.2f}, over {len(values)} seeds")


if __name__ == "__main__":
    main()
