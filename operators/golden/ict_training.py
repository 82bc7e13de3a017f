"""Golden numbers of the ICT module as training sees it: vectors, losses, gradients, by PyTorch.

    pip install torch numpy blake3
    python ict_training.py > ict_training.json

It shares no code with the Rust module: PyTorch in double precision, demonstrations and neighbours row
by row in lists of their own length, keys and values of neighbours one by one. Weights and text vectors
come from the formula of `ict.py` beside it, with the streams of each architecture's list of tensors.

The loss is the sum of all vectors' components times the numbers of the streams 9000 + row, plus the
reconstruction loss. Of each variable's gradient three numbers are kept: the sum, the norm, and the
product with the numbers of the stream 7000 + the variable's index.
"""

import json
import sys

import attention
import ict
import numpy as np
import torch
import torch.nn.functional as F

SHAPE = {"seed": 5, "d": 8, "text": 20, "amplitude": 6000,
         "user_rows": 7, "item_rows": 9, "creator_rows": 4, "category_rows": 6}


def shared(s):
    return [t for t in ict.tensors(s) if not t[0].startswith("decoder")]


def reconstruction(s):
    yield "reconstruction.0.weight", (256, s["d"]), 0.125, "plain"
    yield "reconstruction.0.bias", (256,), 0.0625, "plain"
    yield "reconstruction.2.weight", (s["text"], 256), 0.125, "plain"
    yield "reconstruction.2.bias", (s["text"],), 0.0625, "plain"


ARCHITECTURES = {
    "attention": lambda s: attention.tensors(s),
    "decoder": lambda s: [*ict.tensors(s), *reconstruction(s)],
    "decoder_without_cot": lambda s: ict.tensors(s),
    "mean": lambda s: shared(s),
}


def direction(stream, count):
    ints = (ict.number(stream, count) >> np.uint64(44)).astype(np.int64) - 2**19
    return torch.tensor(ints / 2**19)


def sample(user, item, creator, categories, history, text, history_text):
    return {"user": user, "item": item, "creator": creator, "categories": categories,
            "history": history, "text": text, "history_text": history_text}


# A history is a list of (item, creator, categories) with rows of the tables; texts are vectors' numbers.
QUERIES = [
    sample(1, 1, 1, [1, 2], [(2, 1, [3]), (3, 0, [])], 1, 11),
    sample(2, 8, 0, [], [], None, None),
    sample(6, 5, 3, [5], [(5, 3, [5]), (4, 2, [1, 2, 4]), (5, 3, [5])], 5, 12),
    sample(1, 3, 2, [4], [(1, 1, [1, 2])], 3, 13),
    sample(3, 6, 1, [2, 3, 1], [(7, 0, []), (8, 0, [])], None, None),
]
DEMONSTRATIONS = [
    {**sample(4, 2, 1, [3], [(1, 1, [1, 2])], 2, 14), "cot": 101, "label": 1},
    {**sample(5, 1, 1, [1, 2], [(6, 2, [2]), (2, 1, [3])], 1, 15), "cot": 102, "label": 0},
    {**sample(2, 7, 0, [5, 4], [(3, 2, [4])], 7, None), "cot": 103, "label": 1},
    {**sample(6, 4, 2, [1], [(8, 0, [])], None, 16), "cot": 104, "label": 0},
]
PICKS = [[0, 1, 2], [], [3], [1, 0], [2, 3, 0]]
NEIGHBOURS = [
    # per query: same_item, same_user; (user, item, label, score, age, residual)
    [[(4, 1, 1, 2**27, 3, 512), (5, 1, 0, 2**26, 400, -300)], [(1, 2, 1, 2**25, 0, 700)]],
    [[], []],
    [[(2, 5, 0, -(2**26), 0, -1000)], [(6, 4, 1, 2**28, 90_000, 20), (6, 1, 0, 0, 5, -20), (6, 8, 1, 9, 1, 400)]],
    [[], [(1, 6, 0, 2**27 + 3, 12, -512)]],
    [[(1, 6, 1, 2**26, 7, 100), (2, 6, 1, 2**24, 0, 90), (4, 6, 0, -5, 2**30, -80)], []],
]
# Of the items that neighbours are on: creator, categories, text.
ITEMS = {1: (1, [1, 2], 1), 2: (1, [3], 2), 4: (2, [1], None), 5: (3, [5], 5), 6: (1, [2, 3, 1], None), 8: (0, [], None)}


class Module:
    def __init__(self, architecture):
        self.s = SHAPE
        made = ict.weights(SHAPE, ARCHITECTURES[architecture])
        self.w = {name: torch.tensor(w, requires_grad=True) for name, w in made.items()}
        self.architecture = architecture

    def vector(self, number):
        if number is None:
            return torch.zeros(self.s["text"], dtype=torch.float64)
        return torch.tensor(ict.vector(self.s, number) / 2**14)

    def net(self, name, x):
        w = self.w
        h = F.relu(F.linear(x, w[name + ".0.weight"], w[name + ".0.bias"]))
        return F.linear(h, w[name + ".2.weight"], w[name + ".2.bias"])

    def rows(self, table, ids):
        return F.embedding(torch.tensor(ids, dtype=torch.long), self.w[table + ".weight"])

    def mean(self, table, ids):
        ids = [i for i in ids if i != 0]
        return self.rows(table, ids).mean(0) if ids else torch.zeros(self.s["d"], dtype=torch.float64)

    def item(self, item, creator, categories, text):
        return [self.rows("item", item), self.net("text", self.vector(text)), self.rows("creator", creator),
                self.mean("category", categories)]

    def sample(self, q):
        history = q["history"]
        return self.net("sample", torch.cat([
            self.rows("user", q["user"]),
            *self.item(q["item"], q["creator"], q["categories"], q["text"]),
            self.mean("item", [h[0] for h in history]),
            self.net("text", self.vector(q["history_text"])),
            self.mean("creator", [h[1] for h in history]),
            self.mean("category", [c for h in history for c in h[2]]),
        ]))

    def tokens(self, d):
        c = [] if self.architecture == "decoder_without_cot" else [self.net("text", self.vector(d["cot"]))]
        return [self.sample(d), *c, self.w["label.weight"][d["label"]]]

    def rotate(self, x):
        """[heads, positions, width]"""
        _, length, width = x.shape
        inverse = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), inverse)
        turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(-2)

    def layers(self, x):
        length, d = x.shape
        for layer in (0, 1):
            w = lambda name: self.w[f"decoder.layers.{layer}.{name}.weight"]
            n = F.rms_norm(x, (d,), w("attention_norm"), 1e-5)
            q, k, v = (F.linear(n, w(p)).reshape(length, 2, d // 2).transpose(0, 1) for p in "qkv")
            a = F.scaled_dot_product_attention(self.rotate(q)[None], self.rotate(k)[None], v[None], is_causal=True)
            x = x + F.linear(a[0].transpose(0, 1).reshape(length, d), w("o"))
            m = F.rms_norm(x, (d,), w("ffn_norm"), 1e-5)
            x = x + F.linear(F.silu(F.linear(m, w("w1"))) * F.linear(m, w("w3")), w("w2"))
        return F.rms_norm(x, (d,), self.w["decoder.norm.weight"], 1e-5)

    def pool(self, source, x, neighbours):
        w = lambda name: self.w["attention." + name]
        d = self.s["d"]
        if not neighbours:
            return torch.zeros(d + 4, dtype=torch.float64)
        logits, values = [], []
        for user, item, label, score, age, residual in neighbours:
            score, age = score / 2**28, attention.log2(1 + age) / 16
            scalars = torch.tensor([score, age, residual / 1024], dtype=torch.float64)
            h = (F.linear(self.rows("user", user), w("user.weight")) + F.linear(scalars, w("scalars.weight"))
                 + F.linear(torch.cat(self.item(item, *ITEMS[item])), w("item.weight"))
                 + w("label.weight")[label] + w("source.weight")[source] + w("bias"))
            h = F.relu(h)
            logit = F.linear(x, w("query.weight")) @ F.linear(h, w("key.weight")) / d**0.5
            logits.append(logit + w("theta")[source] * score - w("phi")[source] * age)
            values.append(F.linear(h, w("value.weight")))
        a = F.softmax(torch.stack(logits), 0)
        labels = torch.tensor([float(n[2]) for n in neighbours], dtype=torch.float64)
        residuals = torch.tensor([n[5] / 1024 for n in neighbours], dtype=torch.float64)
        count = torch.tensor(attention.log2(1 + len(neighbours)) / 8, dtype=torch.float64)
        return torch.cat([a @ torch.stack(values), torch.stack([a @ residuals, a @ labels - 0.5, count, a @ a])])

    def run(self):
        vectors, cosines = [], []
        for query, picks, neighbours in zip(QUERIES, PICKS, NEIGHBOURS):
            x = self.sample(query)
            if self.architecture == "attention":
                both = torch.cat([self.pool(s, x, n) for s, n in enumerate(neighbours)])
                out = F.linear(both, self.w["attention.out.weight"], self.w["attention.out.bias"])
                vectors.append(out)
                continue
            tokens = torch.stack([t for p in picks for t in self.tokens(DEMONSTRATIONS[p])] + [x])
            if self.architecture == "mean":
                vectors.append(tokens.mean(0))
                continue
            hidden = self.layers(tokens)
            vectors.append(hidden[-1])
            if self.architecture == "decoder":
                for n, p in enumerate(picks):
                    r = self.net("reconstruction", hidden[3 * n])
                    cosines.append(F.cosine_similarity(r, self.vector(DEMONSTRATIONS[p]["cot"]), dim=-1, eps=1e-8))
        reconstruction = 1 - torch.stack(cosines).mean() if cosines else torch.zeros((), dtype=torch.float64)
        loss = sum(v @ direction(9000 + b, len(v)) for b, v in enumerate(vectors)) + reconstruction
        loss.backward()
        gradients = {}
        for index, (name, w) in enumerate(self.w.items()):
            g = w.grad.clone()
            if name in ("user.weight", "item.weight", "creator.weight", "category.weight"):
                g[0] = 0  # an absent id: never trained
            projected = g.flatten() @ direction(7000 + index, g.numel())
            gradients[name] = [digits(v.item()) for v in (g.sum(), g.norm(), projected)]
        vectors = [[digits(c) for c in v.tolist()] for v in vectors]
        return {"vectors": vectors, "reconstruction": digits(reconstruction.item()), "loss": digits(loss.item()),
                "gradients": gradients}


def digits(value):
    return float(f"{value:.9g}")


def main():
    lines = [f'"shape": {json.dumps(SHAPE)}', f'"queries": {json.dumps(QUERIES)}',
             f'"demonstrations": {json.dumps(DEMONSTRATIONS)}', f'"picks": {json.dumps(PICKS)}',
             f'"neighbours": {json.dumps(NEIGHBOURS)}', f'"items": {json.dumps(ITEMS)}']
    runs = [f'"{name}": {json.dumps(Module(name).run())}' for name in ARCHITECTURES]
    sys.stdout.write("{" + ",\n".join(lines) + ',\n"runs": {\n' + ",\n".join(runs) + "\n}}\n")


if __name__ == "__main__":
    main()
