"""Compares the sampled softmax's loss and gradients with PyTorch's autograd in float64.

Runs sampled_softmax_dump (argument 1): tokens without a target, targets that are candidates (whose
candidates count no second time) and that aren't, words that several tokens have.
"""

import os
import subprocess
import sys
import tempfile

import torch

from torch_comparison import Comparison, Dump, sampled_softmax_loss


def check_cases(targets, candidates):
    """That every case is there."""
    counted = targets[targets >= 0]
    hits = (counted[:, None] == candidates[None, :]).any(1)
    assert len(counted) < len(targets) and 0 < hits.sum() < len(hits), (targets, candidates)
    assert len(counted.unique()) < len(counted)
    missed = set(candidates.tolist()) - set(counted.tolist())
    assert missed, "every candidate is a target"


def compare_replica(dump, r, comparison):
    table = dump.get("table").requires_grad_()
    w, b = table[:, :-1], table[:, -1]
    candidates = dump.get("candidates")
    targets = []
    for wave in range(len(dump.json["loss"][r])):
        x = dump.get(f"x/{r}/{wave}").requires_grad_()
        targets.append(dump.get(f"target/{r}/{wave}"))
        loss = sampled_softmax_loss(x, targets[-1], w, b, candidates, dump.json["draws"])
        (loss * dump.json["scale"]).backward(retain_graph=True)
        comparison.check(f"loss {r} {wave}", torch.tensor(dump.json["loss"][r][wave]).double(),
                         loss.detach())
        comparison.check(f"dx {r} {wave}", dump.get(f"dx/{r}/{wave}"), x.grad)
    targets = torch.cat(targets)
    check_cases(targets, candidates)

    rows = dump.get(f"row/{r}")
    named = torch.cat([targets[targets >= 0], candidates]).unique()
    assert rows.tolist() == named.tolist(), f"replica {r}: gradients of {rows}, not of {named}"
    gradient = dump.get(f"gradient/{r}")
    is_candidate = (rows[:, None] == candidates[None, :]).any(1)
    is_target = (rows[:, None] == targets[None, :]).any(1)
    for kind, chosen in (("candidates alone", is_candidate & ~is_target),
                         ("targets alone", is_target & ~is_candidate),
                         ("both", is_candidate & is_target)):
        expected = table.grad[rows[chosen]]
        comparison.check(f"w of {kind}, replica {r}", gradient[chosen, :-1], expected[:, :-1])
        comparison.check(f"b of {kind}, replica {r}", gradient[chosen, -1], expected[:, -1])


def main():
    torch.set_num_threads(1)
    comparison = Comparison()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
        subprocess.run([sys.argv[1], folder], check=True)
        dump = Dump(folder)
        for r in range(len(dump.json["loss"])):
            compare_replica(dump, r, comparison)
    print(f"{comparison.compared} comparisons, {comparison.failed} failed")
    sys.exit(1 if comparison.failed else 0)


if __name__ == "__main__":
    main()
