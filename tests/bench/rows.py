"""The rows of the table: what is ours, what it is compared with, and how much is wanted.

A row is measured in rounds, every side once in each, so that a change of the machine's speed meets all
of them; the table has medians. All figures are rates: more is better.
"""
import dataclasses
import os
import statistics
from typing import Callable, Dict, Optional

from allocations import Counted
from table import Line
from training import FACTORED, Training, layer_job, model_job, moe


@dataclasses.dataclass
class Row:
    name: str  # of --only
    title: str
    target: Optional[float]
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


def all_cores():
    return len(os.sched_getaffinity(0))


def torch_sides(programs, measurement, **sizes):
    """PyTorch at both of its good settings: torch with all cores, and one thread of torch's with all
    cores for its BLAS. In words a second."""
    arguments = "".join(f" {name}={value}" for name, value in sizes.items())
    return {f"PyTorch, {threads} thread{'s' if threads > 1 else ''}":
            lambda threads=threads: programs.torch().ask(
                f"{measurement} threads={threads}{arguments}")["words/s"]
            for threads in (all_cores(), 1)}


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
        Row("messages",
            "1 MiB messages of rows, client and server, four in flight; raw TCP, GB/s each way", 0.75,
            {"ours": bench("messages_bench", "Rows", "GB/s"), "tcp": ceiling("tcp")}, best_other,
            seconds=1.5),
        Row("sampled-softmax", "sampled softmax, V = 50,000, 1,024 samples; PyTorch, words/s", 1.5,
            {"ours": lambda: 1e9 * per_second("sampled_softmax_bench", "SampledSoftmax50000",
                                              "words")(),
             **torch_sides(programs, "sampled_softmax")}, best_other, seconds=2),
    ]
    return rows


# Words of layers alone, so few that the softmax costs next to nothing; and of whole models.
FEW, SOME = 16, 256


def training_rows(programs, folder):
    def ours(name, job, words=64 * 32, vocabulary=FEW, servers=0, steps=1):
        def measure():
            training = programs.training(name, lambda: Training(
                folder, job, words, vocabulary, all_cores(), servers))
            return training.step(steps)
        return measure

    def step_job(experts):
        return model_job(512, moe(experts, 4, 1024, sigmoid=True))

    def allocations(member):
        """Of a step in the steady state: those of 4 KiB or more, and all."""
        counted = Counted(folder.binaries, folder.folder.name)

        def per_step():
            training = programs.training("counted", lambda: Training(
                folder, step_job(32), 64 * 32, SOME, all_cores(), servers=1, preload=counted))
            training.step()
            before = counted.read(member)
            training.step(2)
            return [(now - then) / 2 for now, then in zip(counted.read(member), before)]
        return {"ours": lambda: per_step()[1], "all": lambda: per_step()[0]}

    rows = []
    for experts, target, seconds in ((4, 1.05, 3), (32, 1.25, 3.5), (256, 2.3, 7)):
        rows.append(Row(
            f"step-{experts}", f"whole step, separate processes, {experts} experts; PyTorch, words/s",
            target,
            {"ours": ours("step", step_job(experts), vocabulary=SOME, servers=1),
             **torch_sides(programs, "step", width=512, hidden=1024, experts=experts, k=4,
                           vocabulary=SOME)}, best_other, seconds))
    for experts, width, hidden, target, seconds in ((4, 512, 1024, 1.1, 1.5), (32, 512, 1024, 1.2, 2),
                                                    (256, 512, 1024, 2.7, 5), (1024, 256, 512, 5, 6)):
        rows.append(Row(
            f"layer-{experts}",
            f"MoE layer, one process, d = {width}, h = {hidden}, {experts:,} experts; PyTorch, words/s",
            target,
            {"ours": ours("layer", layer_job(width, moe(experts, 4, hidden))),
             **torch_sides(programs, "layer", width=width, hidden=hidden, experts=experts, k=4)},
            best_other, seconds))
    rows += [
        Row("processes", "whole step, separate processes, 32 experts; in one process, words/s", 0.92,
            {"ours": ours("processes", step_job(32), vocabulary=SOME, servers=1),
             "one process": ours("alone", step_job(32), vocabulary=SOME)}, best_other, seconds=1.5),
        # 4 of 256 experts for each of so many words that each expert has 128, against one four times as
        # wide for all.
        Row("wide", "whole step, MoE-256, 128 rows an expert; MoE-1-Wide, words/s", 0.9,
            {"ours": ours("moe", model_job(512, moe(256, 4, 1024, sigmoid=True), lanes=256),
                          words=256 * 32, vocabulary=SOME),
             "MoE-1-Wide": ours("wide", model_job(512, moe(1, 1, 4096, sigmoid=True), lanes=256),
                                words=256 * 32, vocabulary=SOME)}, best_other, seconds=6),
        # 4 experts a token and 32 rows an expert on both sides. Factored Adam, as a model of that size
        # would have.
        Row("hierarchical", "MoE layer, hierarchical 64 x 64, 32 rows an expert; flat 4, words/s", 0.9,
            {"ours": ours("hierarchical", layer_job(256, moe(4096, 2, 512, groups=64, k_primary=2),
                                                    lanes=1024, experts_optimizer=FACTORED),
                          words=1024 * 32),
             "flat": ours("flat", layer_job(256, moe(4, 4, 512), lanes=1, experts_optimizer=FACTORED),
                          words=32, steps=200)}, best_other, seconds=4),
        Row("king-james", "whole step, separate processes, d = 128, V = 8,000; PyTorch, words/s", None,
            {"ours": ours("king-james", model_job(128, moe(32, 4, 256, groups=4, sigmoid=True),
                                                  replicas=2, waves=2), vocabulary=8000, servers=1),
             **torch_sides(programs, "step", width=128, hidden=256, experts=32, k=4,
                           vocabulary=8000)}, best_other, seconds=3),
    ]
    for member, title in (("server-0", "the server"), ("worker", "the worker")):
        rows.append(Row(
            f"allocations-{title.split()[1]}",
            f"allocations of 4 KiB or more, {title}, each step of a whole model; all", 0,
            allocations(member), best_other, seconds=4, rounds=3, at_most=True))
    return rows
