"""What do NumPy's and PyTorch's users reach for?  Their words on tensors, made of operations.

Importing this file gives tensors more methods, `x.clip(0, 1)`, and more of NumPy's functions, `np.sin(x)`,
`np.linalg.inv(x)`. Arguments are in NumPy's order. Most are one line: where a derivative is not made of those that
autograd.py has, its rule stands beside it.

Notation as there: z is the result, x̄ = ∂L/∂x the cotangent of x.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from autograd import (
    NUMPY,
    Tensor,
    _as_tensors,
    astype,
    concatenate,
    einsum,
    exp,
    expand_dims,
    mean,
    mul,
    op,
    reshape,
    scatter,
    sqrt,
    squeeze,
    stack,
    sum,
    take_along_axis,
    tensor,
    transpose,
    where,
)

# element by element -----------------------------------------------------------------------------

def elementwise(identity: str, f: Callable, slope: Callable | None, name: str = "") -> Callable:
    """The operation z = f(x), element by element;  x̄ = z̄·slope(x, z), or 0 without a slope"""
    def rule(x):
        return f(x.data), (slope and (lambda g, z: g * slope(x, z)),)
    rule.__name__, rule.__doc__ = name or f.__name__, identity
    return op(rule, output=True)

sin = elementwise("z = sin x;  x̄ = z̄·cos x", np.sin, lambda x, z: cos(x))
cos: Callable = elementwise("z = cos x;  x̄ = −z̄·sin x", np.cos, lambda x, z: -sin(x))
tan = elementwise("z = tan x;  x̄ = z̄(1 + z²)", np.tan, lambda x, z: 1 + z * z)
arcsin = elementwise("z = arcsin x;  x̄ = z̄/√(1 − x²)", np.arcsin, lambda x, z: 1 / sqrt(1 - x * x))
arccos = elementwise("z = arccos x;  x̄ = −z̄/√(1 − x²)", np.arccos, lambda x, z: -1 / sqrt(1 - x * x))
arctan = elementwise("z = arctan x;  x̄ = z̄/(1 + x²)", np.arctan, lambda x, z: 1 / (1 + x * x))
sinh = elementwise("z = sinh x;  x̄ = z̄·cosh x", np.sinh, lambda x, z: cosh(x))
cosh: Callable = elementwise("z = cosh x;  x̄ = z̄·sinh x", np.cosh, lambda x, z: sinh(x))
square = elementwise("z = x²;  x̄ = 2z̄·x", np.square, lambda x, z: 2 * x)
reciprocal = elementwise("z = 1/x;  x̄ = −z̄·z²", np.reciprocal, lambda x, z: -z * z)
expm1 = elementwise("z = eˣ − 1;  x̄ = z̄(z + 1)", np.expm1, lambda x, z: z + 1)
exp2 = elementwise("z = 2ˣ;  x̄ = z̄·z·log 2", np.exp2, lambda x, z: z * math.log(2))
log2 = elementwise("z = log₂ x;  x̄ = z̄/(x·log 2)", np.log2, lambda x, z: 1 / (x * math.log(2)))
log10 = elementwise("z = log₁₀ x;  x̄ = z̄/(x·log 10)", np.log10, lambda x, z: 1 / (x * math.log(10)))
erf = elementwise("z = 2/√π ∫₀ˣ exp(−t²)dt, slowly;  x̄ = z̄·2/√π exp(−x²)",
                  lambda x: np.vectorize(math.erf, otypes=[np.result_type(x.dtype, np.float16)])(x),
                  lambda x, z: exp(-x * x) * (2 / math.sqrt(math.pi)), "erf")
floor, ceil, trunc, rint = (elementwise(f"z = {f.__name__} x, in steps;  x̄ = 0", f, None)
                            for f in (np.floor, np.ceil, np.trunc, np.rint))

def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Tensor:
    """x, but a_min below it and a_max above it, if given"""
    x = tensor(x)
    z = x if a_min is None else where((x < a_min) | (a_min != a_min), a_min, x)  # a bound that is NaN, too
    return z if a_max is None else where((z > a_max) | (a_max != a_max), a_max, z)

def copy(x: Tensor) -> Tensor:
    """x in an array of its own"""
    return astype(x, dtype=x.dtype)

# sums and products ------------------------------------------------------------------------------

def var(x: Tensor, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """Σ(x − mean x)²/(n − ddof); ddof = 0 as in NumPy (PyTorch's default is 1)"""
    z = sum(square(x - mean(x, axis, keepdims=True)), axis=axis, keepdims=keepdims)
    return z / max(x.size / (z.size or 1) - ddof, 0)

@op(output=True)
def norm(x, *, ord=None, axis=None, keepdims=False):
    """z = √Σx², the only norm here (ord=None);  x̄ = z̄·x/z (0 at x = 0)"""
    if ord is not None:
        raise ValueError(f"norm is √Σx²; write the one of ord={ord!r} out, as max(abs(x)) or sum(abs(x))")

    def rule(g, z):
        if not keepdims:
            g, z = (expand_dims(v, tuple(range(x.ndim)) if axis is None else axis) for v in (g, z))
        return g * x / where(z.data == 0, 1.0, z)
    data = x.data if x.dtype.kind == "f" else x.data.astype(np.float64)
    return np.sqrt(np.sum(data * data, axis=axis, keepdims=keepdims)), (rule,)

def std(x: Tensor, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """√var x, with derivative 0 where all are equal"""
    z = norm(x - mean(x, axis, keepdims=True), axis=axis, keepdims=keepdims)
    return z / math.sqrt(max(x.size / (z.size or 1) - ddof, 0))

def prod(x: Tensor, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """Πx, half by half: so its derivative is right at zeros, too"""
    x = astype(x, dtype=np.prod(np.empty(0, x.dtype)).dtype)  # of integers, as wide as NumPy has it
    along = tuple(range(x.ndim)) if axis is None or not x.ndim else normalize_axis_tuple(axis, x.ndim)
    others = tuple(i for i in range(x.ndim) if i not in along)
    shape = tuple(x.shape[i] for i in others)
    z = reshape(transpose(x, axes=along + others), shape=(math.prod(x.shape[i] for i in along), *shape))
    while len(z) > 1:
        half = len(z) // 2
        z = concatenate([z[:half] * z[half:2 * half], z[2 * half:]])
    z = reshape(z, shape=shape) if len(z) else sum(z, axis=0) + 1
    return expand_dims(z, along) if keepdims else z

def cumprod(x: Tensor, axis: int | None = None) -> Tensor:
    """z_t = Π_{i≤t} x_i, of the flattened x without an axis"""
    x, axis = (flatten(x), 0) if axis is None or not x.ndim else (x, axis)
    x = astype(x, dtype=np.cumprod(np.empty(0, x.dtype)).dtype)
    return stack(list(itertools.accumulate(moveaxis(x, axis, 0), mul)), axis) if x.shape[axis] else x

def sort(x: Tensor, axis: int | None = -1) -> Tensor:
    """x in rising order along an axis, of the flattened x without one"""
    x, axis = (flatten(x), 0) if axis is None else (x, axis)
    return take_along_axis(x, argsort(x, axis, kind="stable"), axis)

def topk(x: Tensor, k: int, axis: int = -1) -> tuple[Tensor, np.ndarray]:
    """The k largest along an axis, from the largest on, and where they stand"""
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"k = {k}: of an axis of {x.shape[axis]} it must be 0 to {x.shape[axis]}")
    best = np.flip(np.take(argsort(x, axis, kind="stable"), np.arange(x.shape[axis] - k, x.shape[axis]), axis), axis)
    return take_along_axis(x, best, axis), best

argsort, argmax, argmin = NUMPY[np.argsort], NUMPY[np.argmax], NUMPY[np.argmin]

# shape ------------------------------------------------------------------------------------------

def moved(f: Callable) -> Callable:
    """NumPy's f, which only moves elements: applied to their positions it says from where each of z comes."""
    @functools.wraps(f, assigned=("__name__", "__doc__"))
    def moving(x: Any, *args: Any, **settings: Any) -> Any:
        x = tensor(x)
        positions = f(np.reshape(np.arange(x.size, like=x.data), x.shape), *args, **settings)
        flat = flatten(x)
        return [flat[at] for at in positions] if isinstance(positions, (list, tuple)) else flat[positions]
    return moving

roll, repeat, tile, take, moveaxis, diagonal, split, array_split, rot90 = (moved(f) for f in (
    np.roll, np.repeat, np.tile, np.take, np.moveaxis, np.diagonal, np.split, np.array_split, np.rot90))

def flatten(x: Tensor, start: int = 0) -> Tensor:
    """x with all axes from `start` on as one"""
    return reshape(x, shape=(*x.shape[:start], math.prod(x.shape[start:])))

def pad(x: Tensor, pad_width: Any, mode: str = "constant", constant_values: Any = 0) -> Tensor:
    """np.pad: every axis longer by pad_width, with constants or with elements of x"""
    if mode in ("edge", "reflect", "symmetric", "wrap"):
        return moved(np.pad)(x, pad_width, mode=mode)
    if mode != "constant":
        raise ValueError(f"pad mode {mode!r}; choose constant, edge, reflect, symmetric or wrap")
    around = np.pad(np.zeros_like(x.data), pad_width, constant_values=constant_values)
    before = np.broadcast_to(pad_width, (x.ndim, 2))[:, 0].tolist()
    inside = tuple(slice(i, i + n) for i, n in zip(before, x.shape, strict=True))
    return scatter(x, index=inside, shape=around.shape) + around

def diag(x: Tensor, k: int = 0) -> Tensor:
    """The diagonal k of a matrix, or the matrix with this diagonal"""
    if x.ndim > 1:
        if x.ndim > 2:
            raise ValueError(f"a tensor of shape {x.shape} is no matrix; diagonal gives those of any two axes")
        return diagonal(x, k)
    i = np.arange(len(x)) - (k if k < 0 else 0)
    return scatter(x, index=(i, i + k), shape=(len(x) + abs(k),) * 2)

def trace(x: Tensor, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The sum of a diagonal"""
    return sum(diagonal(x, offset, axis1, axis2), axis=-1)

# matrices ---------------------------------------------------------------------------------------

def outer(x: Any, y: Any) -> Tensor:
    """z_ij = x_i y_j"""
    x, y = _as_tensors((x, y))
    return flatten(x)[:, None] * flatten(y)

def tensordot(x: Any, y: Any, axes: Any = 2) -> Tensor:
    """x·y summed over pairs of axes: the last n of x with the first n of y, or (axes of x, axes of y)"""
    x, y = _as_tensors((x, y))
    first, second = (range(x.ndim - axes, x.ndim), range(axes)) if isinstance(axes, (int, np.integer)) else axes
    first, second = normalize_axis_tuple(first, x.ndim), normalize_axis_tuple(second, y.ndim)
    of_x, of_y = string.ascii_lowercase[:x.ndim], list(string.ascii_uppercase[:y.ndim])
    for i, j in zip(first, second, strict=True):
        if x.shape[i] != y.shape[j]:
            raise ValueError(f"shapes {x.shape} and {y.shape}: axes {i} and {j} are not of one length")
        of_y[j] = of_x[i]
    out = [i for i in of_x if i not in of_y] + [j for j in of_y if j not in of_x]
    return einsum(f"{of_x},{''.join(of_y)}->{''.join(out)}", x, y)

def dot(x: Any, y: Any) -> Tensor:
    """x·y summed over the last axis of x and the last but one, or only one, of y; a product with a number"""
    x, y = _as_tensors((x, y))
    return tensordot(x, y, (-1, -2 if y.ndim > 1 else -1)) if x.ndim and y.ndim else x * y

@op(output=True)
def inv(x):
    """z = x⁻¹;  x̄ = −zᵀ z̄ zᵀ"""
    return np.linalg.inv(x.data), (lambda g, z: -(z.mT @ g @ z.mT),)

@op(output=True)
def det(x):
    """z = det x of a regular x;  x̄ = z̄·z·x⁻ᵀ"""
    return np.linalg.det(x.data), (lambda g, z: (g * z)[..., None, None] * inv(x).mT,)

def solve(a: Any, b: Any) -> Tensor:
    """a⁻¹b; b is a vector, or (…,n,m) columns"""
    a, b = _as_tensors((a, b))
    return squeeze(_solve(a, expand_dims(b, 1)), -1) if b.ndim == 1 else _solve(a, b)

@op(output=True, name="solve")
def _solve(a, b):
    """z = a⁻¹b;  b̄ = a⁻ᵀz̄, ā = −b̄ zᵀ"""
    def rules(g, z):
        to_b = _solve(a.mT, g)
        return -to_b @ z.mT, to_b
    return np.linalg.solve(a.data, b.data), rules

# new tensors, of float32 unless said ------------------------------------------------------------

def zeros(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """zeros(2, 3) or zeros((2, 3))"""
    return Tensor(np.zeros(shape[0] if len(shape) == 1 else shape, dtype), requires_grad)

def ones(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """ones(2, 3) or ones((2, 3))"""
    return Tensor(np.ones(shape[0] if len(shape) == 1 else shape, dtype), requires_grad)

def eye(n: int, m: int | None = None, k: int = 0, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """1 on diagonal k, 0 elsewhere"""
    return Tensor(np.eye(n, m, k, dtype), requires_grad)

def arange(*start_stop_step: float, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """start, start + step, … below stop; integers if these are"""
    made = np.arange(*start_stop_step)
    return Tensor(made if made.dtype.kind in "iu" and dtype is None else made.tolist(), requires_grad, dtype)


# methods and NumPy's own words ------------------------------------------------------------------

for _name, _function in {
        "clip": clip, "var": var, "std": std, "prod": prod, "cumprod": cumprod, "dot": dot, "flatten": flatten,
        "ravel": flatten, "copy": copy, "clone": copy, "repeat": repeat, "take": take, "diagonal": diagonal,
        "trace": trace, "square": square, "sin": sin, "cos": cos}.items():
    setattr(Tensor, _name, _function)

NUMPY |= {getattr(np, f.__name__): f for f in (
    sin, cos, tan, arcsin, arccos, arctan, sinh, cosh, square, reciprocal, expm1, exp2, log2, log10, floor, ceil,
    trunc, rint, clip, copy, var, std, prod, cumprod, sort, roll, repeat, tile, take, moveaxis, diagonal, split,
    array_split, rot90, pad, diag, trace, outer, tensordot, dot)}
NUMPY |= {np.ravel: flatten, np.linalg.norm: norm, np.linalg.inv: inv, np.linalg.det: det, np.linalg.solve: solve}
