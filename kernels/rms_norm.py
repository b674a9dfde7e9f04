"""RMS normalisation: every vector brought to one size."""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import dot
from kernels.runtime import Kernel, check_shapes, compute, jit

ROWS = 64  # that are summed by one thread: w̄ is added up the same way by any number of threads


def definition(x, w, eps=1e-6):
    """z = w·x·r,  r = 1/√(mean x² + ε) over the last axis.  x (…,D), w (D,)"""
    return w * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


@jit
def _forward(start, stop, eps, x, w, z, r):
    D = x.shape[1]
    for i in range(start, stop):
        scale = x.dtype.type(1 / math.sqrt(dot(x[i], x[i]) / D + eps))
        for j in range(D):
            z[i, j] = w[j] * x[i, j] * scale
        r[i] = scale


@jit
def _backward(start, stop, x, w, r, z_bar, x_bar, w_parts):
    """x̄ = r(wz̄ − x r² mean(wz̄x)),  w̄ = Σ z̄ x r"""
    R, D = x.shape
    for part in range(start, stop):
        for j in range(D):
            w_parts[part, j] = 0
        for i in range(part * ROWS, min(part * ROWS + ROWS, R)):
            for j in range(D):
                x_bar[i, j] = w[j] * z_bar[i, j]
            shrink = x.dtype.type(dot(x_bar[i], x[i]) * r[i] * r[i] / D)
            for j in range(D):
                x_bar[i, j] = r[i] * (x_bar[i, j] - x[i, j] * shrink)
                w_parts[part, j] += z_bar[i, j] * x[i, j] * r[i]


def forward(x, w, eps=1e-6):
    check_shapes(w=(w, x.shape[-1:]))
    rows = x.reshape(-1, len(w))  # (R,D)
    z, r = compute(_forward, len(rows), [rows, w], rows.shape, len(rows), before=(eps,))
    return z.reshape(x.shape), (x, w, r)


def backward(kept, z_bar):
    x, w, r = kept
    check_shapes(z_bar=(z_bar, x.shape))
    inputs, parts = [x.reshape(-1, len(w)), w, r, z_bar.reshape(-1, len(w))], -(-r.size // ROWS)
    x_bar, w_parts = compute(_backward, parts, inputs, inputs[0].shape, (parts, len(w)))
    return x_bar.reshape(x.shape), w_parts.sum(0)


rms_norm = Kernel(definition, forward, backward, loop=_forward)
