"""What a chunk of self-modifying Titans is computed with: products of small matrices, and loops over their numbers.

Definitions: NumPy's `@`, `.T` and broadcasting; `autograd.normalize`, `rms_normalize` and `silu`.

Tokens are columns, (F,n), filled up to a multiple of TILE/2, so that they lie side by side in wide registers. Every
product is C += A B: numbers of A times rows of B. Loops are written out, for NumPy's words take longer to compile.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.lanes import ROWS, TILE, any_layout, exp, load_at, plus, store_at, zero_half, zero_tile
from kernels.runtime import inner
from kernels.transpose import transpose

# Products ----------------------------------------------------------------------------------------------------


@inner
def matmul(C, A, B, fresh, triangle):
    """C = A B or C += A B: ROWS rows of A by TILE columns of B at a time, in registers.

    triangle: of B nothing is read below (1) or above (−1) its diagonal blocks, where it is zero; 0: all is.
    """
    n, tile, half = B.shape[1], zero_tile(C), zero_half(C)
    for j in range(0, n - n % TILE, TILE):
        columns(C, A, B, fresh, triangle, j, TILE, tile)
    for j in range(n - n % TILE, n - n % (TILE // 2), TILE // 2):  # of a narrow head
        columns(C, A, B, fresh, triangle, j, TILE // 2, half)
    if n % (TILE // 2):
        for i in range(len(A)):
            for j in range(n - n % (TILE // 2), n):
                sum = C.dtype.type(0) if fresh else C[i, j]
                for p in range(len(B)):
                    sum += A[i, p] * B[p, j]
                C[i, j] = sum


@inner
def columns(C, A, B, fresh, triangle, j, width, zeros):
    """So many columns of C, from j on"""
    m, k = A.shape
    first, end = np.uint64(j if triangle < 0 else 0), np.uint64(min(k, j + width) if triangle > 0 else k)
    for i in range(0, m - ROWS + 1, ROWS):  # with no sign, p is not looked at as one that may count from the end
        c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = zeros
        if not fresh:
            c0, c1 = load_at(zeros, C, i, j), load_at(zeros, C, i + 1, j)
            c2, c3 = load_at(zeros, C, i + 2, j), load_at(zeros, C, i + 3, j)
            if ROWS == 8:
                c4, c5 = load_at(zeros, C, i + 4, j), load_at(zeros, C, i + 5, j)
                c6, c7 = load_at(zeros, C, i + 6, j), load_at(zeros, C, i + 7, j)
        for p in range(first, end):
            b = load_at(zeros, B, p, j)
            c0, c1 = plus(c0, A[i, p], b), plus(c1, A[i + 1, p], b)
            c2, c3 = plus(c2, A[i + 2, p], b), plus(c3, A[i + 3, p], b)
            if ROWS == 8:
                c4, c5 = plus(c4, A[i + 4, p], b), plus(c5, A[i + 5, p], b)
                c6, c7 = plus(c6, A[i + 6, p], b), plus(c7, A[i + 7, p], b)
        store_at(C, i, j, c0), store_at(C, i + 1, j, c1), store_at(C, i + 2, j, c2), store_at(C, i + 3, j, c3)
        if ROWS == 8:
            store_at(C, i + 4, j, c4), store_at(C, i + 5, j, c5), store_at(C, i + 6, j, c6), store_at(C, i + 7, j, c7)
    for i in range(m - m % ROWS, m):
        c0 = zeros if fresh else load_at(zeros, C, i, j)
        for p in range(first, end):
            c0 = plus(c0, A[i, p], load_at(zeros, B, p, j))
        store_at(C, i, j, c0)


@inner
def add_product(C, A, B, triangle=0):
    """C += A B"""
    matmul(any_layout(C), any_layout(A), any_layout(B), 0, np.int64(triangle))


@inner
def product(A, B, triangle=0):
    """A B"""
    C = np.empty((A.shape[0], B.shape[1]), B.dtype)
    matmul(any_layout(C), any_layout(A), any_layout(B), 1, np.int64(triangle))
    return C


@inner
def transposed(x):
    """xᵀ laid out anew"""
    y = np.empty(x.shape[::-1], x.dtype)
    transpose(x, y)
    return y


@inner
def lay_tokens(x, y):
    """y (n,d) = xᵀ, but for the tokens that only filled x up"""
    if len(y) == x.shape[1]:
        transpose(x, y)
    else:
        for t in range(len(y)):
            for i in range(len(x)):
                y[t, i] = x[i, t]


@inner
def padded(x):
    """Tokens (n,d), filled up with zeros (width,d); and the same feature by token"""
    wide = np.zeros((len(x) + -len(x) % (TILE // 2), x.shape[1]), x.dtype)
    accumulate(wide, x)
    return wide, transposed(wide)


# Element by element ------------------------------------------------------------------------------------------


@inner
def accumulate(y, x):
    """y[:len(x)] += x"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] += x[i, t]


@inner
def added(x, y):
    """x + y"""
    z = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            z[i, t] = x[i, t] + y[i, t]
    return z


@inner
def subtracted(x, y):
    """x − y"""
    z = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            z[i, t] = x[i, t] - y[i, t]
    return z


@inner
def negative(x):
    """−x"""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] = -x[i, t]
    return y


@inner
def tanh(x):
    """tanh x"""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] = math.tanh(x[i, t])
    return y


@inner
def tanh_backward(y, y_bar):
    """x̄ = ȳ(1 − y²)"""
    x_bar, one = np.empty_like(y), y.dtype.type(1)
    for i in range(y.shape[0]):
        for t in range(y.shape[1]):
            x_bar[i, t] = (one - y[i, t] * y[i, t]) * y_bar[i, t]
    return x_bar


@inner
def mask(x, ratio):
    """x ← ratio·x"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] *= ratio[i, t]


@inner
def masked(x, ratio):
    """ratio·x"""
    y = x.copy()
    mask(y, ratio)
    return y


# Token by token ----------------------------------------------------------------------------------------------


@inner
def by_token(x, scale):
    """x_t·scale_t"""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[i, t] = x[i, t] * scale[t]
    return y


@inner
def scale_tokens(x, scale):
    """x_t ← x_t·scale_t"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] *= scale[t]


@inner
def add_dots(dots, x, y):
    """dots_t += x_t·y_t"""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            dots[t] += x[i, t] * y[i, t]


@inner
def dots_of(x, y):
    """x_t·y_t"""
    dots = np.zeros(x.shape[1], x.dtype)
    add_dots(dots, x, y)
    return dots


@inner
def normalized(x, m, eps):
    """y = x r,  r = 1/√(m Σx² + ε) for every token"""
    r = dots_of(x, x)
    for t in range(len(r)):
        r[t] = 1 / math.sqrt(m * r[t] + eps)
    return by_token(x, r), r


@inner
def normalized_backward(y, r, m, y_bar):
    """x̄ = r(ȳ − y m Σȳy)"""
    x_bar, dots, m = np.empty_like(y), dots_of(y, y_bar), y.dtype.type(m)
    for i in range(y.shape[0]):
        for t in range(y.shape[1]):
            x_bar[i, t] = r[t] * (y_bar[i, t] - y[i, t] * m * dots[t])
    return x_bar


@inner
def silu(x):
    """s = σ(x) and y = x s, which takes the place of x"""
    s, one = np.empty_like(x), x.dtype.type(1)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            s[i, t] = one / (one + exp(-x[i, t]))
            x[i, t] *= s[i, t]
    return s, x


@inner
def times_slope(g, s, y):
    """g(s + y(1 − s)), the slope of SiLU"""
    z, one = np.empty_like(g), g.dtype.type(1)
    for i in range(g.shape[0]):
        for t in range(g.shape[1]):
            z[i, t] = g[i, t] * (s[i, t] + y[i, t] * (one - s[i, t]))
    return z
