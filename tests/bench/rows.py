"""The rows of the table: what is ours, what it is compared with, and how much is wanted.

A row is measured in rounds, every side once in each, so that a change of the machine's speed meets all
of them; the table has medians. All figures are rates: more is better.
"""
import dataclasses
import os
import statistics
from typing import Callable, Dict

from table import Line


@dataclasses.dataclass
class Row:
    name: str  # of --only
    title: str
    target: float
    # By name, in the order of a round; the first is ours. Each measures once.
    sides: Dict[str, Callable[[], float]]
    # From the medians of all sides to what ours is compared with.
    against: Callable[[Dict[str, float]], float]
    # About, of one round without others' work.
    seconds: float
    rounds: int = 5
    at_most: bool = False

    def measure(self, progress):
        """A Line. progress(round, side) is called before each measurement."""
        values = {side: [] for side in self.sides}
        for turn in range(self.rounds):
            for side, measure in self.sides.items():
                progress(turn, side)
                values[side].append(measure())
        medians = {side: statistics.median(of_side) for side, of_side in values.items()}
        ours = next(iter(medians.values()))
        return Line(self.title, ours, self.against(medians), self.target, self.at_most)


def best_other(medians):
    """The fastest of all sides but ours."""
    return max(list(medians.values())[1:])


def kernel_rows(programs, ceilings):
    def bench(program, benchmark, counter):
        return lambda: programs.bench(program).ask(benchmark)[counter]

    def per_second(program, benchmark, counter):
        def measure():
            answer = programs.bench(program).ask(benchmark)
            return answer[counter] / answer["seconds"] / 1e9
        return measure

    def ceiling(name):
        return lambda: ceilings.measure(name)

    def at_ceiling(name, title, target, program, benchmark, limit, counter, seconds):
        return Row(name, title, target,
                   {"ours": bench(program, benchmark, counter), limit: ceiling(limit)},
                   best_other, seconds)

    rows = []
    for count in (4, 8, 16):
        # Multiply-adds twice for each byte of weights.
        intensity = count / 2
        rows.append(Row(
            f"expert-{count}",
            f"expert forward, cold weights, {count} rows; max of arithmetic and reading, GFLOP/s",
            0.75,
            {"ours": per_second("expert_bench", f"ExpertForward/{count}", "flops"),
             "sgemm": ceiling("sgemm"), "read": ceiling("read")},
            lambda medians, intensity=intensity: min(medians["sgemm"], medians["read"] * intensity),
            seconds=2))
    rows += [
        Row("expert-step", "expert forward + backward + Adam, 128 rows; sgemm, GFLOP/s", 0.75,
            {"ours": per_second("expert_bench", "ExpertStep/128", "flops"),
             "sgemm": ceiling("sgemm")}, best_other, seconds=2),
        at_ceiling("adam", "Adam, 64 M parameters, 28 bytes each; triad, GB/s", 1.4,
                   "optimizer_bench", "Adam", "triad", "GB/s", 1.5),
        at_ceiling("factored-adam", "factored Adam, 64 M parameters, 12 bytes each; triad, GB/s", 1.0,
                   "optimizer_bench", "FactoredAdam", "triad", "GB/s", 1.5),
        at_ceiling("lstm", "LSTM 512, 64 x 32, forward + backward; sgemm, GFLOP/s", 0.75,
                   "lstm_bench", "Lstm512", "sgemm", "GFLOP/s", 1.5),
        at_ceiling("gating", "gating, 2,048 tokens, n = 4,096, load loss, without products; triad, GB/s",
                   0.5, "gating_bench", "GatingWithLoad", "triad", "GB/s", 1.5),
        Row("sampled-softmax", "sampled softmax, V = 50,000, 1,024 samples; PyTorch, words/s", 1.5,
            {"ours": lambda: 1e9 * per_second("sampled_softmax_bench", "SampledSoftmax50000",
                                              "words")(),
             **torch_sides(programs, "sampled_softmax")}, best_other, seconds=2),
    ]
    return rows


def torch_sides(programs, measurement):
    """PyTorch at both of its good settings: torch with all cores, and one thread of torch's with all
    cores for its BLAS. In words a second."""
    return {f"PyTorch, {threads} thread{'s' if threads > 1 else ''}":
            lambda threads=threads: programs.torch().ask(f"{measurement} threads={threads}")["words/s"]
            for threads in (all_cores(), 1)}


def all_cores():
    return len(os.sched_getaffinity(0))
