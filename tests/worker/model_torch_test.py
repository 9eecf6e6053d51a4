"""Compares one training step and one Adam update with PyTorch's autograd in float64.

Runs model_dump (argument 1) for every small job, rebuilds the model from the equations of the paper,
and compares the losses, every gradient and every updated parameter.
"""

import os
import re
import subprocess
import sys
import tempfile

import torch

from torch_comparison import Comparison, Dump, sampled_softmax_loss

JOBS = ["lstm_moe_lstm", "moe_moe", "all_experts", "dense", "deep", "strict", "softmax", "hierarchical",
        "hierarchical_extremes", "recurrent", "recomputed", "lstm", "projected", "tables"]


def cv_squared(v):
    return v.var(unbiased=False) / v.mean() ** 2


class Model:
    def __init__(self, dump):
        self.dump = dump
        self.job = dump.json["job"]
        self.p = {name: dump.get("parameter/" + name).requires_grad_()
                  for name in dump.names("parameter")}
        # By the name of a mixture, "layer1.moe"; so are all that follow.
        self.mixtures = {}
        self.importance = {}
        self.load = {}
        # L_batchwise / m (equation 20, in the logarithms of X and T), of the thresholds alone.
        self.batchwise = torch.zeros((), dtype=torch.float64)
        # Hierarchical layers.
        self.load_primary = {}
        self.rows_of_group = {}

    def losses(self):
        training = self.job["training"]
        losses = []
        for r in range(training["replicas"]):
            for w in range(training["waves"]):
                losses.append(self.micro_batch(r, w))
        balance = torch.zeros((), dtype=torch.float64)
        for name, importance in self.importance.items():
            moe = self.mixtures[name]
            balance = balance + moe["w_importance"] * cv_squared(importance)
            balance = balance + moe["w_load"] * cv_squared(self.load_of(name))
        tokens = training["replicas"] * training["lanes"] * training["unroll"]
        return sum(losses), balance, sum(losses) / tokens + balance + self.batchwise / tokens

    def micro_batch(self, r, w):
        shape = self.dump.get(f"input/{r}/{w}").shape  # time, lanes
        words = self.dump.get(f"input/{r}/{w}").reshape(-1)
        target = self.dump.get(f"target/{r}/{w}").reshape(-1)
        x = self.table("embedding", "")[words]
        x = self.dropout(x, self.job["model"]["embedding_dropout"], 0, r, w)
        for l, layer in enumerate(self.job["model"]["layers"]):
            if "lstm" in layer:
                y = self.lstm(x, l, r, w, shape)
            elif "moe" in layer:
                y = self.moe(x, layer["moe"], f"layer{l}.moe", r, w)
            else:
                y = self.recurrent_moe(x, layer["recurrent_moe"], l, r, w, shape)
            y = self.dropout(y, layer["dropout"], l + 1, r, w)
            x = x + y if layer["residual"] else y
        w, b = self.table("softmax", ".w"), self.table("softmax", ".b").reshape(-1)
        if "tables" in self.job["model"]:
            return sampled_softmax_loss(x, target, w, b, self.dump.get("candidates"),
                                        self.dump.json["draws"])
        return torch.nn.functional.cross_entropy(x @ w.T + b, target, reduction="sum")

    def table(self, name, part):
        """Of all words, whether the parameter is a table or dense."""
        if "tables" not in self.job["model"]:
            return self.p[name + part]
        shards = range(self.job["model"]["tables"]["shards"])
        return torch.cat([self.p[f"{name}.rows{i}{part}"] for i in shards])

    def dropout(self, x, rate, layer_id, r, w):
        kept = self.dump.get(f"uniform/{layer_id}/{r}/{w}") >= rate
        return torch.where(kept, x / (1 - rate), torch.zeros_like(x))

    def lstm(self, x, l, r, w, shape):
        wx, wh, b = (self.p[f"layer{l}.lstm.{name}"] for name in ("wx", "wh", "b"))
        wp = self.p.get(f"layer{l}.lstm.wp")
        c, output = self.dump.get(f"c/{r}/{w}/{l}"), self.dump.get(f"output/{r}/{w}/{l}")
        outputs = []
        for x_t in x.reshape(*shape, -1):
            c, output = self.cell(x_t @ wx + output @ wh + b, c)
            if wp is not None:
                output = output @ wp
            outputs.append(output)
        return torch.cat(outputs)

    @staticmethod
    def cell(z, c):
        i, f, g, o = z.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return c, torch.sigmoid(o) * torch.tanh(c)

    def recurrent_moe(self, x, layer, l, r, w, shape):
        name = f"layer{l}.recurrent_moe"
        from_x = self.moe(x, layer["input"], f"{name}.input", r, w)
        c, output = self.dump.get(f"c/{r}/{w}/{l}"), self.dump.get(f"output/{r}/{w}/{l}")
        outputs = []
        for t, from_x_t in enumerate(from_x.reshape(*shape, -1)):
            from_h = self.moe(output, layer["recurrent"], f"{name}.recurrent", r, w,
                              first=t * len(output))
            c, output = self.cell(from_x_t + from_h + self.p[f"{name}.b"], c)
            outputs.append(output)
        return torch.cat(outputs)

    def gate(self, x, name, r, w, k, first=0):
        """Gates and P(x, i) of noisy top-k, [T, n] each; x begins with that row of the micro-batch."""
        clean = x @ self.p[name + ".wg"]
        scale = torch.nn.functional.softplus(x @ self.p[name + ".wnoise"])
        noise = self.dump.get(f"noise/{name}/{r}/{w}")[first:first + len(x)]
        noisy = clean + noise * scale
        top = noisy.topk(k, dim=1).indices
        chosen = torch.zeros_like(noisy, dtype=torch.bool).scatter(1, top, True)
        gates = torch.softmax(noisy.masked_fill(~chosen, -torch.inf), dim=1)
        if k == noisy.shape[1]:
            return gates, chosen.double()
        # kth_excluding: the (k+1)-th of all for those within the top k, else the k-th.
        ordered = noisy.sort(dim=1, descending=True).values
        threshold = torch.where(chosen, ordered[:, k:k + 1], ordered[:, k - 1:k])
        return gates, torch.distributions.Normal(0, 1).cdf((clean - threshold) / scale)

    def strictly_balanced(self, x, moe, name):
        log_g = torch.log_softmax(x @ self.p[f"{name}.wg"], dim=1)
        m = moe["k"] * len(x) // moe["experts"]
        best = log_g.topk(m, dim=0).indices
        chosen = torch.zeros_like(log_g, dtype=torch.bool).scatter(0, best, True)
        g = log_g.exp() * chosen
        total = g.sum(1, keepdim=True)
        gates = torch.where(total > 0, g / torch.where(total > 0, total, 1.0), 0.0)
        excess = log_g.detach() - self.p[f"{name}.threshold"]
        loss = (((excess > 0).double() - chosen.double()) * excess).sum()
        self.batchwise = self.batchwise + loss * len(x) / m
        return gates, chosen.double()

    def moe(self, x, moe, name, r, w, first=0):
        self.mixtures[name] = moe
        if moe["gating"] == "GATING_SOFTMAX":
            gates = torch.softmax(x @ self.p[f"{name}.wg"], dim=1)
            load = torch.ones_like(gates)
        elif moe["gating"] == "GATING_STRICTLY_BALANCED":
            gates, load = self.strictly_balanced(x, moe, name)
        elif moe["k_primary"] == 0:
            gates, load = self.gate(x, name, r, w, moe["k"], first)
        else:
            primary, load_primary = self.gate(x, name, r, w, moe["k_primary"])
            self.add(self.load_primary, name, load_primary.sum(0))
            self.add(self.rows_of_group, name, (primary > 0).sum(0))
            gates, load = [], []
            for g in range(moe["groups"]):
                own, own_load = self.gate(x, f"{name}.group{g}", r, w, moe["k"])
                gates.append(primary[:, g:g + 1] * own)
                load.append(own_load * (primary[:, g:g + 1] > 0))
            gates, load = torch.cat(gates, 1), torch.cat(load, 1)
        self.add(self.importance, name, gates.sum(0))
        self.add(self.load, name, load.sum(0))
        y = 0
        for e in range(moe["experts"]):
            out = x @ self.p[f"{name}.expert{e}.w1"]
            for matrix in range(2, len(moe["hidden"]) + 2):
                out = torch.relu(out) @ self.p[f"{name}.expert{e}.w{matrix}"]
            y = y + gates[:, e:e + 1] * out
        return torch.sigmoid(y) if moe["sigmoid_output"] else y

    @staticmethod
    def add(totals, name, values):
        totals[name] = totals.get(name, 0) + values

    def load_of(self, name):
        """Equation 10; hierarchical: equation 14."""
        if name not in self.load_primary:
            return self.load[name]
        share = self.load_primary[name] / self.rows_of_group[name].clamp(min=1)
        return (self.load[name].reshape(len(share), -1) * share[:, None]).reshape(-1)


def adam_update(dump, mixtures, parameters):
    adam = dump.json["adam"]
    # The optimizer leaves alone what has no gradient: experts without rows, and the gate of
    # a group without rows.
    for name, parameter in parameters.items():
        match = re.fullmatch(r"(.*)\.(expert|group)(\d+)\..*", name)
        if match is None:
            continue
        mixture, kind, number = match[1], match[2], int(match[3])
        moe = mixtures[mixture]
        count = 1 if kind == "expert" else moe["experts"] // moe["groups"]
        experts = range(number * count, (number + 1) * count)
        if sum(dump.get(f"rows/{mixture}/{e}").item() for e in experts) == 0:
            parameter.grad = None
    with torch.no_grad():
        for name, rate in dump.json["own_rate"].items():
            parameters[name] -= rate * parameters[name].grad
            parameters[name].grad = None
    optimizer = torch.optim.Adam(parameters.values(), lr=adam["rate"],
                                 betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"])
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(adam["count"] - 1)),
            "exp_avg": dump.get("m/" + name),
            "exp_avg_sq": dump.get("v/" + name),
        }
    optimizer.step()
    # Nor what a step doesn't name of a table.
    with torch.no_grad():
        for name, parameter in parameters.items():
            if (match := re.fullmatch(r"(embedding|softmax)\.rows(\d+).*", name)) is not None:
                untouched = ~touched_rows(dump, match[1], int(match[2]), parameters)
                parameter[untouched] = before[name][untouched]


def touched_rows(dump, table, shard, parameters):
    """Which rows of the table's shard the step names."""
    of_shard = [len(parameters[f"embedding.rows{i}"])
                for i in range(dump.json["job"]["model"]["tables"]["shards"])]
    kind = {"embedding": "input/", "softmax": "target/"}[table]
    words = [dump.get(name).reshape(-1) for name in dump.json["tensors"] if name.startswith(kind)]
    if table == "softmax":
        words.append(dump.get("candidates"))
    touched = torch.zeros(sum(of_shard), dtype=torch.bool)
    touched[torch.cat(words)] = True
    assert not touched.all(), f"a step names every row of {table}: nothing shows that others stay"
    return touched.split(of_shard)[shard]


def compare(job, folder):
    dump = Dump(folder)
    model = Model(dump)
    loss_sum, balance, loss = model.losses()
    loss.backward()
    comparison = Comparison()
    for name, expected in (("loss_sum", loss_sum), ("balance_loss", balance)):
        comparison.check(f"{job} {name}",
                         torch.tensor(dump.json["result"][name], dtype=torch.float64),
                         expected.detach())
    for name, parameter in model.p.items():
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        comparison.check(f"{job} gradient of {name}", dump.get("gradient/" + name), expected)
    adam_update(dump, model.mixtures, model.p)
    for name, parameter in model.p.items():
        comparison.check(f"{job} updated {name}", dump.get("updated/" + name), parameter.detach())
    print(f"{job}: {comparison.compared} comparisons, {comparison.failed} failed")
    return comparison.failed


def main():
    torch.set_num_threads(1)
    failed = 0
    for job in JOBS:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
            subprocess.run([sys.argv[1], job, folder], check=True)
            failed += compare(job, folder)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
