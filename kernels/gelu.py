"""GELU, in the form with tanh (CHOICE: NumPy has no erf)."""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import exp
from kernels.runtime import Kernel, check_shapes, compute, jit


def definition(x):
    """z = ½x(1 + tanh s),  s = √(2/π)(x + 0.044715 x³)"""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


S1 = 2 * math.sqrt(2 / math.pi)
S3 = 0.044715 * S1
FLAT = 22  # beyond this GELU is 0 or x to the last digit: x³ must not grow where e^−2s does so no longer


@jit
def _forward(start, stop, x, z):
    """½(1 + tanh s) = 1/(1 + e^−2s), 2s = s₁x + s₃x³: no tanh, and no digits lost where it is near −1"""
    number = x.dtype.type
    one, s1, s3, least = number(1), number(S1), number(S3), number(-FLAT)
    x, z = x[start:stop], z[start:stop]
    for i in range(len(x)):  # from 0 on: the compiler need not think of indices below it
        y = least if x[i] < least and x[i] - x[i] == 0 else x[i]  # −∞ is not hidden
        z[i] = y / (one + exp(-y * (s1 + s3 * y * y)))


@jit
def _backward(start, stop, x, z_bar, x_bar):
    """x̄ = z̄(p + x p(1 − p)(s₁ + 3s₃x²)),  p = 1/(1 + e^−2s)"""
    number = x.dtype.type
    one, s1, s3, least, most = number(1), number(S1), number(S3), number(-FLAT), number(FLAT)
    x, z_bar, x_bar = x[start:stop], z_bar[start:stop], x_bar[start:stop]
    for i in range(len(x)):
        y = x[i] if x[i] - x[i] != 0 else min(max(x[i], least), most)
        p = one / (one + exp(-y * (s1 + s3 * y * y)))
        x_bar[i] = z_bar[i] * (p + y * p * (one - p) * (s1 + (s3 + s3 + s3) * y * y))


def forward(x):
    return compute(_forward, x.size, [x.reshape(-1)], x.size)[0].reshape(x.shape), x


def backward(x, z_bar):
    check_shapes(z_bar=(z_bar, x.shape))
    return (compute(_backward, x.size, [x.reshape(-1), z_bar.reshape(-1)], x.size)[0].reshape(x.shape),)


gelu = Kernel(definition, forward, backward, loop=_forward)
