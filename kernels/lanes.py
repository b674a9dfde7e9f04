"""What LLVM has and Numba does not: LANES numbers computed together, eˣ without a call.

Numba has no type for LANES numbers side by side; this file makes one, and its verbs: the wide registers. A sum over a
row is added up lane by lane, so that its order is ours and no compiler's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.runtime import JIT, inner

if JIT:
    from numba.core import config, types
    from numba.core.cgutils import ir  # LLVM's instructions
    from numba.core.codegen import get_host_cpu_features
    from numba.core.imputils import impl_ret_borrowed
    from numba.extending import intrinsic, models, register_model

LANES = 32
ROWS, TILE = 8, LANES  # of a product of matrices: so many rows of so many numbers are added up in registers
if JIT and "+avx512f" not in (config.CPU_FEATURES or get_host_cpu_features()):
    ROWS, TILE = 4, 16  # AVX2 has sixteen registers

# Wide registers ---------------------------------------------------------------------------------------------

if JIT:
    class Lanes(types.Type):
        """LANES numbers, or another count of them, that are computed together."""

        def __init__(self, dtype: Any, count: int = LANES):
            self.dtype, self.count = dtype, count
            super().__init__(name=f"Lanes({dtype}, {count})")

    @register_model(Lanes)
    class _LanesModel(models.PrimitiveModel):
        def __init__(self, manager: Any, lanes: Lanes):
            number = manager.lookup(lanes.dtype).get_data_type()
            super().__init__(manager, lanes, ir.VectorType(number, lanes.count))
else:
    def intrinsic(function):
        """Nothing is compiled: nobody calls it."""
        return function


@intrinsic
def load(typing, row, i):
    """row[i:i+LANES]"""
    return _load(row, i, LANES)


@intrinsic
def load_like(typing, x, row, i):
    """row[i:i+n], n being the lanes of x"""
    return _load(row, i, x.count, x)


@intrinsic
def load_at(typing, x, matrix, i, j):
    """matrix[i, j:j+n], n being the lanes of x; a row taken out of the matrix by itself would be counted as in use"""
    lanes = Lanes(matrix.dtype, x.count)
    return lanes(x, matrix, i, j), lambda context, builder, signature, args: _loaded(
        builder, matrix, _pointer_at(context, builder, matrix, *args[1:], context.get_value_type(lanes)))


def _load(row, i, count, *like):
    def generate(context, builder, signature, args):
        lanes = context.get_value_type(signature.return_type)
        return _loaded(builder, row, _pointer(context, builder, row, *args[-2:], lanes))
    return Lanes(row.dtype, count)(*like, row, i), generate


def _loaded(builder, array, pointer):
    return builder.load(pointer, align=array.dtype.bitwidth // 8)


@intrinsic
def store(typing, row, i, x):
    """row[i:i+LANES] = x, or as many as x has"""
    def generate(context, builder, signature, args):
        _store(builder, row, args[2], _pointer(context, builder, row, *args[:2], args[2].type))
        return context.get_dummy_value()
    return types.none(row, i, x), generate


@intrinsic
def store_at(typing, matrix, i, j, x):
    """matrix[i, j:j+n] = x, n being its lanes"""
    def generate(context, builder, signature, args):
        _store(builder, matrix, args[3], _pointer_at(context, builder, matrix, *args[:3], args[3].type))
        return context.get_dummy_value()
    return types.none(matrix, i, j, x), generate


def _store(builder, array, x, pointer):
    builder.store(x, pointer, align=array.dtype.bitwidth // 8)


@intrinsic
def fetch(typing, row, i):
    """Let row[i] come nearer, whether it is there or not."""
    def generate(context, builder, signature, args):
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.gep(context.make_array(row)(context, builder, args[0]).data, args[1:])
        kind = ir.FunctionType(ir.VoidType(), [pointer] + 3 * [number])
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind), [
            builder.bitcast(place, pointer), *(ir.Constant(number, n) for n in (0, 2, 1))])
        return context.get_dummy_value()
    return types.none(row, i), generate


@intrinsic
def spread(typing, a):
    """The number a in all lanes"""
    return Lanes(a)(a), lambda context, builder, signature, args: _spread(builder, args[0], LANES)


@intrinsic
def zero(typing, row):
    """LANES zeros like the numbers of a row"""
    return _zero(row, LANES)


@intrinsic
def zero_tile(typing, row):
    """TILE zeros"""
    return _zero(row, TILE)


@intrinsic
def zero_half(typing, row):
    """Half as many"""
    return _zero(row, TILE // 2)


def _zero(row, count):
    lanes = Lanes(row.dtype, count)
    return lanes(row), lambda context, builder, signature, args: ir.Constant(context.get_value_type(lanes), None)


@intrinsic
def scaled(typing, a, x):
    """a·x, a being a number or LANES of them"""
    return x(_number_or(a, x), x), lambda context, builder, signature, args: _times(builder, *args)


@intrinsic
def plus(typing, y, a, x):
    """y + a·x, a being a number or LANES of them"""
    def generate(context, builder, signature, args):
        return builder.fadd(args[0], _times(builder, *args[1:]), flags=("contract",))
    return y(y, _number_or(a, y), y), generate


@intrinsic
def minus(typing, x, y):
    """x − y"""
    return x(x, x), lambda context, builder, signature, args: builder.fsub(*args, flags=("contract",))


@intrinsic
def larger(typing, x, y):
    """The larger of x and y in every lane"""
    return x(x, x), lambda context, builder, signature, args: _larger(builder, *args)


@intrinsic
def total(typing, x):
    """The sum of the lanes: halves on halves"""
    return x.dtype(x), lambda context, builder, signature, args: _fold(builder, args[0], builder.fadd)


@intrinsic
def totals(typing, a, b, c, d):
    """`total` of each of four, in a lane for each: halves on halves, those of two added up at once"""
    def generate(context, builder, signature, args):
        rows, n, index = list(args), LANES, ir.IntType(32)
        while n > 1:
            pairs = list(zip(rows[::2], rows[1::2], strict=True)) if len(rows) > 1 else [(rows[0], rows[0])]
            lanes = range(0, rows[0].type.count * min(len(rows), 2), n)
            n //= 2
            halves = [[first + k for first in lanes for k in range(half, half + n)] for half in (0, n)]
            rows = [builder.fadd(*(builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(index, len(half)), half))
                                   for half in halves)) for x, y in pairs]
        return rows[0]
    return Lanes(a.dtype, 4)(a, b, c, d), generate


@intrinsic
def lane(typing, x, i):
    """One of the lanes"""
    return x.dtype(x, i), lambda context, builder, signature, args: builder.extract_element(*args)


@intrinsic
def highest(typing, x):
    """The largest of the lanes"""
    return x.dtype(x), lambda context, builder, signature, args: _fold(
        builder, args[0], lambda x, y: _larger(builder, x, y))


@intrinsic
def exp(typing, x):
    """eˣ of a number or of LANES; of float32 to 1 ulp and without a call, so that loops vectorise.

        eˣ = 2ⁿeʳ,  n = round(x log₂ e),  |r| ≤ ½ ln 2

    x is cut at 87, and below −87 eˣ is 0. To add 1.5·2²³ rounds to a whole number, n, which stands in the last bits;
    shifted into the place of the exponent it is 2ⁿ.
    """
    kind = getattr(x, "dtype", x)
    return x(x), lambda context, builder, signature, args: (
        _exp32 if kind == types.float32 else _exp64)(builder, args[0])


def _exp32(builder, x):
    def constant(c, kind=None):
        kind = kind or x.type
        return ir.Constant(kind, [c] * LANES if isinstance(kind, ir.VectorType) else c)

    def times_plus(a, b, c):
        return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))
    whole = ir.VectorType(ir.IntType(32), LANES) if isinstance(x.type, ir.VectorType) else ir.IntType(32)
    log2_e, minus_ln2_high, minus_ln2_low, magic = (constant(float(np.float32(c))) for c in (
        1.44269504, -0.693359375, 2.12194440e-4, 1.5 * 2**23))
    power, *others = (constant(float(np.float32(c))) for c in (
        0.000198756915, 0.0013981999507, 0.0083334519073, 0.041665795894, 0.16666665459, 0.50000001201, 1.0, 1.0))
    cut = builder.select(builder.fcmp_ordered(">", x, constant(87.0)), constant(87.0), x)  # a NaN stays one
    shifted = times_plus(cut, log2_e, magic)
    n = builder.fsub(shifted, magic)
    r = times_plus(n, minus_ln2_low, times_plus(n, minus_ln2_high, cut))
    for c in others:
        power = times_plus(power, r, c)
    exponent = builder.add(builder.bitcast(shifted, whole), constant(127, whole))
    two_n = builder.bitcast(builder.shl(exponent, constant(23, whole)), x.type)
    return builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(0.0), builder.fmul(power, two_n))


def _exp64(builder, x):
    of_one = builder.module.declare_intrinsic("llvm.exp", [ir.DoubleType()])
    if not isinstance(x.type, ir.VectorType):
        return builder.call(of_one, [x])
    y = ir.Constant(x.type, ir.Undefined)
    for lane in (ir.Constant(ir.IntType(32), lane) for lane in range(LANES)):
        y = builder.insert_element(y, builder.call(of_one, [builder.extract_element(x, lane)]), lane)
    return y


@intrinsic
def any_layout(typing, x):
    """The array as one of any layout, so that what takes it is compiled but once; rows stay contiguous if they are"""
    kind = x.copy(layout="A")
    return kind(x), lambda context, builder, signature, args: impl_ret_borrowed(context, builder, kind, args[0])


def _number_or(a, x):
    return a if isinstance(a, Lanes) else x.dtype


def _pointer(context, builder, array_type, array, i, lanes):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), lanes.as_pointer())


def _pointer_at(context, builder, array_type, array, i, j, lanes):
    matrix = context.make_array(array_type)(context, builder, array)
    row = builder.mul(i, builder.extract_value(matrix.strides, 0))  # in bytes
    start = builder.gep(builder.bitcast(matrix.data, ir.IntType(8).as_pointer()), [row])
    return builder.bitcast(builder.gep(builder.bitcast(start, matrix.data.type), [j]), lanes.as_pointer())


def _spread(builder, a, count):
    lanes, index = ir.VectorType(a.type, count), ir.IntType(32)
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), a, ir.Constant(index, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(index, count), [0] * count))


def _times(builder, a, x):
    return builder.fmul(a if a.type == x.type else _spread(builder, a, x.type.count), x, flags=("contract",))


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _fold(builder, x, combine):
    """The lanes combined: the second half with the first, until one is left"""
    n, index = LANES, ir.IntType(32)
    while n > 1:
        n //= 2
        halves = (ir.Constant(ir.VectorType(index, n), list(range(k, k + n))) for k in (0, n))
        x = combine(*(builder.shuffle_vector(x, x, half) for half in halves))
    return builder.extract_element(x, ir.Constant(index, 0))


# Sums over rows ---------------------------------------------------------------------------------------------

@inner
def lane_sums(x, y):
    """Σ x y of two rows, lane by lane, but for the numbers at the end that fill no lanes"""
    sums = zero(x)
    for j in range(0, len(x) - len(x) % LANES, LANES):
        sums = plus(sums, load(x, j), load(y, j))
    return sums


@inner
def dot(x, y):
    """Σ x y of two rows, in an order that no compiler changes"""
    sum = total(lane_sums(x, y))
    for j in range(len(x) - len(x) % LANES, len(x)):
        sum += x[j] * y[j]
    return sum
