"""Matrix products of float32 arrays in fewer bits, added up in float32: what `@` means on a card once it is asked for.

    use("tf32", cupy.ndarray)       # of every number 10 bits behind the point, by the card's tensor cores
    use("bfloat16", cupy.ndarray)   # 7 bits; twice as fast, and half as much to read
    use("float32", cupy.ndarray)    # CuPy's own again: all 23

One call of cuBLAS multiplies a whole batch. Arrays of other precisions, vectors, and the kernels of kernels.cu stay
as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpu import kernels

Array = Any
ORIGINAL: dict[type, Callable] = {}  # what `@` was, by array type


def use(precision: str, array_type: type) -> None:
    """Let `a @ b` of such arrays be computed in float32, tf32 or bfloat16, until told otherwise."""
    plain = ORIGINAL.setdefault(array_type, array_type.__matmul__)  # type: ignore[attr-defined]

    def matmul(a: Array, b: Array) -> Array:
        both = isinstance(b, array_type) and a.dtype == b.dtype == np.float32 and min(a.ndim, b.ndim) > 1
        return product(a, b, precision) if both else plain(a, b)
    array_type.__matmul__ = plain if precision == "float32" else matmul  # type: ignore[attr-defined]


def product(a: Array, b: Array, precision: str) -> Array:
    """a @ b of float32, of at least two axes each; the others broadcast.  (…,n,k), (…,k,m) → (…,n,m)"""
    (n, k), m = a.shape[-2:], b.shape[-1]
    if k != b.shape[-2]:
        raise ValueError(f"shapes {a.shape} and {b.shape} do not fit: {k} columns, {b.shape[-2]} rows")
    if a.ndim > 2 and b.ndim == 2:  # one product, not many
        return np.reshape(product(np.reshape(a, (-1, k)), b, precision), (*a.shape[:-1], m))
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    count = math.prod(lead)
    if not count * n * k * m:
        return np.zeros_like(a, order="C", shape=(*lead, n, m))
    y = np.empty_like(a, order="C", shape=(*lead, n, m))
    (a, a_turned, a_step), (b, b_turned, b_step) = (laid(x, lead, precision == "bfloat16") for x in (a, b))
    # cuBLAS counts down columns: it sees every matrix transposed, and yᵀ = bᵀ aᵀ
    blas, handle, single, half = library()
    kind, how = {"tf32": (single, blas.CUBLAS_COMPUTE_32F_FAST_TF32), "bfloat16": (half, blas.CUBLAS_COMPUTE_32F)
                 }[precision]
    turn = {False: blas.CUBLAS_OP_N, True: blas.CUBLAS_OP_T}
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)  # y ← 1·ab + 0·y, from the host
    blas.gemmStridedBatchedEx(
        handle, turn[b_turned], turn[a_turned], m, n, k, one.ctypes.data,
        b.data.ptr, kind, k if b_turned else m, b_step, a.data.ptr, kind, n if a_turned else k, a_step,
        zero.ctypes.data, y.data.ptr, single, m, n * m, count, how, blas.CUBLAS_GEMM_DEFAULT)
    return y


def laid(x: Array, lead: tuple[int, ...], half: bool) -> tuple[Array, bool, int]:
    """x as cuBLAS takes it: in one piece, whether that is transposed, and the step from matrix to matrix."""
    size = x.shape[-1] * x.shape[-2]
    if single := math.prod(x.shape[:-2]) == 1:  # the same for all
        x = np.reshape(x, x.shape[-2:])
    elif x.shape[:-2] != lead:
        x = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    turned = bool(x.mT.flags.c_contiguous and not x.flags.c_contiguous)
    x = np.ascontiguousarray(x.mT if turned else x, like=x)
    return to_bfloat16(x) if half else x, turned, 0 if single else size


def to_bfloat16(x: Array) -> Array:
    """The nearest bfloat16 of every float32, as 16 bits; of two equally near ones the even."""
    y = np.empty_like(x, dtype=np.uint16)
    kernels.run("to_bfloat16", kernels.each(x.size), kernels.THREADS, x.size, x, y)
    return y


@functools.cache
def library() -> tuple[Any, int, int, int]:
    """cuBLAS, our handle for it, and its names for float32 and bfloat16."""
    import cupy

    cuda = cupy.cuda
    return cuda.cublas, cuda.get_cublas_handle(), cuda.runtime.CUDA_R_32F, cuda.runtime.CUDA_R_16BF
