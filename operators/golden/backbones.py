"""Golden numbers of the ranking backbones and of Adam: PyTorch in double precision.

    pip install torch numpy
    python backbones.py > backbones.json

It shares no code with the Rust modules and writes each formula in its plainest form. Weights and float inputs
come from the formula of `number` below, so `backbones.json` holds only ids, sizes and results.

    number(stream, i) = mix(stream * 0x9E3779B97F4A7C15 + i)   (64-bit, wrapping)
    value(stream, i)  = ((number >> 44) - 2^19) / 2^19, in [-1, 1), an exact f32
    variable v of case c, in the order of `variables`: value(1000 * c + v, i) / 2; norm weights and running
        variances add 1; row 0 of tables is zeros
    inputs: value(700001, i) for w, 700002 and 700003 for the item's and the history's text, 700004 for scalars

A tensor is written as [norm, sum of element i times value(800000, i)]: the second number moves when elements
change places. Dropout is off: its masks are the Rust program's own.
"""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

U64 = np.uint64
SIZES = dict(
    d=4, hidden=[6, 4], cin=[4, 4, 3], attention_layers=2, attention_heads=2, attention_width=6, cross_layers=3,
    mixed_layers=2, experts=3, rank=2, entry_hidden=[5, 3], scalars=3,
)
ROWS = dict(user=5, item=7, creator=4, category=5)
IDS = dict(
    user=[1, 2, 3, 4, 2],
    item=[1, 6, 3, 2, 5],
    creator=[1, 0, 3, 2, 1],
    categories=[[1, 2], [3, 0], [0, 0], [4, 1], [2, 0]],
    history_items=[[2, 3, 4], [0, 0, 0], [5, 0, 0], [1, 6, 0], [4, 4, 2]],
    history_creators=[[2, 0, 1], [0, 0, 0], [3, 0, 0], [1, 2, 0], [1, 1, 0]],
    history_categories=[
        [[1, 0], [2, 3], [4, 0]], [[0, 0], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]],
        [[1, 2], [3, 0], [0, 0]], [[4, 0], [4, 0], [1, 2]],
    ],
)
LABELS = [1.0, 0.0, 0.0, 1.0, 1.0]
ADAM = dict(lr=0.01, weight_decay=0.01)
STEPS = 3


def mix(z):
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


def value(stream, shape):
    count = math.prod(shape)
    numbers = mix(U64(stream * 0x9E3779B97F4A7C15 % 2**64) + np.arange(count, dtype=U64))
    ints = (numbers >> U64(44)).astype(np.int64) - 2**19
    return torch.tensor((ints / 2**19).reshape(shape), dtype=torch.float64)


def digest(tensor):
    flat = tensor.detach().reshape(-1)
    return [float(flat.norm()), float(flat @ value(800000, (flat.numel(),)))]


class Case:
    """A backbone with its variables, which `get` makes in the order of the file's contract."""

    def __init__(self, number, kind, arm):
        self.number, self.kind, self.arm = number, kind, arm
        self.w, self.state, self.order = {}, {}, []
        d = SIZES["d"]
        for table in ("user", "item", "creator", "category"):
            self.get(f"{table}.weight", (ROWS[table], d), "table")
        b = len(LABELS)
        self.inputs = {}
        if arm == "all":
            for i, (name, width) in enumerate(
                [("vector", d), ("item text", d), ("history text", d), ("scalars", SIZES["scalars"])]
            ):
                self.inputs[name] = value(700001 + i, (b, width)).requires_grad_(True)

    def get(self, name, shape, kind="weight"):
        if name in self.order:
            return self.w[name] if name in self.w else self.state[name]
        made = value(1000 * self.number + len(self.order), shape) / 2
        self.order.append(name)
        if kind == "table":
            made[0] = 0.0
        if kind in ("one", "variance"):
            made = made + 1.0
        if kind in ("mean", "variance"):
            self.state[name] = made
        else:
            self.w[name] = made.requires_grad_(True)
        return made

    def linear(self, name, x, outputs, bias=True):
        y = x @ self.get(f"backbone.{name}.weight", (outputs, x.shape[-1])).T
        return y + self.get(f"backbone.{name}.bias", (outputs,)) if bias else y

    def deep(self, x, norm=False, training=True):
        for l, width in enumerate(SIZES["hidden"]):
            x = self.linear(f"deep.{l}", x, width, bias=not norm)
            if norm:
                name = f"backbone.deep.{l}.norm."
                weight, bias = self.get(name + "weight", (width,), "one"), self.get(name + "bias", (width,))
                mean = self.get(name + "running_mean", (width,), "mean")
                variance = self.get(name + "running_var", (width,), "variance")
                x = F.batch_norm(x, mean, variance, weight, bias, training, 0.1, 1e-5)
            x = F.relu(x)
        return x

    def tower(self, x):
        return self.linear("deep.out", self.deep(x), 1)

    def mean(self, table, ids):
        """Mean of the rows of a list of ids that aren't 0, zeros where there are none."""
        found = [self.w[f"{table}.weight"][i] for i in ids if i]
        return torch.stack(found).mean(0) if found else torch.zeros(SIZES["d"], dtype=torch.float64)

    def means(self, table, lists):
        return torch.stack([self.mean(table, ids) for ids in lists])

    def fields(self):
        w = self.w
        flat = [[c for entry in h for c in entry] for h in IDS["history_categories"]]
        return [
            w["user.weight"][IDS["user"]], w["item.weight"][IDS["item"]], w["creator.weight"][IDS["creator"]],
            self.means("category", IDS["categories"]), self.means("item", IDS["history_items"]),
            self.means("creator", IDS["history_creators"]), self.means("category", flat),
        ]

    def side(self):
        return [self.inputs[n] for n in ("item text", "history text", "scalars") if n in self.inputs]

    def vector(self):
        return [self.inputs["vector"]] if "vector" in self.inputs else []

    def wide(self, fields):
        y = self.linear("wide.fields", torch.cat(fields, 1), 1)
        for x in self.vector():
            y = y + self.linear("wide.vector", x, 1, bias=False)
        if "scalars" in self.inputs:
            y = y + self.linear("wide.scalars", self.inputs["scalars"], 1, bias=False)
        return y

    def logits(self, training=True):
        return getattr(self, self.kind)(training).squeeze(1)

    def deepfm(self, _):
        fields = self.fields()
        wide = self.wide(fields)
        pairs = sum((fields[f] * fields[g]).sum(1, keepdim=True) for f in range(7) for g in range(f))
        return wide + pairs + self.tower(torch.cat(fields + self.vector() + self.side(), 1))

    def xdeepfm(self, _):
        wide = self.wide(self.fields())
        fields = self.fields() + self.vector()
        first = torch.stack(fields, 1)
        maps, sums = first, []
        for k, size in enumerate(SIZES["cin"]):
            f, j = first.shape[1], maps.shape[1]
            weight = self.get(f"backbone.cin.{k}.weight", (size, f * j)).reshape(size, f, j)
            new = F.relu(torch.einsum("hfj,bfd,bjd->bhd", weight, first, maps))
            if k + 1 < len(SIZES["cin"]):
                maps, new = new[:, : size // 2], new[:, size // 2 :]
            sums.append(new.sum(2))
        interactions = self.linear("cin.out", torch.cat(sums, 1), 1)
        return wide + interactions + self.tower(torch.cat(fields + self.side(), 1))

    def autoint(self, _):
        fields = self.fields() + self.vector()
        width, heads = SIZES["attention_width"], SIZES["attention_heads"]
        x, size = torch.stack(fields, 1), width // heads
        for l in range(SIZES["attention_layers"]):
            q, k, v, r = (self.linear(f"attention.{l}.{n}", x, width, bias=False) for n in ("q", "k", "v", "residual"))
            out = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                scores = torch.einsum("bfa,bga->bfg", q[..., part], k[..., part]) / math.sqrt(size)
                out.append(torch.einsum("bfg,bga->bfa", torch.softmax(scores, 2), v[..., part]))
            x = F.relu(torch.cat(out, 2) + r)
        attention = self.linear("attention.out", x.reshape(len(LABELS), -1), 1)
        return attention + self.tower(torch.cat(fields + self.side(), 1))

    def dcn(self, training):
        vector = [F.gelu(self.linear("vector", x, SIZES["d"])) for x in self.vector()]
        first = torch.cat(self.fields() + vector + self.side(), 1)
        x, n = first, first.shape[1]
        for l in range(SIZES["cross_layers"]):
            weight = self.get(f"backbone.cross.{l}.weight", (1, n))
            bias = self.get(f"backbone.cross.{l}.bias", (n,))
            x = first * (x * weight[0]).sum(1, keepdim=True) + bias + x
        return self.linear("out", torch.cat([x, self.deep(first, norm=True, training=training)], 1), 1)

    def dcnv2(self, _):
        first = torch.cat(self.fields() + self.vector() + self.side(), 1)
        x, n, experts, rank = first, first.shape[1], SIZES["experts"], SIZES["rank"]
        for l in range(SIZES["mixed_layers"]):
            name = f"backbone.cross.{l}."
            v = self.get(name + "v.weight", (experts * rank, n))
            c = self.get(name + "c.weight", (experts, rank, rank))
            u = self.get(name + "u.weight", (n, experts * rank))
            bias = self.get(name + "bias", (n,))
            gates = torch.softmax(self.linear(f"cross.{l}.gate", x, experts), 1)
            new = x
            for e in range(experts):
                part = slice(e * rank, (e + 1) * rank)
                low = torch.tanh(torch.tanh(x @ v[part].T) @ c[e].T)
                new = new + gates[:, e : e + 1] * first * (low @ u[:, part].T + bias)
            x = new
        return self.linear("out", torch.cat([x, self.deep(first)], 1), 1)

    def din(self, _):
        item, creator = self.w["item.weight"], self.w["creator.weight"]
        d, (hidden0, hidden1) = SIZES["d"], SIZES["entry_hidden"]
        query = torch.cat([item[IDS["item"]], creator[IDS["creator"]], self.means("category", IDS["categories"])], 1)
        pooled = []
        for b in range(len(LABELS)):
            total = torch.zeros(3 * d, dtype=torch.float64)
            for t, i in enumerate(IDS["history_items"][b]):
                key = torch.cat([
                    item[i], creator[IDS["history_creators"][b][t]],
                    self.mean("category", IDS["history_categories"][b][t]),
                ])
                q = query[b]
                x = F.relu(self.linear("attention.0", torch.cat([q, key, q - key, q * key]), hidden0))
                score = self.linear("attention.out", F.relu(self.linear("attention.1", x, hidden1)), 1)
                if i:
                    total = total + score * key
            pooled.append(total)
        user = self.w["user.weight"][IDS["user"]]
        return self.tower(torch.cat([query, torch.stack(pooled), user] + self.vector() + self.side(), 1))

    def run(self):
        labels = torch.tensor(LABELS, dtype=torch.float64)
        with torch.no_grad():
            self.logits(training=False)  # makes all variables
        out = dict(kind=self.kind, arm=self.arm, variables=[[n, list(self.get(n, ()).shape)] for n in self.order])
        optimiser = torch.optim.Adam(self.w.values(), **ADAM)
        losses = []
        for step in range(STEPS):
            optimiser.zero_grad()
            for x in self.inputs.values():
                x.grad = None
            logits = self.logits()
            loss = F.binary_cross_entropy_with_logits(logits, labels)
            loss.backward()
            losses.append(float(loss.detach()))
            for table in ROWS:
                self.w[f"{table}.weight"].grad[0] = 0.0
            if step == 0:
                out["logits"] = logits.tolist()
                out["gradients"] = {n: digest(self.w[n].grad) for n in self.order if n in self.w}
                out["input_gradients"] = {n: digest(x.grad) for n, x in self.inputs.items()}
            optimiser.step()
        with torch.no_grad():
            out["served"] = self.logits(training=False).tolist()
        out["losses"] = losses
        out["after"] = {n: digest(self.get(n, ())) for n in self.order}
        return out


def rounded(x):
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, list):
        return [rounded(v) for v in x]
    return float(f"{x:.10g}") if isinstance(x, float) else x


def main():
    torch.set_num_threads(1)
    kinds = ["deepfm", "xdeepfm", "autoint", "dcn", "dcnv2", "din"]
    cases = [Case(2 * k + a, kind, arm) for k, kind in enumerate(kinds) for a, arm in enumerate(["ids", "all"])]
    out = dict(torch=torch.__version__.split("+")[0], sizes=SIZES, rows=ROWS, ids=IDS, labels=LABELS, adam=ADAM)
    out["cases"] = [rounded(case.run()) for case in cases]
    json.dump(out, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
