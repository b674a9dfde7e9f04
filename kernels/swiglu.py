"""SwiGLU: one half of a hidden layer opens and closes the other, by x·sigmoid(x) [Shazeer 2020]."""

from __future__ import annotations

import numpy as np

from kernels.lanes import exp
from kernels.runtime import Kernel, check_shapes, compute, jit


def definition(x, y):
    """z = y·x/(1 + e^−x).  x, y of one shape"""
    return y * (x * (0.5 * (1 + np.tanh(0.5 * x))))


FLAT = -709  # below it x/(1 + e^−x) is 0: x must not grow where e^−x does so no longer


@jit
def _forward(start, stop, x, y, z):
    one, least = x.dtype.type(1), x.dtype.type(FLAT)
    x, y, z = x[start:stop], y[start:stop], z[start:stop]
    for i in range(len(x)):
        a = least if x[i] < least and x[i] - x[i] == 0 else x[i]  # −∞ is not hidden
        z[i] = y[i] * (a / (one + exp(-a)))


@jit
def _backward(start, stop, x, y, z_bar, x_bar, y_bar):
    """x̄ = z̄ y p(1 + x(1 − p)),  ȳ = z̄ x p,  p = 1/(1 + e^−x)"""
    one, least = x.dtype.type(1), x.dtype.type(FLAT)
    x, y, z_bar, x_bar, y_bar = x[start:stop], y[start:stop], z_bar[start:stop], x_bar[start:stop], y_bar[start:stop]
    for i in range(len(x)):
        a = least if x[i] < least and x[i] - x[i] == 0 else x[i]  # −∞ is not hidden
        p = one / (one + exp(-a))
        x_bar[i] = z_bar[i] * y[i] * p * (one + a * (one - p))
        y_bar[i] = z_bar[i] * a * p


def forward(x, y):
    check_shapes(y=(y, x.shape))
    return compute(_forward, x.size, [x.reshape(-1), y.reshape(-1)], x.size)[0].reshape(x.shape), (x, y)


def backward(kept, z_bar):
    x, y = kept
    check_shapes(z_bar=(z_bar, x.shape))
    bars = compute(_backward, x.size, [a.reshape(-1) for a in (x, y, z_bar)], x.size, x.size)
    return [bar.reshape(x.shape) for bar in bars]


swiglu = Kernel(definition, forward, backward, loop=_forward)
