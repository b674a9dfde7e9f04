"""Where the arrays lie that the kernel reads and fills: tables of addresses, for there may be dozens of arrays.

A row is (address, matrices, bytes between them, rows, columns) of an array of matrices, (N,rows,columns), one for each
sequence N = B·H; what sequences share, such as initial states (H,…), begins again after its last. `Tables` makes them
in Python, and `matrix` reads one in compiled code. Cotangents have tables of the same form.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.records import record
from kernels.runtime import if_given, inner
from kernels.shared import array_at
from kernels.titans.products import accumulate, added

MEMORIES = ("q", "k", "v", "eta", "alpha", "memory")  # memory m has the layers 2m and 2m + 1
SCALARS, MEMORY = (3, 4), 5  # those with one output; the main one
READ = 4  # where o, or its cotangent, stands behind the feeds q, k, v, gate
Inputs = namedtuple("Inputs", "feeds bias readout initial drift start momentum")  # tables; start: of the chunk
Span = record("Span", " ".join(Inputs._fields))  # the same of one span
Layer = record("Layer", "initial drift start momentum")  # matrices M₀, S₀, P, N₀ of one sequence
Memory = record("Memory", "layer_in layer_out weights_in weights_out readout")  # of W₂ and W₁; r of a scalar memory

# In compiled code --------------------------------------------------------------------------------------------


@inner
def matrix(table, row, i, like):
    """The matrix of sequence i"""
    address, matrices, step, m, n = table[row]
    return array_at(address + i % matrices * step, (m, n), like)


@if_given
def matrix_if(table, row, i, like):
    """`matrix`, where there is momentum"""
    return matrix(table, row, i, like)


@if_given
def span_if(tables, p):
    """The table of span p, where there is momentum"""
    return tables[p]


@inner
def of_span(inputs, p):
    """The tables of span p: its feeds and states lie elsewhere."""
    return Span(inputs.feeds[p], inputs.bias, inputs.readout, inputs.initial, inputs.drift[p], inputs.start[p],
                  span_if(inputs.momentum, p))


@inner
def layer_of(inputs, row, i, like):
    """A layer of a memory"""
    return Layer(matrix(inputs.initial, row, i, like), matrix(inputs.drift, row, i, like),
                 matrix(inputs.start, row, i, like), matrix_if(inputs.momentum, row, i, like))


@inner
def layers_of(inputs, m, i, like):
    """Both layers of memory m, in the order of computing: W₂, W₁"""
    return layer_of(inputs, 2 * m, i, like), layer_of(inputs, 2 * m + 1, i, like)


@inner
def memory(inputs, m, i, like, back):
    """Memory m with its weights W = M₀ + P, or on the way back zeros, to which their cotangents are added"""
    layer_in, layer_out = layers_of(inputs, m, i, like)
    weights_in, weights_out = np.zeros_like(layer_in.initial), np.zeros_like(layer_out.initial)
    if not back:
        weights_in, weights_out = added(layer_in.initial, layer_in.start), added(layer_out.initial, layer_out.start)
    readout = matrix(inputs.readout, m - 3 if m in SCALARS else 0, i, like)
    return Memory(layer_in, layer_out, weights_in, weights_out, readout)


@inner
def memories(inputs, i, like, back=False):
    """All of a head, once for a chunk, in the order of MEMORIES"""
    return (memory(inputs, 0, i, like, back), memory(inputs, 1, i, like, back), memory(inputs, 2, i, like, back),
            memory(inputs, 3, i, like, back), memory(inputs, 4, i, like, back), memory(inputs, 5, i, like, back))


@inner
def weights_backward(memory_bar):
    """From W to M₀ and P"""
    layer_in, layer_out = memory_bar.layer_in, memory_bar.layer_out
    accumulate(layer_in.initial, memory_bar.weights_in)
    accumulate(layer_in.start, memory_bar.weights_in)
    accumulate(layer_out.initial, memory_bar.weights_out)
    accumulate(layer_out.start, memory_bar.weights_out)


# In Python ---------------------------------------------------------------------------------------------------

_known: dict[int, tuple[weakref.ref, tuple[int, ...]]] = {}  # by the id of an array: itself, its row


def _forget(number: int, reference: weakref.ref) -> None:
    if number in _known and _known[number][0] is reference:
        del _known[number]


class Tables:
    """Makes tables for `matrix`, and holds their arrays for as long as the addresses are in use."""

    def __init__(self, dtype: Any, spans: Sequence[tuple[int, dict[str, int]]]):
        self.dtype, self.spans = np.dtype(dtype), spans
        self.again = [n for n, _ in spans] == [1]  # soon to be asked about the same arrays, token after token
        self.arrays: list[np.ndarray] = []

    def __call__(self, arrays: list) -> np.ndarray:
        return np.array([(0, 1, 0, 0, 0) if x is None else self.row(x) for x in arrays], np.int64)

    def row(self, x: np.ndarray) -> tuple[int, ...]:
        """To ask an array where it lies takes longer than to read it: of what still lives, it is known."""
        known = _known.get(id(x))
        if known and known[0]() is x and x.dtype == self.dtype:
            self.arrays.append(x)
            return known[1]
        plain = x if x.flags.carray and x.dtype == self.dtype else np.require(x, self.dtype, ["C", "A", "W"])
        self.arrays.append(plain)
        *lead, m, n = x.shape
        row = plain.ctypes.data, math.prod(lead), m * n * self.dtype.itemsize, m, n
        if self.again and plain is x and x.base is None:  # views, as feeds are, do not live on
            _known[id(x)] = weakref.ref(x, functools.partial(_forget, id(x))), row
        return row

    def layers(self, by_name: dict) -> np.ndarray:
        return self([x for name in MEMORIES for x in by_name.get(name, (None, None))])

    def states(self, before: dict, boundaries: dict, after: dict) -> np.ndarray:
        """Where a state lies before every span, and after the last.  → (P+1,layers,5)"""
        P = len(self.spans)
        rows = np.empty((P + 1, 2 * len(MEMORIES), 5), np.int64)
        rows[0], rows[-1] = self.layers(before), self.layers(after)
        if P > 1:
            rows[1:-1] = self.layers(boundaries)
            rows[1:-1, :, 1] //= P - 1
            rows[1:-1, :, 0] += np.arange(P - 1)[:, None] * rows[1:-1, :, 1] * rows[1:-1, :, 2]
        return rows

    def inputs(self, feeds, bias, readout, initial, drift, start, momentum, boundaries, after
               ) -> tuple[Inputs, np.ndarray, np.ndarray | None]:
        """What `of_span` takes apart; and of every span, where the drifts and the momenta after it lie."""
        read, P = np.repeat(self(feeds)[None], len(self.spans), 0), len(self.spans)
        drifts, seen = self.states(drift, boundaries[0], after[0]), self.layers(drift | start)[None]
        momenta = self.states(momentum, boundaries[1], after[1]) if momentum else None
        if P > 1:
            read[:, :, 3] = np.array([n for n, _ in self.spans])[:, None]
            read[1:, :, 0] += np.cumsum(read[:-1, :, 3], 0) * read[:-1, :, 4] * self.dtype.itemsize
            rows = [[of.get(name, -1) for name in MEMORIES for _ in range(2)] for _, of in self.spans]
            seen = np.concatenate([drifts, seen])[rows, np.arange(2 * len(MEMORIES))]
        gates = self([x[..., None, None] for x in bias]), self(readout)
        before, after = (None, None) if momenta is None else (momenta[:-1], momenta[1:])
        return Inputs(read, *gates, self.layers(initial), drifts[:-1], seen, before), drifts[1:], after
