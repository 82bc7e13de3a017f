"""Training of DeepFM in PyTorch, step for step what the section `training` of `make bench` measures.

    make bench BENCH="--only training"
    RAYON_NUM_THREADS=1 python dataflows/benches/training.py target/bench/bench.json

Prints samples a second of both and their ratio. Needs PyTorch, which no test does. The model is written as a
user of PyTorch writes it: modules, float32, whole batches, `torch.optim.Adam(weight_decay)`, one thread. Inputs
are drawn, with MovieLens-100K's sizes: what a step costs doesn't depend on what they are. A step is gathering the
batch from tensors of the whole data set, forward, backward and the optimiser, as there.
"""

import json
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

# Of MovieLens-100K split by time: samples and rows of tables that training names; categories of an item at most.
SAMPLES, USERS, ITEMS, CREATORS, CATEGORIES, MOST = 80_000, 752, 1_617, 2, 20, 6
D, HISTORY, TEXT, TEXT_HIDDEN, SAMPLE_HIDDEN = 32, 20, 384, 256, 128
NEIGHBOURS, NEIGHBOUR_HIDDEN, SOURCES = 16, 64, 2
HIDDEN, BATCH, SCALE = [64, 32], 512, 4.0
STEPS, RUNS = 40, 5


class Net(nn.Sequential):
    def __init__(self, *widths):
        parts = []
        for a, b in zip(widths, widths[1:]):
            parts += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*parts[:-1])


def pooled(table, ids):
    return F.embedding_bag(ids, table.weight, mode="mean", padding_idx=0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.sample = Net(TEXT, TEXT_HIDDEN, D), Net(9 * D, SAMPLE_HIDDEN, D)
        self.user = nn.Linear(D, NEIGHBOUR_HIDDEN)
        self.item = nn.Linear(4 * D, NEIGHBOUR_HIDDEN, bias=False)
        self.label, self.source = nn.Embedding(2, NEIGHBOUR_HIDDEN), nn.Embedding(SOURCES, NEIGHBOUR_HIDDEN)
        self.scalars = nn.Linear(3, NEIGHBOUR_HIDDEN, bias=False)
        self.key = nn.Linear(NEIGHBOUR_HIDDEN, D, bias=False)
        self.value = nn.Linear(NEIGHBOUR_HIDDEN, D, bias=False)
        self.query = nn.Linear(D, D, bias=False)
        self.theta, self.phi = nn.Parameter(torch.ones(SOURCES)), nn.Parameter(torch.zeros(SOURCES))
        self.out = nn.Linear(SOURCES * (D + 4), D)

    def forward(self, tables, fields, texts, items, neighbours):
        user, item, creator, category, history_item, history_creator, history_category = fields
        item_text, history_text = self.text(torch.cat(texts)).split(len(user))
        order = [user, item, item_text, creator, category, history_item, history_text, history_creator, history_category]
        query = self.query(self.sample(torch.cat(order, 1)))
        # Users and items of all neighbours once each, then gathered.
        slots, places = torch.unique(torch.stack([n["item"] for n in neighbours]), return_inverse=True)
        users, of_users = torch.unique(torch.stack([n["user"] for n in neighbours]), return_inverse=True)
        rows = [tables["item"](items["row"][slots]), self.text(items["text"][slots])]
        rows += [tables["creator"](items["creator"][slots]), pooled(tables["category"], items["categories"][slots])]
        of_items, of_user = self.item(torch.cat(rows, 1)), self.user(tables["user"](users))
        joined = []
        for s, n in enumerate(neighbours):
            scalars = torch.stack([n["score"], n["age"], n["residual"]], 2)
            hidden = of_user[of_users[s]] + of_items[places[s]] + self.label(n["label"]) + self.source.weight[s]
            hidden = F.relu(hidden + self.scalars(scalars))
            fit = torch.einsum("bmh,bh->bm", hidden, query @ self.key.weight) / D**0.5
            logits = fit + self.theta[s] * n["score"] - self.phi[s] * n["age"] + (n["there"] - 1.0) * 1e30
            weights = F.softmax(logits, 1) * n["there"]
            label, any_ = n["label"].float(), n["there"].amax(1, keepdim=True)
            joined += [
                self.value(torch.einsum("bm,bmh->bh", weights, hidden)),
                (weights * n["residual"]).sum(1, keepdim=True),
                (weights * label).sum(1, keepdim=True) - any_ / 2,
                torch.log2(1 + n["there"].sum(1, keepdim=True)) / 8,
                (weights**2).sum(1, keepdim=True),
            ]
        return self.out(torch.cat(joined, 1))


class DeepFM(nn.Module):
    def __init__(self, scalars, vector):
        super().__init__()
        rows = dict(user=USERS, item=ITEMS, creator=CREATORS, category=CATEGORIES)
        self.tables = nn.ModuleDict({name: nn.Embedding(count, D) for name, count in rows.items()})
        self.text = Net(TEXT, TEXT_HIDDEN, D)
        self.attention = Attention() if vector else None
        wide = 7 * D + scalars
        self.fields_wide, self.scalars_wide = nn.Linear(7 * D, 1), nn.Linear(scalars, 1, bias=False)
        self.vector_wide = nn.Linear(D, 1, bias=False) if vector else None
        self.deep = Net(wide + 2 * D + (D if vector else 0), *HIDDEN, 1)

    def forward(self, batch, items):
        ids, tables = batch["ids"], self.tables
        fields = [
            tables["user"](ids["user"]),
            tables["item"](ids["item"]),
            tables["creator"](ids["creator"]),
            pooled(tables["category"], ids["categories"]),
            pooled(tables["item"], ids["history_items"]),
            pooled(tables["creator"], ids["history_creators"]),
            pooled(tables["category"], ids["history_categories"].flatten(1)),
        ]
        flat, scalars = torch.cat(fields, 1), batch["scalars"] * SCALE
        wide = self.fields_wide(flat) + self.scalars_wide(scalars)
        stacked = torch.stack(fields, 1)
        pairs = 0.5 * (stacked.sum(1) ** 2 - (stacked**2).sum(1)).sum(1, keepdim=True)
        deep = [flat, *(self.text(text) for text in batch["texts"]), scalars]
        if self.attention is not None:
            vector = self.attention(tables, fields, batch["texts"], items, batch["neighbours"])
            wide, deep = wide + self.vector_wide(vector), deep + [vector]
        return (wide + pairs + self.deep(torch.cat(deep, 1))).squeeze(1)


def data(scalars, vector):
    ints = lambda most, *shape: torch.randint(0, most, shape)
    items = dict(
        row=torch.arange(ITEMS),
        creator=torch.zeros(ITEMS, dtype=torch.long),
        categories=ints(CATEGORIES, ITEMS, MOST),
        text=F.normalize(torch.randn(ITEMS, TEXT), dim=1),
    )
    columns = dict(
        user=ints(USERS, SAMPLES),
        slot=ints(ITEMS, SAMPLES),
        history=ints(ITEMS, SAMPLES, HISTORY),
        label=ints(2, SAMPLES).float(),
        scalars=torch.rand(SAMPLES, scalars) - 0.5,
    )
    neighbours = []
    for _ in range(SOURCES if vector else 0):
        shape = (SAMPLES, NEIGHBOURS)
        neighbours.append(
            dict(
                user=ints(USERS, *shape), item=ints(ITEMS, *shape), label=ints(2, *shape), score=torch.rand(shape),
                age=torch.rand(shape), residual=torch.rand(shape) - 0.5, there=torch.ones(shape),
            )
        )
    return items, columns, neighbours


def batch_of(at, items, columns, neighbours):
    slots, history = columns["slot"][at], columns["history"][at]
    text = F.embedding_bag(history, items["text"], mode="mean", padding_idx=0)
    return dict(
        ids=dict(
            user=columns["user"][at],
            item=items["row"][slots],
            creator=items["creator"][slots],
            categories=items["categories"][slots],
            history_items=items["row"][history],
            history_creators=items["creator"][history],
            history_categories=items["categories"][history],
        ),
        texts=[items["text"][slots], text],
        scalars=columns["scalars"][at],
        neighbours=[{name: column[at] for name, column in source.items()} for source in neighbours],
        label=columns["label"][at],
    )


def measure(scalars, vector):
    torch.manual_seed(1)
    items, columns, neighbours = data(scalars, vector)
    model = DeepFM(scalars, vector)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-3)
    order = torch.randperm(SAMPLES)

    def steps(count):
        for step in range(count):
            begin = step * BATCH % (SAMPLES - BATCH)
            batch = batch_of(order[begin : begin + BATCH], items, columns, neighbours)
            loss = F.binary_cross_entropy_with_logits(model(batch, items), batch["label"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    steps(2)
    runs = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        steps(STEPS)
        runs.append(STEPS * BATCH / (time.perf_counter() - begun))
    return sum(p.numel() for p in model.parameters()), sorted(runs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    ours = {}
    if len(sys.argv) > 1:
        for figure in json.load(open(sys.argv[1]))["figures"]:
            if figure["section"] == "training":
                ours[figure["conditions"].split(",")[0]] = figure["median"]
    print(f"PyTorch {torch.__version__}, threads {torch.get_num_threads()}, samples/s, median of {RUNS} (least to most)")
    for name, scalars, vector in [("strong", 2, False), ("votes", 11, False), ("attention+votes", 11, True)]:
        parameters, runs = measure(scalars, vector)
        own = ours.get(f"deepfm with {name}")
        ratio = f"; ictflow {own:.0f}, {own / runs[RUNS // 2]:.2f} times as many" if own else ""
        print(f"deepfm with {name}, {parameters} parameters: {runs[RUNS // 2]:.0f} ({runs[0]:.0f} to {runs[-1]:.0f}){ratio}")
