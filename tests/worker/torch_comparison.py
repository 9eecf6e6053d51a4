"""What the comparisons with PyTorch have in common: reading a dump (dump.h), and comparing in
float64."""

import json
import math
import os

import numpy
import torch

TOLERANCE = 1e-4  # of a tensor's largest element


class Dump:
    def __init__(self, folder):
        with open(os.path.join(folder, "dump.json")) as file:
            self.json = json.load(file)
        with open(os.path.join(folder, "dump.bin"), "rb") as file:
            self.bytes = file.read()

    def get(self, name):
        entry = self.json["tensors"][name]
        dtype = {"f32": "<f4", "i32": "<i4"}[entry["type"]]
        count = int(numpy.prod(entry["shape"]))
        array = numpy.frombuffer(self.bytes, dtype, count, entry["offset"])
        tensor = torch.from_numpy(array.reshape(entry["shape"]).copy())
        return tensor.double() if entry["type"] == "f32" else tensor.long()

    def names(self, kind):
        return [name[len(kind) + 1:] for name in self.json["tensors"]
                if name.startswith(kind + "/")]


class Comparison:
    def __init__(self):
        self.compared = 0
        self.failed = 0

    def check(self, name, actual, expected):
        self.compared += 1
        difference = (actual - expected).abs().max().item()
        if not difference <= TOLERANCE * expected.abs().max().item() + 1e-9:
            self.failed += 1
            print(f"{name}: differs by {difference:g}; largest {expected.abs().max():g}")


def sampled_softmax_loss(x, target, w, b, candidates, draws):
    """Jozefowicz et al. 2016, section 3: cross entropy among candidates and target, every logit less
    the logarithm of the probability that the draws from P(w) = ln((w + 2) / (w + 1)) / ln(V + 1) have
    the word; a candidate that is the target counts once; target -1 not at all."""
    words = torch.arange(len(w), dtype=torch.float64)
    p = torch.log((words + 2) / (words + 1)) / math.log(len(w) + 1)
    corrected = b - torch.log(1 - (1 - p) ** draws)
    x, target = x[target >= 0], target[target >= 0]
    of_target = (x * w[target]).sum(1) + corrected[target]
    of_candidates = x @ w[candidates].T + corrected[candidates]
    hits = candidates[None, :] == target[:, None]
    of_candidates = of_candidates.masked_fill(hits, -torch.inf)
    every = torch.cat([of_target[:, None], of_candidates], 1)
    return (torch.logsumexp(every, 1) - of_target).sum()
