"""AdamW: one step, in place."""

from __future__ import annotations

import numpy as np

from kernels.runtime import Kernel, check_shapes, jit, split


def definition(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step):
    """One step in place on p, m and v; `step` counts from 1.

        m ← β₁m + (1 − β₁)g,    v ← β₂v + (1 − β₂)g²,    m̂ = m/(1 − β₁ᵗ),    v̂ = v/(1 − β₂ᵗ)
        p ← (1 − lr·weight_decay) p − lr m̂/(√v̂ + ε)
    """
    beta1, rate1, beta2, rate2, keep, lr, unbias, eps = numbers(p.dtype, lr, beta1, beta2, eps, weight_decay, step)
    m *= beta1
    m += rate1 * g
    v *= beta2
    v += rate2 * (g * g)
    p *= keep
    p -= lr * m / (np.sqrt(v * unbias) + eps)


def numbers(dtype, lr, beta1, beta2, eps, weight_decay, step):
    """β₁, 1 − β₁, β₂, 1 − β₂, 1 − lr·weight_decay, lr/(1 − β₁ᵗ), 1/(1 − β₂ᵗ), ε.

    β as the precision of the arrays has it, so that β and 1 − β are 1 there, too: an average of equal numbers is
    that number.
    """
    beta1, beta2 = float(dtype.type(beta1)), float(dtype.type(beta2))
    return (beta1, 1 - beta1, beta2, 1 - beta2, 1 - lr * weight_decay, lr / (1 - beta1**step),
            1 / (1 - beta2**step), eps)


@jit
def _step(start, stop, beta1, rate1, beta2, rate2, keep, lr, unbias, eps, g, p, m, v):
    p, g, m, v = p[start:stop], g[start:stop], m[start:stop], v[start:stop]
    for i in range(len(p)):
        m[i] = beta1 * m[i] + rate1 * g[i]
        v[i] = beta2 * v[i] + rate2 * (g[i] * g[i])
        p[i] = keep * p[i] - lr * m[i] / (np.sqrt(v[i] * unbias) + eps)


def forward(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step):
    if not all(x.flags.carray and x.dtype == p.dtype for x in (p, m, v)):
        return NotImplemented  # they are changed where they lie
    check_shapes(g=(g, p.shape), m=(m, p.shape), v=(v, p.shape))
    settings = map(p.dtype.type, numbers(p.dtype, lr, beta1, beta2, eps, weight_decay, step))
    g = np.require(g, p.dtype, ["C", "A", "W"])
    split(_step, p.size, p.size, *settings, *(x.reshape(-1) for x in (g, p, m, v)))
    return None, None


adamw = Kernel(definition, forward)
