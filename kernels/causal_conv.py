"""A short causal filter on every channel."""

from __future__ import annotations

import numpy as np

from kernels.runtime import Kernel, check_shapes, compute, jit


def definition(x, tail, w):
    """z_t = Σ_i w_i x_{t−i}, every channel by itself; the tail holds the W−1 inputs before x_1.

    x (B,T,D), tail (B,W−1,D), w (W,D) → z (B,T,D), next tail (B,W−1,D)
    """
    T, last = x.shape[1], len(w) - 1
    past = np.concatenate([tail, x], axis=1)  # (B,W−1+T,D)
    z = w[0] * past[:, last:]
    for i in range(1, last + 1):
        z = z + w[i] * past[:, last - i:last - i + T]
    return z, following(x, tail)


def following(x, tail):
    """The next tail, which does not hold on to x"""
    T, last = x.shape[1], tail.shape[1]
    return np.concatenate([tail[:, T:], x[:, max(T - last, 0):]], axis=1)


@jit
def _forward(start, stop, past, w, z):
    _, T, D = z.shape
    for n in range(start, stop):
        for t in range(T):
            for d in range(D):
                z[n, t, d] = 0
            for i in range(len(w)):
                for d in range(D):
                    z[n, t, d] += w[i, d] * past[n, t + len(w) - 1 - i, d]


@jit
def _backward(start, stop, past, w, z_bar, next_bar, past_bar, w_parts):
    """x̄_s = Σ_i w_i z̄_{s+i} (and what the next tail asks for; likewise the tail),  w̄_i = Σ_t z̄_t x_{t−i}"""
    (_, T, D), last = z_bar.shape, len(w) - 1
    for n in range(start, stop):  # w_bar of every sequence by itself, added up afterwards
        for i in range(last + 1):
            for d in range(D):
                w_parts[n, i, d] = 0
        for s in range(last + T):
            for d in range(D):
                past_bar[n, s, d] = next_bar[n, s - T, d] if s >= T else 0
            for i in range(max(0, last - s), min(last + 1, last - s + T)):
                for d in range(D):
                    past_bar[n, s, d] += w[i, d] * z_bar[n, s - last + i, d]
                    w_parts[n, i, d] += past[n, s, d] * z_bar[n, s - last + i, d]


def forward(x, tail, w):
    check_shapes(tail=(tail, (len(x), len(w) - 1, x.shape[2])), w=(w, (len(w), x.shape[2])))
    past = np.concatenate([tail, x], 1)
    return (compute(_forward, len(x), [past, w], x.shape)[0], following(x, tail)), (past, w)


def backward(kept, z_bar, next_bar):
    past, w = kept
    (B, _, D), last = past.shape, len(w) - 1
    check_shapes(z_bar=(z_bar, (B, past.shape[1] - last, D)), next_bar=(next_bar, (B, last, D)))
    past_bar, w_parts = compute(_backward, B, [past, w, z_bar, next_bar], past.shape, (B, *w.shape))
    return past_bar[:, last:], past_bar[:, :last], w_parts.sum(0)


causal_conv = Kernel(definition, forward, backward, loop=_forward)
