#!/usr/bin/python3
"""What the suite's rows are compared with, in PyTorch (programs.py has the conversation).

A line is "MEASUREMENT key=value ...": threads is torch's number of threads; its BLAS has all cores.
"""
import json
import sys
import time

import torch
from torch.nn import functional as F

from torch_model import Model, MoeLayer

LANES, UNROLL = 64, 32
WORDS = LANES * UNROLL
SECONDS = 0.3  # of a measurement, at least


class SampledSoftmax:
    """2,048 words of width 512, from the table's rows to the gradients of those rows and of the input."""

    def __init__(self, vocabulary=50_000, samples=1024, width=512):
        self.table = torch.nn.Embedding(vocabulary, width, sparse=True)
        self.bias = torch.nn.Embedding(vocabulary, 1, sparse=True)
        self.x = torch.randn(WORDS, width, requires_grad=True)
        self.candidates = torch.arange(samples) * vocabulary // samples
        # Words' frequencies are nearly log-uniform.
        self.targets = (torch.rand(WORDS) * torch.log(torch.tensor(vocabulary + 1.0))).exp().long() - 1
        self.hits = self.targets.unsqueeze(1) == self.candidates
        self.place = torch.full((WORDS,), samples)

    def step(self):
        for tensor in (self.x, self.table.weight, self.bias.weight):
            tensor.grad = None
        logits = torch.addmm(self.bias(self.candidates).t(), self.x, self.table(self.candidates).t())
        logits = logits.masked_fill(self.hits, float("-inf"))
        target = (self.x * self.table(self.targets)).sum(1, keepdim=True) + self.bias(self.targets)
        F.cross_entropy(torch.cat([logits, target], 1), self.place).backward()


class Layer:
    """The MoE layer alone: forward, backward down to its input, and Adam."""

    def __init__(self, width, hidden, experts, k):
        self.layer = MoeLayer(width, hidden, experts, k, 0.1, 0.1)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=1e-3)
        self.x = torch.randn(WORDS, width, requires_grad=True)
        self.dy = torch.randn(WORDS, width) / WORDS

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None
        y, balance = self.layer(self.x)
        ((y * self.dy).sum() + balance).backward()
        self.optimizer.step()


class Step:
    """A training step of the whole language model."""

    def __init__(self, width, hidden, experts, k, vocabulary):
        self.model = Model(width, hidden, experts, k, vocabulary, dropout=0.1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.vocabulary = vocabulary
        self.states = (None, None)

    def step(self):
        words, targets = (torch.randint(self.vocabulary, (UNROLL, LANES)) for _ in range(2))
        self.optimizer.zero_grad(set_to_none=True)
        loss, self.states = self.model(words, targets, self.states)
        loss.backward()
        self.optimizer.step()


def measure(step):
    """Words a second, after one step for warm-up."""
    step()
    steps, start = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - start < SECONDS:
        step()
        steps += 1
    return WORDS * steps / (time.perf_counter() - start)


MEASUREMENTS = {"layer": Layer, "step": Step, "sampled_softmax": SampledSoftmax}


def main():
    torch.manual_seed(1)
    name, made = None, None
    for line in sys.stdin:
        measurement, *settings = line.split()
        settings = {key: int(value) for key, value in (pair.split("=") for pair in settings)}
        torch.set_num_threads(settings.pop("threads"))
        if name != (measurement, settings):
            made = None
            name, made = (measurement, settings), MEASUREMENTS[measurement](**settings)
        print(json.dumps({"words/s": measure(made.step)}), flush=True)


if __name__ == "__main__":
    main()
