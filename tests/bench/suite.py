#!/usr/bin/python3
"""Measures what Switchyard promises of speed, each against its rival or the machine's limit, in one run.

One table: name, ours, against, ratio, target; ratios of medians over rounds in which ours and the others
take turns, all of them rates, so that a ratio above the target meets it.
"""
import argparse
import sys
import time

from ceilings import KEPT, AllCeilings, Ceilings
from programs import MeasurementError, Programs
from rows import kernel_rows, training_rows
import table
from training import Folder


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="tests/bench/run.sh", description=__doc__.split("\n", 1)[0],
        epilog="The machine's ceilings are measured again in the rounds of every row that compares with "
        "them; their medians over the whole run are the table's first lines.")
    parser.add_argument("--csv", metavar="FILE", help="also write the table to this file")
    parser.add_argument("--only", metavar="NAME", action="append",
                        help="measure this row alone; may be given several times")
    parser.add_argument("--list", action="store_true", help="the rows' names and titles, no more")
    parser.add_argument("--rounds", type=int, help="of every row; by default each has its own number")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bin", default="bazel-bin", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return parser, args


def choose(rows, only):
    """Those that --only names. ValueError if it names another."""
    if only is None:
        return rows
    names = [row.name for row in rows]
    for name in only:
        if name not in names:
            raise ValueError(f"--only {name}: there is no such row; there are: {', '.join(names)}")
    return [row for row in rows if row.name in only]


class Progress:
    """Where the run is, and how long it will take at the speed so far, on stderr."""

    def __init__(self, rows, out=sys.stderr, clock=time.monotonic):
        self.expected = {row.name: row.seconds * row.rounds for row in rows}
        self.order = [row.name for row in rows]
        self.out = out
        self.clock = clock
        self.began = clock()

    def remaining(self, name, share):
        """Seconds; share: of the row that is done."""
        at = self.order.index(name)
        done = sum(self.expected[n] for n in self.order[:at]) + share * self.expected[name]
        left = sum(self.expected.values()) - done
        slower = (self.clock() - self.began) / done if done > 0 else 1
        return left * slower

    def show(self, row, turn, side):
        at = self.order.index(row.name) + 1
        left = self.remaining(row.name, turn / row.rounds)
        print(f"[{at}/{len(self.order)}] {row.name}, round {turn + 1}/{row.rounds}: {side}"
              f"   ETA {int(left) // 60} min {int(left) % 60:02} s", file=self.out, flush=True)


def run(rows, ceilings, programs):
    """The table's lines."""
    lines = []
    progress = Progress(rows)
    for row in rows:
        line = row.measure(lambda turn, side, row=row: progress.show(row, turn, side))
        if line is not None:
            lines.append(line)
            print(f"    {line.name}: {table.fixed(line.ratio)}", file=sys.stderr)
        programs.close(keep=KEPT)
    return [table.Line(title, value) for title, value in ceilings.lines()] + lines


def main():
    parser, args = parse()
    with Programs(args.bin) as programs, Folder(args.bin) as folder:
        ceilings = Ceilings(programs)
        rows = [AllCeilings(ceilings), *kernel_rows(programs, ceilings),
                *training_rows(programs, folder)]
        try:
            rows = choose(rows, args.only)
        except ValueError as error:
            parser.error(str(error))
        if args.rounds is not None:
            for row in rows:
                row.rounds = args.rounds
        if args.list:
            for row in rows:
                print(f"{row.name:16}  {row.title}")
        if args.list or args.check:
            return
        try:
            lines = run(rows, ceilings, programs)
        except MeasurementError as error:
            sys.exit(f"tests/bench/run.sh: {error}")
    print(table.text(lines), end="")
    if args.csv:
        table.write_csv(args.csv, lines)


if __name__ == "__main__":
    main()
