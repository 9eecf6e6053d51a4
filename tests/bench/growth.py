#!/usr/bin/python3
"""How speed and memory grow with experts, replicas, servers and the width of rows: a CSV file and a plot.

Coordinator, servers and one worker are processes of this machine; each point is the median of its steps,
and memory is the most that was resident. Only the shape of a curve means something: the servers share
the machine's cores. Build first: bazel build //tests/bench:suite.
"""
import argparse
import csv
import dataclasses
import statistics
import sys
from typing import Callable, List

from programs import MeasurementError
from rows import all_cores
from training import FACTORED, Folder, Training, layer_job, model_job, moe

COLUMNS = ["curve", "value", "words_per_step", "words_per_second", "server_bytes", "worker_bytes"]
VOCABULARY = 256


@dataclasses.dataclass
class Point:
    job: str
    words: int
    servers: int = 1


@dataclasses.dataclass
class Curve:
    name: str
    label: str  # of the axis
    values: List[int]
    point: Callable[[int], Point]


def experts_at_equal_batch(n):
    return Point(layer_job(256, moe(n, 4, 512), experts_optimizer=FACTORED), 64 * 32)


def experts_at_equal_rows(n):
    """4 n pairs of word and expert for each 32 rows of n experts: 8 n words."""
    lanes = max(1, 8 * n // 32)
    return Point(layer_job(256, moe(n, 4, 512), lanes=lanes, experts_optimizer=FACTORED), lanes * 32)


def replicas(n):
    return Point(model_job(256, moe(32, 4, 512, sigmoid=True), replicas=n), 64 * 32)


def servers(n):
    return Point(model_job(256, moe(32, 4, 512, groups=8, sigmoid=True)), 64 * 32, servers=n)


def width(d):
    return Point(layer_job(d, moe(32, 4, 2 * d)), 64 * 32)


CURVES = [
    Curve("experts, 2,048 words a step", "experts", [4, 16, 64, 256, 1024, 4096],
          experts_at_equal_batch),
    Curve("experts, 32 rows each", "experts", [4, 16, 64, 256, 1024, 4096], experts_at_equal_rows),
    Curve("replicas", "replicas of 64 lanes together", [1, 2, 4, 8, 16], replicas),
    Curve("servers", "servers", [1, 2, 4, 8], servers),
    Curve("row width", "numbers in a row, d (h = 2 d)", [64, 128, 256, 512, 1024], width),
]


def measure(folder, point, steps):
    training = Training(folder, point.job, point.words, VOCABULARY, all_cores(), point.servers)
    try:
        # A step of a few words is short: enough of them for the clock.
        at_once = max(1, 1024 // point.words)
        speed = statistics.median(training.step(at_once) for _ in range(steps))
        return (speed, *training.memory())
    finally:
        training.close()


def plot(path, rows):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = [curve for curve in CURVES if any(row["curve"] == curve.name for row in rows)]
    figure, panels = pyplot.subplots(len(curves), 2, figsize=(9, 2.8 * len(curves)), squeeze=False)
    for curve, (speed, memory) in zip(curves, panels):
        of_curve = [row for row in rows if row["curve"] == curve.name]
        values = [row["value"] for row in of_curve]
        speed.plot(values, [row["words_per_second"] for row in of_curve], "o-", color="black")
        speed.set_ylabel("words/s")
        speed.set_ylim(bottom=0)
        for style, who in (("o-", "server"), ("s--", "worker")):
            memory.plot(values, [row[who + "_bytes"] / 2**20 for row in of_curve], style, color="gray",
                        label="all servers" if who == "server" else "worker")
        memory.set_ylabel("MiB")
        if max(values) >= 1000 * min(values):
            memory.set_yscale("log")
        else:
            memory.set_ylim(bottom=0)
        memory.legend(fontsize=8)
        for axes in (speed, memory):
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [f"{value:,.0f}" for value in values])
            axes.minorticks_off()
            axes.set_xlabel(curve.label)
            axes.set_title(curve.name, fontsize=9)
    figure.tight_layout()
    # Without a date, so that equal results give equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [{name: value if name == "curve" else float(value) for name, value in row.items()}
                for row in csv.DictReader(file)]


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: value if name == "curve" else f"{value:.6g}"
                             for name, value in row.items()})


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/growth.py",
                                     description=__doc__.split("\n", 1)[0])
    parser.add_argument("--csv", default="docs/results/growth.csv", metavar="FILE")
    parser.add_argument("--png", default="docs/results/growth.png", metavar="FILE")
    parser.add_argument("--plot", action="store_true", help="no measurements: draw what the CSV file has")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each point")
    parser.add_argument("--most", type=int, metavar="N",
                        help="leave out points with more experts, replicas, servers or width")
    parser.add_argument("--bin", default="bazel-bin", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plot:
        plot(args.png, read_csv(args.csv))
        return
    rows = []
    with Folder(args.bin) as folder:
        for curve in CURVES:
            for value in curve.values:
                if args.most is not None and value > args.most:
                    continue
                point = curve.point(value)
                try:
                    measured = measure(folder, point, args.steps)
                except MeasurementError as error:
                    sys.exit(f"tests/bench/growth.py: {curve.name} {value}: {error}")
                rows.append(dict(zip(COLUMNS, (curve.name, value, point.words, *measured))))
                print(f"{curve.name}, {value:,}: {measured[0]:,.0f} words/s, servers "
                      f"{measured[1] / 2**20:,.0f} MiB, worker {measured[2] / 2**20:,.0f} MiB",
                      file=sys.stderr, flush=True)
    write_csv(args.csv, rows)
    plot(args.png, rows)


if __name__ == "__main__":
    main()
