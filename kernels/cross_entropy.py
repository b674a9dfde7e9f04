"""Softmax cross-entropy, of every token by itself."""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import LANES, exp, highest, larger, load, minus, plus, spread, zero
from kernels.lanes import total as lanes_total
from kernels.runtime import Kernel, check_shapes, compute, constant, jit


def definition(logits, targets, ignore_index=-100):
    """z = log Σ e^logits − logits[target], in nats; 0 where target = ignore_index.

    logits (…,V), integer targets (…) → z (…). The largest logit is subtracted first: no digit is lost however large
    they are. Raises ValueError on a target that is neither ignore_index nor in 0..V−1.
    """
    label, counted = labels(logits, targets, ignore_index)
    x = logits - constant(np.max(logits, axis=-1, keepdims=True))
    chosen = np.take_along_axis(x, label[..., None], axis=-1)[..., 0]
    return np.where(counted, np.log(np.sum(np.exp(x), axis=-1)) - chosen, 0.0)


def labels(logits, targets, ignore_index):
    """Where each loss is read (0 where it is ignored), and whether it counts."""
    check_shapes(targets=(targets, logits.shape[:-1]))
    counted = targets != ignore_index
    label = np.where(counted, targets, 0)
    if label.dtype.kind not in "biu":
        raise ValueError(f"targets are of type {label.dtype}; they must be whole numbers")
    known = isinstance(label, np.ndarray)  # to look at what lies on a GPU would be to wait for it
    if known and label.size and not 0 <= label.min() <= label.max() < logits.shape[-1]:
        raise ValueError(f"targets must lie in 0..{logits.shape[-1] - 1} or be ignore_index={ignore_index}; "
                         f"found {label.min()}..{label.max()}")
    return label, counted


@jit
def _forward(start, stop, label, counted, logits, z, top, total):
    """total = log Σ e^(logits − top)"""
    V, one = logits.shape[1], logits.dtype.type(1)
    whole = V - V % LANES
    for i in range(start, stop):
        x = logits[i]
        most, sum = x[0], one - one
        if whole:
            tops, sums = load(x, 0), zero(x)
            for j in range(LANES, whole, LANES):
                tops = larger(tops, load(x, j))
            most = highest(tops)
        for j in range(whole, V):
            most = max(most, x[j])
        if whole:
            for j in range(0, whole, LANES):
                sums = plus(sums, one, exp(minus(load(x, j), spread(most))))
            sum = lanes_total(sums)
        for j in range(whole, V):
            sum += exp(x[j] - most)
        top[i], total[i] = most, math.log(sum)
        z[i] = total[i] - (x[label[i]] - most) if counted[i] else 0


@jit
def _backward(start, stop, label, logits, top, total, scale, logits_bar):
    """logits‾ = z̄(softmax − onehot(target)), 0 where target = ignore_index"""
    V = logits.shape[1]
    for i in range(start, stop):
        for j in range(V):
            logits_bar[i, j] = scale[i] * exp((logits[i, j] - top[i]) - total[i])
        logits_bar[i, label[i]] -= scale[i]


def forward(logits, targets, ignore_index=-100):
    label, counted = labels(logits, targets, ignore_index)
    before, n = (label.reshape(-1).astype(np.int64), counted.reshape(-1)), label.size
    z, top, total = compute(_forward, n, [logits.reshape(-1, logits.shape[-1])], n, n, n, before=before)
    return z.reshape(label.shape), (logits, *before, top, total)


def backward(kept, z_bar):
    logits, label, counted, top, total = kept
    check_shapes(z_bar=(z_bar, logits.shape[:-1]))
    rows = logits.reshape(-1, logits.shape[-1])
    inputs = [rows, top, total, np.where(counted, z_bar.reshape(-1), 0)]
    return (compute(_backward, label.size, inputs, rows.shape, before=(label,))[0].reshape(logits.shape),)


cross_entropy = Kernel(definition, forward, backward)
