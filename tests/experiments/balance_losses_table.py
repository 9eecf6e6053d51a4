"""The table of balance_losses.sh, of the runs that are finished.

Usage: balance_losses_table.py OUT RESULTS
"""
import os
import re
import statistics
import sys

from results import markdown_table, read_result, write_csv

# Of the training batches at the end of a run that the progress shows, a line a second.
TRAINING_LINES = 60

RUN = re.compile(r"importance-([\d.]+)-load-([\d.]+)-seed-(\d+)")
PROGRESS = re.compile(r"^step .*CV\(imp\) ([\d.]+) CV\(load\) ([\d.]+) max/mean ([\d.]+)", re.MULTILINE)
BALANCE = ["cv_importance", "cv_load", "max_over_mean_load"]
COLUMNS = (["w_importance", "w_load", "seed", "test_perplexity", "validation_perplexity"]
           + ["training_" + name for name in BALANCE] + BALANCE
           + ["step", "words_per_second", "seconds", "digest"])

# Table 6 of the paper: MoE-256 on the One Billion Word Benchmark.
PAPER = {("0", "0"): (39.8, 3.04, 3.01, 17.80), ("0.2", "0"): (35.6, 0.06, 0.17, 1.47),
         ("0", "0.2"): (35.7, 0.22, 0.04, 1.15), ("0.1", "0.1"): (35.6, 0.06, 0.05, 1.14),
         ("0.01", "0.01"): (35.7, 0.48, 0.11, 1.37), ("1", "1"): (35.7, 0.03, 0.02, 1.07)}


def training_balance(folder):
    with open(os.path.join(folder, "logs", "progress.log"), encoding="utf-8") as file:
        lines = PROGRESS.findall(file.read())[-TRAINING_LINES:]
    return {"training_" + name: statistics.mean(float(line[i]) for line in lines)
            for i, name in enumerate(BALANCE)}


def read_runs(out):
    rows = []
    for name in os.listdir(out):
        match = RUN.fullmatch(name)
        result = read_result(os.path.join(out, name)) if match else None
        if result is None:
            continue
        row = dict(zip(("w_importance", "w_load", "seed"), match.groups()))
        row.update(result)
        row.update(training_balance(os.path.join(out, name)))
        rows.append(row)
    settings = list(PAPER)
    rows.sort(key=lambda row: (settings.index((row["w_importance"], row["w_load"])), int(row["seed"])))
    return rows


def table(rows):
    lines = []
    for setting, paper in PAPER.items():
        runs = [row for row in rows if (row["w_importance"], row["w_load"]) == setting]
        if not runs:
            continue

        def mean(column, runs=runs):
            return f"{statistics.mean(run[column] for run in runs):.2f}"

        lines.append([*setting, mean("test_perplexity"),
                      *(mean("training_" + name) for name in BALANCE),
                      *(mean(name) for name in BALANCE), " / ".join(map(str, paper))])
    return markdown_table(
        ["w_importance", "w_load", "test perplexity", "CV(Importance)", "CV(Load)",
         "max/mean load", "CV(Importance), test", "CV(Load), test", "max/mean load, test",
         "the paper's row"], lines)


def main():
    out, results = sys.argv[1:]
    rows = read_runs(out)
    write_csv(os.path.join(results, "balance_losses.csv"), COLUMNS, rows)
    seeds = sorted({int(row["seed"]) for row in rows})
    with open(os.path.join(results, "balance_losses.md"), "w", encoding="utf-8") as file:
        file.write(
            "# Balancing losses\n\n"
            "Table 6 of Shazeer et al. 2017 in small: `deploy/configs/kjv-moe.textproto` with 64 "
            "experts, 4 of them for each word,\non the King James Bible, with six settings of the "
            "losses' weights. Made by\n\n```\ntests/experiments/balance_losses.sh\n```\n\n"
            f"Means over seeds: {', '.join(map(str, seeds))}. Balance first over the last training "
            f"batches (those of the last\n{TRAINING_LINES} progress lines), with noise, as in the "
            "paper; then over the test text, without. The paper's row: test\nperplexity, "
            "CV(Importance), CV(Load), max/mean load of MoE-256 on the One Billion Word Benchmark.\n\n"
            + table(rows))


if __name__ == "__main__":
    main()
