"""Many loops in a row without Python in between, walked by several threads together.

A `Program` is a table of loops with all their arguments. Every loop is cut into parts, and whoever is free takes the
next one, of this loop or, when all parts of this one are done, of the loop after it. So threads wake once for all
loops; one that sleeps longer or is sent away is missed by nobody, for the others take what it does not; and which
thread has computed a part changes no bit of it.

    product   z = start + x Wᵀ                    z (B,n), W (n,m), x (B,m); start (n,): a bias; z itself; or nothing
    norm      z = w·x·r,  r = 1/√(mean x² + ε)    x, z (n,m), w (m,)
    swiglu    z = y·x/(1 + e^−x)                  x, y, z (n,)
    gelu      z = ½x(1 + tanh s(x))               x, z (n,)
    turn      q ← q·turn, keys_t = k·turn, values_t = v         q (B·H,d), k, v (B·K,d), keys, values (B·K,room,d)
    attend    z = Σ_{i≤t} softmax_i(q·keys_i/√d) values_i       q, z (B·H,d)
    filter    z = Σ_i w_i x_{t−i}, the last inputs being in a tail        x, z (B,D), w (W,D)
    ask       what memories make of what is asked                         (titans/token.py)
    write     … and learn; what the main memory answers

Legend: B batch, H heads, K heads of keys, d head size, t position.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kernels.attention import attend
from kernels.causal_conv import causal_conv
from kernels.gelu import gelu
from kernels.product import dot_rows_of_each
from kernels.rms_norm import rms_norm
from kernels.runtime import if_given, inner, jit, join_in, need_soon, prepare, threads
from kernels.shared import array_at, count, look, step_aside
from kernels.swiglu import swiglu
from kernels.titans.tables import MEMORY, matrix
from kernels.titans.token import AFTER, BEFORE, ROOM, ROWS, WIDTH, ask, write

PRODUCT, NORM, SWIGLU, GELU, TURN, ATTEND, FILTER, ASK, WRITE, REMEMBER = range(10)
LOOP, SIZE, PART, FIRST, WAIT, ARGUMENTS = range(6)  # columns; WAIT: so many parts are done before it begins
COLUMNS = ARGUMENTS + 10
TOGETHER = 2**21  # multiplications for which it pays to wake another thread
BYTES = 2**15  # of a weight, in one part; as many threads as there are must find some
TAKEN, DONE = 0, 8  # counters, in lines of the cache that are not the same
UNITS = 2**11  # of an activation, in one part
MANY = 4  # sequences a thread, from which on it has each for both rounds: what one has read the other finds nearer
PATIENCE = 2**12  # looks at a counter before another thread may have the core
norm_loop, swiglu_loop, gelu_loop, filter_loop = rms_norm.loop, swiglu.loop, gelu.loop, causal_conv.loop

# Walking ----------------------------------------------------------------------------------------------------


@jit
def walk(table, numbers, begin, end, counters, like, attends, remembers):
    """Take parts of the loops begin … end, until none is left and all are done.

    attends: None if none does; remembers: None if there are no memories, else how long rows are that these need.
    """
    row, stop, room = begin, table[end, FIRST], room_for(remembers, like)
    part = count(counters, TAKEN)
    while part < stop:
        while part >= table[row + 1, FIRST]:
            row += 1
        until(counters, table[row, WAIT])
        i = (part - table[row, FIRST]) * table[row, PART]
        compute_part(table[row], numbers[row], i, min(i + table[row, PART], table[row, SIZE]), like, attends, room)
        count(counters, DONE)
        part = count(counters, TAKEN)
    until(counters, stop)


@if_given
def room_for(remembers, like):
    return np.empty(ROOM * remembers, like.dtype)


@functools.cache  # it is asked for at every step
def need_walk_soon(dtype, remembers):
    """… of a program in which nothing attends, and there are memories or not"""
    table, counters = np.zeros((1, COLUMNS), np.int64), np.zeros(16, np.int64)
    need_soon(walk, table, np.zeros(1), 0, 0, counters, np.empty(0, dtype), None, 1 if remembers else None)


@inner
def until(counters, done):
    looks = 0
    while look(counters, DONE) < done:
        looks += 1
        if looks > PATIENCE:
            step_aside()


@inner
def compute_part(row, number, start, stop, like, attends, room):
    loop, n, a = row[LOOP], row[SIZE], row[ARGUMENTS:]
    if loop == PRODUCT:
        W, x, z = array_at(a[0], (n, a[4]), like), array_at(a[1], (a[5], a[4]), like), array_at(a[2], (a[5], n), like)
        begun = array_at(a[3], n, like)
        for b in range(a[5] if a[3] != a[2] else 0):
            for i in range(start, stop):
                z[b, i] = 0 if a[3] == 0 else begun[i]
        dot_rows_of_each(start, stop, W, x, z)
    elif loop == NORM:
        norm_loop(start, stop, number, array_at(a[0], (n, a[4]), like), array_at(a[1], a[4], like),
                  array_at(a[2], (n, a[4]), like), array_at(a[3], n, like))
    elif loop == SWIGLU:
        swiglu_loop(start, stop, array_at(a[0], n, like), array_at(a[1], n, like), array_at(a[2], n, like))
    elif loop == GELU:
        gelu_loop(start, stop, array_at(a[0], n, like), array_at(a[1], n, like))
    elif loop == TURN:
        turn_and_keep(attends, a, start, stop, like)
    elif loop == ATTEND:
        attend_heads(attends, a, number, start, stop, like)
    elif loop == FILTER:
        filter_rows(room, a, start, stop, like)
    else:
        remember(room, loop, a, number, start, stop, like)


@if_given
def turn_and_keep(attends, a, start, stop, like):
    q, k, v, keys, values, turn, t, room, d, queries = a
    size = d * like.itemsize
    for i in range(start, stop):
        if i < queries:
            turned(array_at(q + i * size, d, like), turn, array_at(q + i * size, d, like), like)
        else:
            i -= queries
            at, to = i * size, (i * room + t) * size
            turned(array_at(k + at, d, like), turn, array_at(keys + to, d, like), like)
            turned(array_at(v + at, d, like), 0, array_at(values + to, d, like), like)


@inner
def turned(x, turn, z, like):
    """z = x·turn of complex numbers, or x if there is no turn"""
    w = array_at(turn, len(x), like)
    if turn == 0:
        for i in range(len(x)):
            z[i] = x[i]
    else:
        for i in range(0, len(x), 2):
            z[i], z[i + 1] = x[i] * w[i] - x[i + 1] * w[i + 1], x[i] * w[i + 1] + x[i + 1] * w[i]


@if_given
def attend_heads(attends, a, scale, start, stop, like):
    q, keys, values, z, seen, room, group, d = a[:8]
    size = d * like.itemsize
    for i in range(start, stop):
        at, of = i * size, i // group * room * size
        attend(array_at(q + at, d, like), array_at(keys + of, (seen, d), like), array_at(values + of, (seen, d), like),
               like.dtype.type(scale), array_at(z + at, d, like))


@if_given
def filter_rows(room, a, start, stop, like):
    """The tail and the new input stand in a row: they are filtered, and all but the first are the next tail."""
    table, (x, w, heard, z, taps, D) = array_at(a[0], (ROWS, 5), a), a[1:7]
    for b in range(start, stop):
        before, after = matrix(table, BEFORE, b, like), matrix(table, AFTER, b, like)
        past, new = array_at(heard, (stop, taps, D), like), array_at(x + b * D * like.itemsize, D, like)
        for i in range(taps):
            for j in range(D):
                past[b, i, j] = before[i, j] if i + 1 < taps else new[j]
                if i:
                    after[i - 1, j] = past[b, i, j]
    filter_loop(start, stop, array_at(heard, (stop, taps, D), like), array_at(w, (taps, D), like),
                array_at(z, (stop, 1, D), like))


@if_given
def remember(room, loop, a, eta_max, start, stop, like):
    """Parts of `ask`, MEMORY for a sequence, of `write`, one more, or both rounds of a sequence"""
    table, settings = array_at(a[0], (ROWS, 5), a), a[1:]
    for part in range(start, stop):
        i, first, last = part, 0, MEMORY + 1  # of the memories
        if loop != REMEMBER:
            memories = MEMORY if loop == ASK else MEMORY + 1
            i, first = part // memories, part % memories
            last = first + 1
        if loop != WRITE:
            for m in range(first, min(last, MEMORY)):
                ask(i, m, table, settings, eta_max, room, like)
        if loop != ASK:
            for m in range(first, last):
                write(i, m, table, settings, room, loop == REMEMBER and part + 1 < stop, like)


# Writing one down -------------------------------------------------------------------------------------------


class Program:
    """Loops over arrays that stay, in the order in which they are added.

    A loop that needs nothing of what the one before it makes may run `beside` it.
    """

    def __init__(self, dtype: Any):
        self.like = np.empty(0, dtype)
        self.rows: list[list[int]] = []
        self.reals: list[float] = []
        self.arrays: list[np.ndarray] = []  # whose addresses stand in the table
        self.parts = self.at = 0  # so far; the next row to be walked

    def add(self, loop: int, size: int, part: int, *arguments: Any, real: float = 0, beside: bool = False) -> int:
        """The number of a new row: a loop 0 … size, so many at a time, with arrays and whole numbers for arguments."""
        self.arrays += [x for x in arguments if isinstance(x, np.ndarray)]
        numbers = [x.ctypes.data if isinstance(x, np.ndarray) else x or 0 for x in arguments]
        first, self.parts = self.parts, self.parts - -size // part
        row = [loop, size, part, first, self.rows[-1][WAIT] if beside else first, *numbers]
        self.rows.append(row + [0] * (COLUMNS - len(row)))
        self.reals.append(real)
        return len(self.rows) - 1

    def product(self, W: np.ndarray, x: np.ndarray, z: np.ndarray, start: np.ndarray | None = None,
                beside: bool = False) -> None:
        """z = start + x Wᵀ.  W (n,m), x (B,m), z (B,n), start like a row of z, or z"""
        n, m = W.shape
        bytes = BYTES * max(1, 4 // threads())
        self.add(PRODUCT, n, max(4, bytes // W[0].nbytes // 4 * 4), W, x, z, start, m, len(x), beside=beside)

    def norm(self, eps: float, x: np.ndarray, w: np.ndarray, z: np.ndarray) -> None:
        self.add(NORM, len(x), 1, x, w, z, np.empty(len(x), x.dtype), x.shape[1], real=eps)

    def swiglu(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        self.add(SWIGLU, x.size, UNITS, x, y, z)

    def gelu(self, x: np.ndarray, z: np.ndarray) -> None:
        self.add(GELU, x.size, UNITS, x, z)

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, z: np.ndarray, d: int) -> int:
        """Two rows: q and k turned, k and v kept; and what is then read. Where keys and values lie, `place` says."""
        queries, keys = q.size // d, k.size // d
        self.add(TURN, queries + keys, queries + keys, q, k, v, 0, 0, 0, 0, 0, d, queries)
        return self.add(ATTEND, queries, 1, q, 0, 0, z, 0, 0, queries // keys, d, real=d ** -0.5) - 1

    def place(self, row: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Where the keys and values of all tokens lie."""
        at, room = (keys.ctypes.data, values.ctypes.data), keys.shape[2]
        self.table[row, ARGUMENTS + 3:ARGUMENTS + 5], self.table[row, ARGUMENTS + 7] = at, room
        self.table[row + 1, ARGUMENTS + 1:ARGUMENTS + 3], self.table[row + 1, ARGUMENTS + 5] = at, room

    def turn_to(self, rows: list[int], t: int, turns: list[np.ndarray | None]) -> None:
        """The next token is t; and what turns its vectors, in every one of the rows."""
        self.table[rows, ARGUMENTS + 5] = [0 if x is None else x.__array_interface__["data"][0] for x in turns]
        self.table[rows, ARGUMENTS + 6], self.table[[row + 1 for row in rows], ARGUMENTS + 4] = t, t + 1

    def filter(self, table: np.ndarray, x: np.ndarray, w: np.ndarray, z: np.ndarray) -> None:
        """The tails before and after lie where the table of a token says; x, z (B,D)"""
        heard = np.empty((len(x), *w.shape), x.dtype)
        self.add(FILTER, len(x), 1, table, x, w, heard, z, *w.shape)

    def memories(self, table: np.ndarray, settings: np.ndarray, eta_max: float, sequences: int) -> None:
        """Both rounds of a token, for so many sequences; all lies where the table says"""
        part, many = max(1, sequences // (4 * threads())), sequences >= MANY * threads()
        rounds = ((REMEMBER, 1, part),) if many else ((ASK, MEMORY, 1), (WRITE, MEMORY + 1, 1))
        for loop, parts, together in rounds:
            self.add(loop, sequences * parts, together, table, *settings.tolist(), real=eta_max)

    def ready(self) -> None:
        """Nothing is added any more."""
        self.end = self.add(PRODUCT, 0, 1)
        self.attends = True if any(row[LOOP] == ATTEND for row in self.rows) else None
        widths = [row[ARGUMENTS + 1 + WIDTH] for row in self.rows if row[LOOP] in (ASK, REMEMBER)]
        self.remembers = max(widths, default=None)
        self.table, self.numbers = np.array(self.rows), np.array(self.reals)
        sizes = self.table[:, [SIZE, ARGUMENTS + 4, ARGUMENTS + 5]]  # n, m and B of a product
        self.work = np.cumsum(np.where(self.table[:, LOOP] == PRODUCT, np.prod(sizes, axis=1), 0)).tolist()
        prepare(walk, self.table, self.numbers, 0, 0, np.zeros(16, np.int64), self.like, self.attends,
                self.remembers)

    def to(self, end: int) -> None:
        """Do all that comes before a row and is not yet done."""
        if self.at < end:
            counters = np.zeros(16, np.int64)
            counters[TAKEN] = counters[DONE] = self.rows[self.at][FIRST]
            arguments = self.table, self.numbers, self.at, end, counters, self.like, self.attends, self.remembers
            if self.work[end - 1] - self.work[self.at] >= TOGETHER:
                join_in(walk, *arguments)
            walk(*arguments)
            self.at = end
