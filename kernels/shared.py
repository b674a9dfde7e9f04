"""What threads share: arrays known by their address, counters that nobody misses, and their turn on a core."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from kernels.lanes import intrinsic
from kernels.runtime import JIT, LINE, inner

if JIT:
    from numba import carray
    from numba.core import types
    from numba.core.cgutils import get_or_insert_function, ir  # LLVM's instructions


@intrinsic
def pointer_to(typing, address, like):
    """The address as a pointer to numbers like those of an array"""
    pointer = types.CPointer(like.dtype)
    return pointer(address, like), lambda context, builder, signature, args: builder.inttoptr(
        args[0], context.get_value_type(pointer))


@inner
def array_at(address, shape, like):
    """The array of this shape that begins at an address, of numbers like those of another"""
    return carray(pointer_to(address, like), shape)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that begins where a line of the cache does: a wide register is filled from one line, not from two"""
    bytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(bytes + LINE, np.uint8)
    first = -room.__array_interface__["data"][0] % LINE
    return room[first:first + bytes].view(dtype).reshape(shape)


@intrinsic
def look(typing, numbers, i):
    """numbers[i], that other threads change"""
    return numbers.dtype(numbers, i), lambda context, builder, signature, args: builder.load_atomic(
        _at(context, builder, signature, args), "seq_cst", numbers.dtype.bitwidth // 8)


@intrinsic
def count(typing, numbers, i):
    """numbers[i], which becomes one more; no other thread gets the same"""
    def generate(context, builder, signature, args):
        place = _at(context, builder, signature, args)
        return builder.atomic_rmw("add", place, ir.Constant(place.type.pointee, 1), "seq_cst")
    return numbers.dtype(numbers, i), generate


def _at(context, builder, signature, args):
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, args[1:])


@intrinsic
def step_aside(typing):
    """Let another thread have this core, if one waits for it."""
    def generate(context, builder, signature, args):
        kind, name = ir.FunctionType(ir.IntType(32), ()), "SwitchToThread" if os.name == "nt" else "sched_yield"
        builder.call(get_or_insert_function(builder.module, kind, name), ())
        return context.get_dummy_value()
    return types.none(), generate
