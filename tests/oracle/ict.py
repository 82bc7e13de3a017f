"""The ICT forward pass in float64, from weights in the safetensors format read by hand.

Here are tokens, and the decoder over demonstrations; `attention.py` has the kind that reads neighbours.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from framing import hashed_row

SCALE = 16384.0
EPSILON = 1e-5
THETA = 10_000.0
HEADS = 2
LAYERS = 2
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
TABLES = ("user", "item", "creator", "category")
HIDDEN = 64  # of a neighbour


def read_safetensors(path):
    """Tensors by name as float64, the version (SHA-256 in hex, shortened and marked if untrained), the kind."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = memoryview(data)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(body[begin:end], dtype="<u2").astype("<u4") << 16
            flat = wide.view("<f4")
        else:
            flat = np.frombuffer(body[begin:end], dtype=TYPES[entry["dtype"]])
        tensors[name] = flat.astype(np.float64).reshape(entry["shape"])
    sha256 = hashlib.sha256(data).hexdigest()
    described = json.loads(header.get("__metadata__", {}).get("ictflow", "{}"))
    version = sha256 if described.get("trained", True) else f"untrained-{sha256[:16]}"
    return tensors, version, described.get("kind", "decoder")


def write_safetensors(path, tensors, kind=None):
    """Writes f32 tensors, for made-up weights. Without a kind the file doesn't say one."""
    header, body = {}, bytearray()
    if kind is not None:
        header["__metadata__"] = {"ictflow": json.dumps({"kind": kind, "trained": True})}
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name], dtype="<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(np.shape(tensors[name])),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))


def shapes(width, rows, d=32, kind="decoder"):
    """Shapes of all tensors for vectors of `width` and tables of `rows` (user, item, creator, category)."""
    out = {f"{table}.weight": (count, d) for table, count in rows.items()}
    out |= {"text.0.weight": (256, width), "text.0.bias": (256,), "text.2.weight": (d, 256), "text.2.bias": (d,)}
    out |= {"sample.0.weight": (128, 9 * d), "sample.0.bias": (128,)}
    out |= {"sample.2.weight": (d, 128), "sample.2.bias": (d,)}
    return out | (attention_shapes(d) if kind == "attention" else decoder_shapes(d))


def attention_shapes(d):
    """Shapes of the tensors that only the kind `attention` has."""
    out = {"user.weight": (HIDDEN, d), "item.weight": (HIDDEN, 4 * d), "label.weight": (2, HIDDEN)}
    out |= {"scalars.weight": (HIDDEN, 3), "bias": (HIDDEN,), "source.weight": (2, HIDDEN)}
    out |= {"key.weight": (d, HIDDEN), "value.weight": (d, HIDDEN), "query.weight": (d, d)}
    out |= {"theta": (2,), "phi": (2,), "out.weight": (d, 2 * (d + 4)), "out.bias": (d,)}
    return {f"attention.{name}": shape for name, shape in out.items()}


def decoder_shapes(d):
    """Shapes of the tensors that only the kind `decoder` has."""
    hidden = -(-(4 * d // 3) // 32) * 32
    out = {"label.weight": (2, d)}
    for layer in range(LAYERS):
        at = f"decoder.layers.{layer}."
        out |= {at + f"{name}.weight": (d, d) for name in "qkvo"}
        out |= {at + "attention_norm.weight": (d,), at + "ffn_norm.weight": (d,)}
        out |= {at + "w1.weight": (hidden, d), at + "w3.weight": (hidden, d), at + "w2.weight": (d, hidden)}
    out["decoder.norm.weight"] = (d,)
    return out


def random_weights(seed, width, rows, kind="decoder"):
    """Made-up weights of a sane scale; row 0 of each table is zeros."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(width, rows, kind=kind).items():
        if "norm" in name or "theta" in name:
            tensors[name] = 1.0 + 0.1 * random.standard_normal(shape)
        elif name.split(".")[0] in (*rows, "label"):
            tensors[name] = random.standard_normal(shape)
            if name != "label.weight":
                tensors[name][0] = 0.0
        else:
            tensors[name] = random.standard_normal(shape) / np.sqrt(shape[-1])
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _rms_norm(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * weight


def _rotate(x):
    """Rotary positions on adjacent pairs; x is [batch, heads, length, width of a head]."""
    length, width = x.shape[-2:]
    angles = np.arange(length)[:, None] * THETA ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles), np.sin(angles)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


class Ict:
    """The module with its weights."""

    def __init__(self, path):
        self.tensors, self.version, self.kind = read_safetensors(path)
        if self.kind not in ("decoder", "attention"):
            raise ValueError(f"the weights are of an unknown kind: {self.kind}")
        self.d = self.tensors["user.weight"].shape[1]
        self.width = self.tensors["text.0.weight"].shape[1]
        rows = {table: len(self.tensors[f"{table}.weight"]) for table in TABLES}
        expected = shapes(self.width, rows, self.d, self.kind)
        # The catalog's mean text, which either kind may have.
        centre = self.tensors.get("text.centre", np.zeros(self.width))
        got = {name: tensor.shape for name, tensor in self.tensors.items() if name != "text.centre"}
        if got != expected:
            odd = sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))
            raise ValueError(f"the weights lack tensors, have others or other shapes: {odd}")
        self.centre = centre.astype(np.int64)
        if centre.shape != (self.width,) or np.any(self.centre != centre) or np.any(np.abs(centre + 0.5) > 32767.5):
            raise ValueError("text.centre isn't a vector of the encoder's width in whole numbers of 16 bits")
        for table in rows:
            if np.any(self.tensors[f"{table}.weight"][0]):
                raise ValueError(f"row 0 of {table}.weight isn't zeros")
        self._rows = {}

    def embed(self, table, name):
        """The embedding of an id; None is row 0."""
        weight = self.tensors[f"{table}.weight"]
        if name is None:
            return weight[0]
        at = (table, name)
        if at not in self._rows:
            self._rows[at] = hashed_row(table, name, len(weight))
        return weight[self._rows[at]]

    def mean_embedding(self, table, names):
        """Mean of the embeddings; zeros for none."""
        if not names:
            return np.zeros(self.d)
        return np.mean([self.embed(table, name) for name in names], axis=0)

    def _mlp(self, name, x):
        t = self.tensors
        hidden = np.maximum(x @ t[f"{name}.0.weight"].T + t[f"{name}.0.bias"], 0.0)
        return hidden @ t[f"{name}.2.weight"].T + t[f"{name}.2.bias"]

    def text(self, vectors):
        """G, on vectors that are already divided by 2^14."""
        return self._mlp("text", np.asarray(vectors, dtype=np.float64))

    def decode(self, sequences):
        """The normed last position of [batch, length, d]."""
        t = self.tensors
        batch, length, d = sequences.shape
        width = d // HEADS
        future = np.triu(np.ones((length, length), dtype=bool), 1)

        def heads(x):
            return x.reshape(batch, length, HEADS, width).transpose(0, 2, 1, 3)

        s = sequences
        for layer in range(LAYERS):
            at = f"decoder.layers.{layer}."
            n = _rms_norm(s, t[at + "attention_norm.weight"])
            q = _rotate(heads(n @ t[at + "q.weight"].T))
            k = _rotate(heads(n @ t[at + "k.weight"].T))
            v = heads(n @ t[at + "v.weight"].T)
            logits = np.where(future, -np.inf, q @ k.transpose(0, 1, 3, 2) / np.sqrt(width))
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            s = s + (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, d) @ t[at + "o.weight"].T
            m = _rms_norm(s, t[at + "ffn_norm.weight"])
            gate = m @ t[at + "w1.weight"].T
            s = s + (gate / (1.0 + np.exp(-gate)) * (m @ t[at + "w3.weight"].T)) @ t[at + "w2.weight"].T
        return _rms_norm(s[:, -1, :], t["decoder.norm.weight"])


def _user_side(ict, world, user, history):
    """Of a sample: the parts that hang on user and history, and the pooled text vector (not yet through G)."""
    names = [event.item for event in history]
    alive = [world.items[name] for name in names if world.exists(name)]
    vectors = [item.vector for item in alive if item.vector is not None]
    pooled = np.zeros(ict.width)
    if vectors:
        pooled = np.sum(np.asarray(vectors, dtype=np.int64), axis=0) / (len(vectors) * SCALE)
    return {
        "user": ict.embed("user", user),
        "items": ict.mean_embedding("item", names),
        "pooled": pooled,
        "creators": ict.mean_embedding("creator", [item.creator for item in alive if item.creator]),
        "categories": ict.mean_embedding("category", [name for item in alive for name in item.categories]),
    }


def _item_side(ict, world, name):
    """Of a sample: the parts that hang on the item, and its vector."""
    item = world.items[name]
    return {
        "item": ict.embed("item", name),
        "vector": item.vector / SCALE,
        "creator": ict.embed("creator", item.creator),
        "category": ict.mean_embedding("category", item.categories),
    }


def _tokens(ict, users, items, user_at, item_at):
    """x = H(f) of samples, each a row of `users` with a row of `items`."""

    def stack(rows, name):
        return np.stack([row[name] for row in rows])

    pooled = ict.text(stack(users, "pooled"))[user_at]
    text = ict.text(stack(items, "vector"))[item_at]
    f = np.concatenate(
        [
            stack(users, "user")[user_at],
            stack(items, "item")[item_at],
            text,
            stack(items, "creator")[item_at],
            stack(items, "category")[item_at],
            stack(users, "items")[user_at],
            pooled,
            stack(users, "creators")[user_at],
            stack(users, "categories")[user_at],
        ],
        axis=1,
    )
    return ict._mlp("sample", f)


def query_tokens(ict, world):
    """x of every pair, with its user's newest history."""
    pairs = world.pairs
    users = sorted({user for user, _ in pairs})
    items = sorted({item for _, item in pairs})
    user_row = {user: row for row, user in enumerate(users)}
    item_row = {item: row for row, item in enumerate(items)}
    length = world.config.history
    user_sides = [_user_side(ict, world, user, world.engagements.get(user, [])[-length:]) for user in users]
    item_sides = [_item_side(ict, world, item) for item in items]
    return _tokens(
        ict, user_sides, item_sides, [user_row[user] for user, _ in pairs], [item_row[item] for _, item in pairs]
    )


def forward(ict, world, used):
    """ICT vectors [pairs, d] of `world.pairs` with the demonstrations that retrieval chose."""
    pairs = world.pairs
    if not pairs:
        return np.zeros((0, ict.d))
    query = query_tokens(ict, world)
    demonstrations = world.demonstrations
    triples = np.zeros((0, 3, ict.d))
    if demonstrations:
        every = np.arange(len(demonstrations))
        x = _tokens(
            ict,
            [_user_side(ict, world, d.example.user, world.history(d.example)) for d in demonstrations],
            [_item_side(ict, world, d.example.item) for d in demonstrations],
            every,
            every,
        )
        c = ict.text(np.stack([d.cot_vector for d in demonstrations]) / SCALE)
        y = ict.tensors["label.weight"][[d.example.label for d in demonstrations]]
        triples = np.stack([x, c, y], axis=1)

    out = np.zeros((len(pairs), ict.d))
    for k in sorted({len(row) for row in used}):
        rows = [row for row, columns in enumerate(used) if len(columns) == k]
        for begin in range(0, len(rows), 2_000):
            part = rows[begin : begin + 2_000]
            columns = np.array([[column for column, _ in used[row]] for row in part], dtype=np.int64).reshape(len(part), k)
            context = triples[columns].reshape(len(part), 3 * k, ict.d)
            out[part] = ict.decode(np.concatenate([context, query[part][:, None, :]], axis=1))
    return out
