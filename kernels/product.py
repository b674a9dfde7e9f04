"""Products of matrices: BLAS has one thread here (train.py), so large ones are dealt out by rows."""

from __future__ import annotations

import numpy as np

from kernels.lanes import LANES, TILE, dot, lane, lane_sums, load, load_like, plus, store, totals, zero
from kernels.runtime import JIT, inner, jit, split

LARGE = 2**24  # multiplications
TOGETHER = 48  # rows: BLAS takes 4, 12 or 16 at a time, and adds up in another order what is left over
NEAR = 16  # rows of a weight that stay in the nearest cache while rows of a batch go by


def product(a, b):
    """a @ b.  (n,k), (k,m)

    A single row meets the rows of bᵀ in a loop of ours, for BLAS reads weights at half the speed of the cache.
    """
    if not isinstance(a, np.ndarray) or a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b):
        return a @ b
    plain = JIT and a.dtype == b.dtype and a.dtype in (np.float32, np.float64) and a.flags.carray
    if len(a) == 1 and plain and b.T.flags.carray:
        z = np.zeros((1, b.shape[1]), b.dtype)
        split(dot_rows, b.shape[1], b.size // 16, b.T, a[0], z[0])  # sixteen products at a time
        return z
    work = a.size * b.shape[-1]
    if work < LARGE:
        return a @ b
    z, blocks = np.empty((len(a), b.shape[1]), np.result_type(a, b)), max(len(a) // TOGETHER, 1)

    def rows(start: int, stop: int) -> None:
        at = slice(TOGETHER * start, TOGETHER * stop if stop < blocks else None)
        np.matmul(a[at], b, out=z[at])
    split(rows, blocks, work)
    return z


@jit
def dot_rows(start, stop, A, x, z):
    """z += A x, some of its rows: one row after another is read, the lanes of four are added up side by side"""
    whole = len(x) - len(x) % LANES
    for i in range(start, stop - 3, 4):
        s0, s1, s2, s3 = lane_sums(A[i], x), lane_sums(A[i + 1], x), lane_sums(A[i + 2], x), lane_sums(A[i + 3], x)
        t, one = totals(s0, s1, s2, s3), z.dtype.type(1)
        if whole < len(x):  # most rows have nothing left over, and need not be asked
            t0, t1, t2, t3 = lane(t, 0), lane(t, 1), lane(t, 2), lane(t, 3)
            for j in range(whole, len(x)):
                t0, t1 = t0 + A[i, j] * x[j], t1 + A[i + 1, j] * x[j]
                t2, t3 = t2 + A[i + 2, j] * x[j], t3 + A[i + 3, j] * x[j]
            z[i], z[i + 1], z[i + 2], z[i + 3] = z[i] + t0, z[i + 1] + t1, z[i + 2] + t2, z[i + 3] + t3
        else:
            store(z, i, plus(t, one, load_like(t, z, i)))
    for i in range(stop - (stop - start) % 4, stop):
        z[i] += dot(A[i], x)


@jit
def dot_rows_of_each(start, stop, A, X, Z):
    """Z += X Aᵀ, some of its columns: what `dot_rows` gives for every row of X, bit by bit

    Four rows of A meet two of X, or one of A three, so that each number read serves several sums: as many as there are
    registers for.
    """
    n, together = X.shape[1], 2 if TILE == LANES else 3
    grouped = len(X) - len(X) % together if n % LANES == 0 else 0
    for i in range(start, stop, NEAR):
        end = min(i + NEAR, stop)
        last = end - (end - i) % 4 if TILE == LANES else end
        for b in range(0, grouped, together):
            if TILE == LANES:
                dot_fours_of_two(i, last, n, A, X, b, Z)
            else:
                dot_rows_of_three(i, last, n, A, X, b, Z)
        for b in range(0 if last < end else grouped, len(X)):
            dot_rows(last if b < grouped else i, end, A, X[b], Z[b])


@inner
def dot_fours_of_two(start, stop, n, A, X, b, Z):
    """… of two of the rows"""
    for i in range(start, stop, 4):
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero(Z)
        for j in range(0, n, LANES):
            x, y = load(X[b], j), load(X[b + 1], j)
            a, c = load(A[i], j), load(A[i + 1], j)
            s0, t0, s1, t1 = plus(s0, a, x), plus(t0, a, y), plus(s1, c, x), plus(t1, c, y)
            a, c = load(A[i + 2], j), load(A[i + 3], j)
            s2, t2, s3, t3 = plus(s2, a, x), plus(t2, a, y), plus(s3, c, x), plus(t3, c, y)
        s, t, one = totals(s0, s1, s2, s3), totals(t0, t1, t2, t3), Z.dtype.type(1)
        store(Z[b], i, plus(s, one, load_like(s, Z[b], i)))
        store(Z[b + 1], i, plus(t, one, load_like(t, Z[b + 1], i)))


@inner
def dot_rows_of_three(start, stop, n, A, X, b, Z):
    """… of three of the rows"""
    for i in range(start, stop):
        r = s = t = zero(Z)
        for j in range(0, n, LANES):
            a = load(A[i], j)
            r, s, t = plus(r, a, load(X[b], j)), plus(s, a, load(X[b + 1], j)), plus(t, a, load(X[b + 2], j))
        found = totals(r, s, t, t)
        Z[b, i] += lane(found, 0)
        Z[b + 1, i] += lane(found, 1)
        Z[b + 2, i] += lane(found, 2)
