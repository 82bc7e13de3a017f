//! The decoder: two pre-norm layers of causal attention and a gated feed-forward net.
//!
//! For the sequence S = [x_1, c_1, y_1, ..., x_k, c_k, y_k, x_q], positions from 0:
//! n = norm(S); q, k, v = W_q n, W_k n, W_v n, with q and k turned by rotary angles;
//! S += W_o · softmax(q kᵀ / sqrt(head width)) v over the positions up to one's own, per head;
//! m = norm(S); S += W_2 (silu(W_1 m) · W_3 m). The result is the final norm of the last position.
//!
//! **Prefix.** Attention is causal, so the tokens of demonstrations never see the query: their
//! keys and values are computed once for an ordered list and serve every query after it. In the
//! last layer nothing but keys and values of those tokens is ever read, so nothing else is
//! computed. Both are the very operations of the whole computation, so the bits are the same.
//!
//! **Order of additions.** Keys are taken by rising position; the weights of a softmax are summed
//! in that order; linear layers and dot products as `kernel` says.

use super::kernel::{Linear, Rotary, add, dot, exp, rms_norm, silu_times};
use super::shape::{HEADS, LAYERS, MAX_DEMONSTRATIONS};
use std::borrow::Borrow;

/// The tokens of one demonstration: x (its sample), c (its CoT), y (its label), each of width d.
/// They depend on the weights and on the demonstration only, so they are computed once for both.
#[derive(Clone, Debug, PartialEq)]
pub struct DemonstrationTokens {
    /// x ++ c ++ y.
    flat: Box<[f32]>,
}

impl DemonstrationTokens {
    /// Joins the three tokens, all of width d.
    ///
    /// # Panics
    /// Where their widths differ.
    pub fn new(x: &[f32], c: &[f32], y: &[f32]) -> Self {
        assert!(x.len() == c.len() && c.len() == y.len(), "the tokens of a demonstration have one width");
        DemonstrationTokens { flat: [x, c, y].concat().into() }
    }

    /// x ++ c ++ y, 3 d values.
    pub fn flat(&self) -> &[f32] {
        &self.flat
    }
}

/// What a query needs to know of an ordered list of demonstrations: their keys and values.
/// 2 · 2 · 3 k · d values, 6 KiB at k = 4 and d = 32.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// 3 k.
    tokens: usize,
    layers: [KeysValues; LAYERS],
}

impl Prefix {
    /// How many demonstrations it stands for.
    pub fn demonstrations(&self) -> usize {
        self.tokens / 3
    }

    /// A layer's keys.
    #[cfg(test)]
    pub(super) fn keys(&self, layer: usize) -> &[f32] {
        &self.layers[layer].keys
    }
}

/// Keys (already turned) and values of one layer, each [tokens, d].
#[derive(Clone, Debug, Default, PartialEq)]
struct KeysValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) w1: Linear,
    pub(super) w3: Linear,
    pub(super) w2: Linear,
}

/// The layers and the final norm.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    d: usize,
    layers: [Layer; LAYERS],
    norm: Vec<f32>,
    rotary: Rotary,
    /// 1 / sqrt(head width).
    scale: f32,
}

/// Work space for a number of rows, so that a batch allocates once.
struct Work {
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    out: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Softmax weights of one head.
    attention: Vec<f32>,
}

impl Work {
    fn new(rows: usize, d: usize, ffn: usize) -> Self {
        let wide = || vec![0.0; rows * d];
        Work {
            normed: wide(),
            q: wide(),
            k: wide(),
            v: wide(),
            mixed: wide(),
            out: wide(),
            gate: vec![0.0; rows * ffn],
            up: vec![0.0; rows * ffn],
            attention: Vec::new(),
        }
    }
}

/// Queries that are decoded together. Only speed depends on it.
const QUERIES: usize = 16;

impl Decoder {
    pub(super) fn new(d: usize, layers: [Layer; LAYERS], norm: Vec<f32>) -> Self {
        let width = d / HEADS;
        let rotary = Rotary::new(width, 3 * MAX_DEMONSTRATIONS + 1);
        Decoder { d, layers, norm, rotary, scale: 1.0 / (width as f32).sqrt() }
    }

    /// Keys and values of an ordered list of demonstrations.
    pub(super) fn prefix<T: Borrow<DemonstrationTokens>>(&self, demonstrations: &[T]) -> Prefix {
        assert!(
            demonstrations.len() <= MAX_DEMONSTRATIONS,
            "a vector stands on at most {MAX_DEMONSTRATIONS} demonstrations"
        );
        let tokens = 3 * demonstrations.len();
        let mut rows = Vec::with_capacity(tokens * self.d);
        for demonstration in demonstrations {
            rows.extend_from_slice(demonstration.borrow().flat());
        }
        assert_eq!(rows.len(), tokens * self.d, "tokens come from weights of the same width");
        let mut work = Work::new(tokens, self.d, self.layers[0].w1.outputs());
        let mut kept: [KeysValues; LAYERS] = Default::default();
        let last = LAYERS - 1;
        for (l, (layer, kept)) in self.layers.iter().zip(&mut kept).enumerate() {
            rms_norm(&rows, &layer.attention_norm, &mut work.normed);
            layer.k.apply(&work.normed, &mut work.k);
            layer.v.apply(&work.normed, &mut work.v);
            for (position, k) in work.k.chunks_exact_mut(self.d).enumerate() {
                self.rotary.turn(k, position);
            }
            *kept = KeysValues { keys: work.k.clone(), values: work.v.clone() };
            if l == last {
                break;
            }
            layer.q.apply(&work.normed, &mut work.q);
            for position in 0..tokens {
                let own = position * self.d..(position + 1) * self.d;
                self.rotary.turn(&mut work.q[own.clone()], position);
                self.attend(
                    &work.q[own.clone()],
                    [&work.k[..own.start], &work.v[..own.start]],
                    [&work.k[own.clone()], &work.v[own.clone()]],
                    &mut work.attention,
                    &mut work.mixed[own],
                );
            }
            finish(layer, &mut rows, &mut work);
        }
        Prefix { tokens, layers: kept }
    }

    /// The vectors of some queries, each after its own prefix; `out` is [queries, d].
    pub(super) fn decode<Q: AsRef<[f32]>>(&self, queries: &[(&Prefix, Q)], out: &mut [f32]) {
        let chunk = queries.len().clamp(1, QUERIES);
        let mut work = Work::new(chunk, self.d, self.layers[0].w1.outputs());
        for (queries, out) in queries.chunks(chunk).zip(out.chunks_mut(chunk * self.d)) {
            if queries.len() < chunk {
                work = Work::new(queries.len(), self.d, self.layers[0].w1.outputs());
            }
            self.decode_chunk(queries, &mut work, out);
        }
    }

    fn decode_chunk<Q: AsRef<[f32]>>(&self, queries: &[(&Prefix, Q)], work: &mut Work, out: &mut [f32]) {
        let mut rows = Vec::with_capacity(queries.len() * self.d);
        for (_, x) in queries {
            assert_eq!(x.as_ref().len(), self.d, "a query token comes from weights of the same width");
            rows.extend_from_slice(x.as_ref());
        }
        for (l, layer) in self.layers.iter().enumerate() {
            rms_norm(&rows, &layer.attention_norm, &mut work.normed);
            layer.q.apply(&work.normed, &mut work.q);
            layer.k.apply(&work.normed, &mut work.k);
            layer.v.apply(&work.normed, &mut work.v);
            for (r, (prefix, _)) in queries.iter().enumerate() {
                let own = r * self.d..(r + 1) * self.d;
                self.rotary.turn(&mut work.q[own.clone()], prefix.tokens);
                self.rotary.turn(&mut work.k[own.clone()], prefix.tokens);
                let before = &prefix.layers[l];
                self.attend(
                    &work.q[own.clone()],
                    [&before.keys, &before.values],
                    [&work.k[own.clone()], &work.v[own.clone()]],
                    &mut work.attention,
                    &mut work.mixed[own],
                );
            }
            finish(layer, &mut rows, work);
        }
        rms_norm(&rows, &self.norm, out);
    }

    /// Attention of one row over the rows before it and itself, head by head.
    fn attend(
        &self,
        q: &[f32],
        [keys, values]: [&[f32]; 2],
        [own_key, own_value]: [&[f32]; 2],
        weights: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let d = self.d;
        let width = d / HEADS;
        for head in 0..HEADS {
            let part = head * width..(head + 1) * width;
            let q = &q[part.clone()];
            let rows = keys.chunks_exact(d).chain(std::iter::once(own_key));
            weights.clear();
            weights.extend(rows.map(|key| dot(q, &key[part.clone()]) * self.scale));
            let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - largest);
            }
            let mut total = 0.0;
            for weight in weights.iter() {
                total += weight;
            }
            let out = &mut out[part.clone()];
            out.fill(0.0);
            let rows = values.chunks_exact(d).chain(std::iter::once(own_value));
            for (weight, value) in weights.iter().zip(rows) {
                let weight = weight / total;
                for (out, value) in out.iter_mut().zip(&value[part.clone()]) {
                    *out += weight * value;
                }
            }
        }
    }
}

/// The part of a layer behind attention, for all rows.
fn finish(layer: &Layer, rows: &mut [f32], work: &mut Work) {
    layer.o.apply(&work.mixed, &mut work.out);
    add(rows, &work.out);
    rms_norm(rows, &layer.ffn_norm, &mut work.normed);
    layer.w1.apply(&work.normed, &mut work.gate);
    layer.w3.apply(&work.normed, &mut work.up);
    silu_times(&mut work.gate, &work.up);
    layer.w2.apply(&work.gate, &mut work.out);
    add(rows, &work.out);
}
