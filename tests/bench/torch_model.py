"""The LSTM-MoE-LSTM language model and its MoE layer in PyTorch.

The same layers, sizes, batch, k and precision as the job that is compared with it; experts as a loop over
rows that are sorted by expert, the usual way.
"""
import torch
from torch import nn
from torch.nn import functional as F


class MoeLayer(nn.Module):
    def __init__(self, width, hidden, experts, k, w_importance, w_load):
        super().__init__()
        self.k = k
        self.weights = (w_importance, w_load)
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.noise = nn.Parameter(torch.zeros(width, experts))
        bound1, bound2 = (3 / width) ** 0.5, (3 / hidden) ** 0.5
        self.w1 = nn.ParameterList(
            nn.Parameter(torch.empty(width, hidden).uniform_(-bound1, bound1))
            for _ in range(experts))
        self.w2 = nn.ParameterList(
            nn.Parameter(torch.empty(hidden, width).uniform_(-bound2, bound2))
            for _ in range(experts))

    def forward(self, x):
        clean = x @ self.gate
        scale = F.softplus(x @ self.noise)
        noisy = clean + torch.randn_like(clean) * scale
        experts = clean.shape[1]
        if self.k < experts:
            top, index = noisy.topk(self.k + 1, dim=1)
            gates = F.softmax(top[:, :self.k], dim=1)
            index = index[:, :self.k]
            inside = noisy > top[:, self.k:]
            threshold = torch.where(inside, top[:, self.k:], top[:, self.k - 1:self.k])
            load = torch.special.ndtr((clean - threshold) / scale).sum(0)
        else:
            top, index = noisy.topk(self.k, dim=1)
            gates, load = F.softmax(top, dim=1), None
        importance = torch.zeros_like(clean).scatter(1, index, gates).sum(0)
        loss = self.weights[0] * cv_squared(importance)
        if load is not None:
            loss = loss + self.weights[1] * cv_squared(load)
        # One sort brings the rows of each expert together; one index_add brings them back.
        order = index.reshape(-1).argsort()
        row = order // self.k
        rows = x.index_select(0, row).split(
            torch.bincount(index.reshape(-1), minlength=experts).tolist())
        out = torch.cat([torch.relu(part @ self.w1[e]) @ self.w2[e]
                         for e, part in enumerate(rows) if part.shape[0]])
        y = torch.zeros_like(x).index_add(0, row, out * gates.reshape(-1)[order].unsqueeze(1))
        return y, loss


def cv_squared(v):
    return v.var(unbiased=False) / v.mean() ** 2


class Model(nn.Module):
    def __init__(self, width, hidden, experts, k, vocabulary, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm1 = nn.LSTM(width, width)
        self.moe = MoeLayer(width, hidden, experts, k, 0.1, 0.1)
        self.lstm2 = nn.LSTM(width, width)
        self.softmax = nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words, targets, states):
        x = self.dropout(self.embedding(words))
        y, state1 = self.lstm1(x, states[0])
        x = self.dropout(y) + x
        flat = x.reshape(-1, x.shape[-1])
        y, balance = self.moe(flat)
        flat = self.dropout(torch.sigmoid(y)) + flat
        x = flat.view_as(x)
        y, state2 = self.lstm2(x, states[1])
        x = self.dropout(y) + x
        loss = F.cross_entropy(self.softmax(x.reshape(-1, x.shape[-1])), targets.reshape(-1))
        detach = lambda state: tuple(s.detach() for s in state)
        return loss + balance, (detach(state1), detach(state2))
