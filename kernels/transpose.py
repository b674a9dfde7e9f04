"""xᵀ of a matrix, by squares that lie in registers.

A row of one is a column of the other: number by number, a cache line would be fetched for every single one.
"""

from __future__ import annotations

from kernels.lanes import intrinsic
from kernels.runtime import JIT, inner

if JIT:
    from numba.core import types
    from numba.core.cgutils import ir  # LLVM's instructions

SIDE = 16


@intrinsic
def transpose_square(typing, x, y, i, j):
    """y[j:j+SIDE, i:i+SIDE] = x[i:i+SIDE, j:j+SIDE]ᵀ: to zip row r with row r + SIDE/2, log₂ SIDE times, transposes"""
    def generate(context, builder, signature, args):
        X, Y = (context.make_array(kind)(context, builder, array) for kind, array in zip((x, y), args, strict=False))
        row, mask = ir.VectorType(context.get_data_type(x.dtype), SIDE), ir.VectorType(ir.IntType(32), SIDE)
        zips = [ir.Constant(mask, [k // 2 + half + SIDE * (k % 2) for k in range(SIDE)]) for half in (0, SIDE // 2)]

        def at(array, r, c, k):
            r = builder.add(r, ir.Constant(r.type, k))
            place = builder.add(builder.mul(r, builder.extract_value(array.shape, 1)), c)
            return builder.bitcast(builder.gep(array.data, [place]), row.as_pointer())
        rows = [builder.load(at(X, *args[2:], k), align=x.dtype.bitwidth // 8) for k in range(SIDE)]
        for _ in range(SIDE.bit_length() - 1):
            rows = [builder.shuffle_vector(rows[k // 2], rows[k // 2 + SIDE // 2], zips[k % 2]) for k in range(SIDE)]
        for k, value in enumerate(rows):
            builder.store(value, at(Y, args[3], args[2], k), align=x.dtype.bitwidth // 8)
        return context.get_dummy_value()
    return types.none(x, y, i, j), generate


@inner
def transpose(x, y):
    """y[:n, :m] = xᵀ of a matrix x (m,n), in squares where they fit"""
    for i in range(0, x.shape[0], SIDE):
        for j in range(0, x.shape[1], SIDE):
            if i + SIDE <= x.shape[0] and j + SIDE <= x.shape[1]:
                transpose_square(x, y, i, j)
            else:
                for r in range(i, min(i + SIDE, x.shape[0])):
                    for c in range(j, min(j + SIDE, x.shape[1])):
                        y[c, r] = x[r, c]
