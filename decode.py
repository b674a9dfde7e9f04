"""How is one token read fast?

By the operations of a model on one more token, bound once to the arrays they work on.
One token is little work: asked of tensors, most of its time goes into the same questions again, of shapes, types,
histories and addresses. A `Plan` has asked them once. What is left is a program of compiled loops with all their
arguments (kernels/program.py), over arrays that stay. Only the running state is made anew for every token, as the model
does it: whoever holds on to an earlier one may go on from there. Its tensors are made when someone looks at it.

The model is the definition: a plan gives each sequence of a batch the bits that the model gives it alone, but by
attention over all that was read, where it is the same to rounding. What it has no loops for, such as attention in a
window or levels that have learned, it asks of the model's own parts.

Legend: B batch, D width, H heads, d head size, F hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

import kernels
from autograd import Tensor, last_change, no_grad
from cms import LevelState
from kernels.lanes import LANES
from kernels.program import Program
from kernels.shared import aligned
from kernels.titans import MEMORIES, Tables
from kernels.titans.token import (
    AFTER,
    BEFORE,
    DRIFT,
    HELD,
    LAYERS,
    MOMENTUM,
    ROWS,
    START,
    settings_of,
    table_of,
)
from layers import AttentionState, CausalAttention, Linear, RMSNorm, last_setting
from state import BlockState, State
from titans import SelfModifyingTitans, TitansState

Array = np.ndarray
ROOM = 64  # tokens for which there is room behind those that attention has read, or a quarter of those


# Titans -------------------------------------------------------------------------------------------------------


class Memories:
    """What self-modifying Titans of all layers hold after a token: tails, drifts and momenta, and where they lie.

    at (L,HELD): addresses; made (L,·): all numbers; tensors: by layer a tail, and drifts and momenta by name, made when
    someone looks at them.
    """

    def __init__(self, at: Array, made: Any, tensors: Callable[[Any], list[dict[str, Any]]]):
        self.at, self.made, self.make = at, made, tensors

    @cached_property
    def tensors(self) -> list[dict[str, Any]]:
        return self.make(self.made)


class Starts(dict[str, Memories]):
    """By the name of a memory that is inside a chunk: what memories held where that began"""


class TitansToken:
    """x += mixer(h) of self-modifying Titans, for one token, in every layer that has them.  h, x (B,D)

    Where states lie is put into the tables of all layers at once; new ones are parts of one new array.
    """

    def __init__(self, B: int, dtype: Any, layers: int):
        self.B, self.dtype, self.tables = B, dtype, np.zeros((layers, ROWS, 5), np.int64)  # of at most so many layers
        self.mixers: list[SelfModifyingTitans] = []
        self.kept: list[Any] = []  # whose addresses stand in the tables
        self.placed: Callable = lambda: None  # the starts whose addresses stand there

    def fits(self, mixer: Any) -> bool:
        """Whether it is one of Titans, and like those before it."""
        return type(mixer) is SelfModifyingTitans and mixer.known_to_kernel() and all(
            common(mixer) == common(other) for other in self.mixers[:1])

    def add(self, program: Program, mixer: SelfModifyingTitans, h: Array, x: Array) -> None:
        (B, D), H, d, c, dtype = h.shape, mixer.heads, mixer.head_size, mixer.config, h.dtype
        filtered, asked = aligned((B, D), dtype), aligned((4, B, D), dtype)
        o, merged = aligned((B * H, 1, d), dtype), aligned((B * H, d), dtype)
        initial = {name: [M0.data for M0 in layers] for name, layers in mixer.retained().items()}
        biases, readouts = ([w.data for w in ws.values()] for ws in (mixer.bias, mixer.readout))
        tables, feeds = Tables(dtype, [(1, {})]), [z.reshape(B, H, 1, d) for z in asked]
        found = tables.inputs(  # of states, any: where they lie is put in before every token
            [*feeds, o], biases, readouts, initial, initial, {}, initial if c.momentum else {}, ({}, {}),
            (initial, initial))
        table, (l2, value_targets, eta_max, forgets, exact) = self.tables[len(self.mixers)], mixer.kernel_settings()
        table[:] = table_of(tables, found, B * H, d)
        table[START:, 1] *= B
        table[[BEFORE, AFTER], 1:] = B, (mixer.conv.taps - 1) * D * dtype.itemsize, mixer.conv.taps - 1, D
        self.kept.append(tables)
        self.mixers.append(mixer)

        program.filter(table, h, mixer.conv.weight.data, filtered)
        for i, (f, z) in enumerate(zip(mixer.projection.values(), asked, strict=True)):
            program.product(f.weight.data, filtered, z, beside=i > 0)
        settings = settings_of(c.adaptive, l2, value_targets, forgets, exact, c.momentum, d, initial)
        program.memories(table, settings, eta_max, B * H)
        program.norm(1e-6, o[:, 0], np.ones(d, dtype), merged)  # no module is made: see stands
        program.product(mixer.output.weight.data, merged.reshape(B, D), x, x)

    def ready(self) -> None:
        """No layer is added any more: the shapes of what each holds, and where it lies in an array of all."""
        self.tables, mixer = self.tables[:len(self.mixers)], self.mixers[0]
        self.before, self.after = self.tables[:, BEFORE:AFTER, 0], self.tables[:, AFTER:, 0]
        self.start, self.sizes = self.tables[:, START:BEFORE, 0], mixer.chunk_size
        self.parts: list[tuple[str, str, int, tuple[int, ...]]] = []
        self.size, places = 0, np.zeros(HELD, np.int64)

        def part(kind: str, name: str, place: int, *shapes: tuple[int, ...]) -> None:
            for i, shape in enumerate(shapes):
                places[place + i] = self.size * self.dtype.itemsize
                self.parts.append((kind, name, self.size, (self.B, *shape)))
                self.size += -(-self.B * math.prod(shape) // LANES) * LANES  # each begins with a line of the cache
        part("tail", "", 0, (mixer.conv.taps - 1, mixer.heads * mixer.head_size))
        for kind, first in (("drift", DRIFT), ("momentum", MOMENTUM))[:1 + mixer.config.momentum]:
            for name, layers in mixer.initial.items():
                part(kind, name, first + 2 * MEMORIES.index(name), *(M0.shape for M0 in layers))
        self.places = np.arange(len(self.mixers))[:, None] * self.size * self.dtype.itemsize + places

    def tensors(self, made: Array) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for row in made:
            its: dict[str, Any] = {"drift": {}, "momentum": {}}
            for kind, name, first, shape in self.parts:
                x = Tensor(row[first:first + math.prod(shape)].reshape(shape))
                if kind == "tail":
                    its[kind] = x
                else:
                    its[kind].setdefault(name, []).append(x)
            found.append(its)
        return found

    def find(self, states: list[TitansState]) -> tuple[Memories, Starts]:
        """Where states lie that another hand has made; what lies otherwise is copied."""
        at, starts = np.zeros((2, len(states), HELD), np.int64)
        kept: list[Array] = []

        def rows(layers: list[Tensor]) -> list[int]:
            arrays = [np.require(S.data, self.dtype, ["C", "A", "W"]) for S in layers]
            kept.extend(arrays)
            return [array.ctypes.data for array in arrays]
        for layer, state in enumerate(states):
            at[layer, 0], = rows([state.tail])
            for table, first, found in ((at, DRIFT, state.drift), (at, MOMENTUM, state.momentum),
                                        (starts, DRIFT, state.chunk_start)):
                for name, layers in found.items():
                    m = first + 2 * MEMORIES.index(name)
                    table[layer, m:m + 2] = rows(layers)
        now = Memories(at, kept, lambda kept: [vars(state) for state in states])
        begun = Memories(starts, kept, lambda kept: [{"drift": state.chunk_start} for state in states])
        return now, Starts(dict.fromkeys(states[0].chunk_start, begun))

    def __call__(self, memories: Memories, starts: Starts) -> Memories:
        """Where everything lies that the program will read and write; what it will have written."""
        made = aligned((len(self.mixers), self.size), self.dtype)
        after = Memories(self.places + made.__array_interface__["data"][0], made, self.tensors)
        self.before[...], self.after[...] = memories.at, after.at
        if len(starts) < len(self.sizes) or self.placed() is not starts:
            self.start[...] = memories.at[:, DRIFT:DRIFT + LAYERS]
            for name, start in starts.items():
                m = 2 * MEMORIES.index(name)
                self.start[:, m:m + 2] = start.at[:, DRIFT + m:DRIFT + m + 2]
            self.placed = weakref.ref(starts)
        return after

    def begun(self, starts: Starts, before: Memories, position: int) -> Starts:
        """Of each memory that is inside a chunk after `position` tokens: what was held where that chunk began."""
        if len(starts) == len(self.sizes) and all(map(position.__mod__, self.sizes.values())):
            return starts
        return Starts({name: starts.get(name, before) for name, size in self.sizes.items() if position % size})


def common(mixer: SelfModifyingTitans) -> Any:
    """What layers must have in common: when chunks end, and the shapes of what is held"""
    shapes = {name: [M0.shape for M0 in layers] for name, layers in mixer.initial.items()}
    return mixer.chunk_size, shapes, mixer.config.momentum, mixer.conv.weight.shape


# Attention ----------------------------------------------------------------------------------------------------


class Read:
    """Keys and values of all that attention of all layers has read, with room for further ones.

    A state is as much of them as it has read: whoever goes on from the longest writes behind it.
    """

    def __init__(self, arrays: list[tuple[Array, Array]], filled: int):
        self.arrays, self.filled = arrays, filled


class AttentionToken:
    """x += mixer(h) of attention over all that was read, for one token, in every layer that has it.  h, x (B,D)"""

    def __init__(self) -> None:
        self.mixers: list[CausalAttention] = []
        self.rows: list[int] = []
        self.placed: Any = lambda: None  # what the program's addresses are of
        self.by: list[Any] = []

    def fits(self, mixer: Any) -> bool:
        return type(mixer) is CausalAttention and not mixer.window and mixer.output.bias is None

    def add(self, program: Program, mixer: CausalAttention, h: Array, x: Array) -> None:
        B, H, K, d = len(h), mixer.heads, mixer.key_heads, mixer.size
        q, k, v, read = (aligned((B, n * d), h.dtype) for n in (H, K, K, H))
        for i, (f, z) in enumerate(((mixer.query, q), (mixer.key, k), (mixer.value, v))):
            program.product(f.weight.data, h, z, None if f.bias is None else f.bias.data, beside=i > 0)
        self.rows.append(program.attention(q, k, v, read, d))
        program.product(mixer.output.weight.data, read, x, x)
        self.mixers.append(mixer)

    def find(self, states: list[AttentionState | None], B: int, dtype: Any) -> tuple[Read, int]:
        """Keys and values that another hand has made, with room behind them; how many"""
        t = 0 if states[0] is None else states[0].key.shape[2]
        shapes = [(B, mixer.key_heads, t + max(ROOM, t // 4), mixer.size) for mixer in self.mixers]
        held = [(aligned(shape, dtype), aligned(shape, dtype)) for shape in shapes]
        for state, arrays in zip(states, held, strict=True):
            for array, read in zip(arrays, (state.key, state.value), strict=True) if state else ():
                array[:, :, :t] = read.data
        return Read(held, t), t

    def __call__(self, program: Program, read: Read, t: int) -> Read:
        """Where the program finds keys and values of t tokens, and writes those of one more."""
        if read.filled != t or t == read.arrays[0][0].shape[2]:
            read, _ = self.find([AttentionState(*(Tensor(x[:, :, :t]) for x in pair)) for pair in read.arrays],
                                len(read.arrays[0][0]), program.like.dtype)
        if self.placed() is not read:
            for row, (keys, values) in zip(self.rows, read.arrays, strict=True):
                program.place(row, keys, values)
            self.placed = weakref.ref(read)
        self.by = [mixer.turn(t, program.like.dtype) for mixer in self.mixers]
        program.turn_to(self.rows, t, self.by)
        read.filled = t + 1
        return read


# A block, a model ---------------------------------------------------------------------------------------------


def normed(program: Program, norm: RMSNorm, x: Array, z: Array) -> None:
    """z = norm(x), row by row"""
    program.norm(norm.eps, x, np.ones(x.shape[1], x.dtype) if norm.weight is None else norm.weight.data, z)


class PlannedState(State):
    """A state whose tensors are made when someone looks at them: mostly nobody does before the next token."""

    def __init__(self, kinds: list[str], position: int, memories: Any, starts: Starts, read: Any, others: list[Any],
                 levels: list[tuple[LevelState, ...]], drifted: bool, clock: int):
        self.kinds, self.position, self.memories, self.starts, self.read = kinds, position, memories, starts, read
        self.others, self.levels, self.drifted, self.clock = others, levels, drifted, clock

    @cached_property
    def blocks(self) -> list[BlockState]:  # type: ignore[override]  # made when someone looks
        layer = {"titans": 0, "attention": 0}
        found: list[BlockState] = []
        for kind, mixed, levels in zip(self.kinds, self.others, self.levels, strict=True):
            if kind == "titans":
                its = self.memories.tensors[layer[kind]]
                start = {name: held.tensors[layer[kind]]["drift"][name] for name, held in self.starts.items()}
                mixed = TitansState(its["tail"], self.position, its["drift"], start, its["momentum"])
            elif kind == "attention":
                mixed = AttentionState(*(Tensor(x[:, :, :self.position]) for x in self.read.arrays[layer[kind]]))
            layer[kind] = layer.get(kind, 0) + 1
            found.append(BlockState(mixed, levels))
        return found


class BlockToken:
    """x ← x + mixer(norm x);  x ← cms(x), for one token.  x (B,D), h (B,D) is scratch"""

    def __init__(self, program: Program, block: Any, h: Array, x: Array, known: dict[str, Any]):
        self.program, self.block, self.h, self.x = program, block, h, x
        normed(program, block.norm, x, h)
        self.begin = len(program.rows)
        self.kind = next((kind for kind, layers in known.items() if layers.fits(block.mixer)), "other")
        if self.kind in known:
            known[self.kind].add(program, block.mixer, h, x)
        self.mixed = len(program.rows)
        layers = [layer for level in block.cms.levels for layer in vars(level).values()]
        plain = all(f.bias is None for f in layers if isinstance(f, Linear))
        self.plain = plain and block.cms.variant != "independent" and all(
            type(level.norm) is RMSNorm for level in block.cms.levels)
        if self.plain:
            for level in block.cms.levels:
                self.level(level)
        self.end = len(program.rows)

    def level(self, level: Any) -> None:
        """x += MLP(norm x)"""
        program, h, x = self.program, self.h, self.x
        up, gate, made = (aligned((len(h), len(level.up.weight)), h.dtype) for _ in range(3))
        normed(program, level.norm, x, h)
        program.product(level.up.weight.data, h, up)
        if hasattr(level, "gate"):
            program.product(level.gate.weight.data, h, gate, beside=True)
            program.swiglu(gate, up, made)
        else:
            program.gelu(up, made)
        program.product(level.down.weight.data, made, x, x)

    def __call__(self, past: Any, levels: tuple[LevelState, ...]) -> Any:
        """Do what is no loop of the program, when all before it is done; the state of a mixer that is none."""
        mixed = None
        if self.kind == "other":
            self.program.to(self.begin)
            y, mixed = self.block.mixer(Tensor(self.h[:, None].copy()), past)
            self.x += y.data[:, 0]
            self.program.at = self.mixed
        if not self.plain or any(level.drift for level in levels):
            self.program.to(self.mixed)
            self.x[...] = self.block.cms(Tensor(self.x[:, None].copy()), levels).data[:, 0]
            self.program.at = self.end
        return mixed


def parts(model: Any) -> list[Any]:
    """What stands in lists, which may be changed in place: blocks, and their levels."""
    return [part for block in model.blocks for part in (block, *block.cms.levels)]


class Plan:
    """A model's operations on one more token of each of B sequences."""

    def __init__(self, model: Any, B: int):
        c, self.table = model.config, model.embedding.data
        self.weights, self.last_change = model.parameters(), last_change[0]
        self.settings, self.held = last_setting[0], parts(model)
        self.changes = [w.changed for w in self.weights]
        self.fits = kernels.JIT and not c.positions and type(self.table) is np.ndarray and all(
            type(norm) is RMSNorm for norm in [model.norm, *(block.norm for block in model.blocks)]) and (
            self.table.dtype in (np.float32, np.float64)) and all(
            w.data.flags.carray and w.dtype == self.table.dtype for w in self.weights)
        if self.fits:
            self.scale = self.table.dtype.type(c.width ** 0.5 if c.scaled else 1)
            self.x, h = (aligned((B, c.width), self.table.dtype) for _ in range(2))
            self.program = Program(self.table.dtype)
            self.titans, self.attention = TitansToken(B, self.table.dtype, len(model.blocks)), AttentionToken()
            known = {"titans": self.titans, "attention": self.attention}
            self.blocks = [BlockToken(self.program, block, h, self.x, known) for block in model.blocks]
            self.kinds = [block.kind for block in self.blocks]  # and, as it is this very list, of which plan a state is
            self.whole = "other" not in self.kinds and all(block.plain for block in self.blocks)
            if self.titans.mixers:
                self.titans.ready()
            normed(self.program, model.norm, self.x, h)
            self.logits = aligned((B, c.vocabulary), self.table.dtype)
            self.program.product((model.embedding if c.tied else model.unembedding).data, h, self.logits)
            self.program.ready()

    def stands(self, model: Any) -> bool:
        """Whether every weight has the array that it had, nobody has set an attribute of a module since, and blocks
        and levels are those that they were.
        """
        if self.last_change != last_change[0]:
            if self.changes != [w.changed for w in self.weights]:
                return False
            self.last_change = last_change[0]
        return self.settings == last_setting[0] and self.held == parts(model)

    def knows(self, state: State) -> bool:
        """Whether it is a state that this plan gave, which need not be looked at."""
        return isinstance(state, PlannedState) and state.kinds is self.kinds

    def find(self, state: State) -> PlannedState:
        """A state that another hand has made, as this plan has its own"""
        mixed: dict[str, list] = {}
        for kind, block in zip(self.kinds, state.blocks, strict=True):
            mixed.setdefault(kind, []).append(block.mixer)
        memories, starts, read, position = None, Starts(), None, 0
        if found := mixed.get("titans"):
            of_batch = Tensor(self.x[:, None])
            found = [past or mixer.start(of_batch) for past, mixer in zip(found, self.titans.mixers, strict=True)]
            memories, starts = self.titans.find(found)
            position = found[0].position
        if found := mixed.get("attention"):
            read, position = self.attention.find(found, len(self.x), self.x.dtype)
        others = [block.mixer if kind == "other" else None
                  for kind, block in zip(self.kinds, state.blocks, strict=True)]
        drifted = any(level.drift for block in state.blocks for level in block.levels)
        return PlannedState(self.kinds, position, memories, starts, read, others,
                            [block.levels for block in state.blocks], drifted, state.clock)

    def __call__(self, tokens: Array, state: State) -> tuple[Tensor, State]:
        """Logits (B,1,V) after tokens (B,1), and the state then."""
        past: PlannedState = state if self.knows(state) else self.find(state)  # type: ignore[assignment]
        self.table.take(tokens[:, 0], 0, self.x, "clip")
        if self.scale != 1:
            self.x *= self.scale
        memories, starts, read, t = past.memories, past.starts, past.read, past.position
        if memories:
            memories = self.titans(memories, starts)
            starts = self.titans.begun(starts, past.memories, t + 1)
        if read:
            read = self.attention(self.program, read, t)
        self.program.at, others = 0, past.others
        if past.drifted or not self.whole:
            with no_grad():
                others = [block(mixed, levels) for block, mixed, levels in zip(
                    self.blocks, past.others, past.levels, strict=True)]
        self.program.to(self.program.end)
        after = PlannedState(self.kinds, t + 1, memories, starts, read, others, past.levels, past.drifted, past.clock)
        return Tensor(self.logits[:, None].copy()), after


KEPT = 4  # plans of one model, for as many sizes of a batch
_plans = threading.local()  # of this thread, for plans hold arrays that are written into: by the model, by the batch


def plan(model: Any, B: int) -> Plan | None:
    """A plan of the model as it is now; None where the model itself has to run."""
    plans = vars(_plans).setdefault("of", weakref.WeakKeyDictionary()).setdefault(model, {})
    if B not in plans or not plans[B].stands(model):
        if B not in plans and len(plans) == KEPT:
            del plans[next(iter(plans))]
        plans[B] = Plan(model, B)
    return plans[B] if plans[B].fits else None
