"""How is one token read fast?

By the operations of a model on one more token, bound once to the arrays they work on.
One token is little work: asked of tensors, most of its time goes into the same questions again, of shapes, types,
histories and addresses. A `Plan` has asked them once. What is left is a program of compiled loops with all their
arguments (kernels/program.py), over arrays that stay. Only the running state is made anew for every token, as the model
does it: whoever holds on to an earlier one may go on from there.

The model is the definition: a plan gives each sequence of a batch the bits that the model gives it alone, but by
attention over all that was read, where it is the same to rounding. What it has no loops for, such as attention in a
window or levels that have learned, it asks of the model's own parts.

Legend: B batch, D width, H heads, d head size, F hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

import kernels
from autograd import Tensor
from kernels.program import Program
from kernels.titans import MEMORIES, WORK, Tables, read_token
from layers import AttentionState, CausalAttention, Linear, RMSNorm
from state import BlockState, State
from titans import SelfModifyingTitans, TitansState

Array = np.ndarray
ROOM = 64  # tokens for which there is room behind those that attention has read, or a quarter of those

# Titans -------------------------------------------------------------------------------------------------------


class TitansToken:
    """x += mixer(h) of self-modifying Titans, for one token.  h, x (B,D)"""

    def __init__(self, program: Program, mixer: SelfModifyingTitans, h: Array, x: Array):
        (B, D), H, d, c, dtype = h.shape, mixer.heads, mixer.head_size, mixer.config, h.dtype
        self.mixer, self.h, self.tables, self.program = mixer, h, Tables(dtype, [(1, {})]), program
        self.taps, self.filtered, asked = mixer.conv.weight.data, np.empty((B, 1, D), dtype), np.empty((4, B, D), dtype)
        self.filter = functools.partial(kernels.causal_conv.loop, 0, B)
        self.begin = len(program.rows)
        for f, z in zip(mixer.projection.values(), asked, strict=True):
            program.product(f.weight.data, self.filtered[:, 0], z)
        self.merge = len(program.rows)
        self.o, merged = np.zeros((B * H, 1, d), dtype), np.empty((B * H, d), dtype)
        normed(program, RMSNorm(d, learned=False), self.o[:, 0], merged)
        program.product(mixer.output.weight.data, merged.reshape(B, D), x, x)

        feeds = [z.reshape(B, H, 1, d) for z in asked]
        initial = {name: [M0.data for M0 in layers] for name, layers in mixer.retained().items()}
        biases, readouts = ([w.data for w in ws.values()] for ws in (mixer.bias, mixer.readout))
        self.inputs, self.after, self.momentum_after = self.tables.inputs(  # of states, any: they are written anew
            [*feeds, self.o], biases, readouts, initial, initial, {}, initial if c.momentum else {}, ({}, {}),
            (initial, initial))
        self.moved = np.zeros((1, len(MEMORIES)), bool)
        l2, value_targets, eta_max, power, exact = mixer.kernel_settings()
        settings = np.array([name in c.adaptive for name in MEMORIES]), l2, value_targets, power, exact
        self.read = functools.partial(
            kernels.split, read_token, B * H, WORK * self.o.size, settings, eta_max, self.moved, self.inputs,
            self.after, self.momentum_after, self.o)

        # states are made at once, a field for every layer; rows of a table whose addresses count from where it begins
        layers = {2 * MEMORIES.index(name) + i: M0 for name, pair in initial.items() for i, M0 in enumerate(pair)}
        self.whole = np.dtype([(str(i), dtype, (B, *M0.shape)) for i, M0 in layers.items()])
        self.fields = {name: [str(2 * MEMORIES.index(name) + i) for i in range(2)] for name in initial}
        self.rows = np.zeros((2 * len(MEMORIES), 5), np.int64)
        places: Any = self.whole.fields
        for i, M0 in layers.items():
            self.rows[i] = places[str(i)][1], B * H, M0[0].nbytes, *M0.shape[1:]
        self.begins = np.zeros_like(self.rows)
        self.begins[list(layers), 0] = 1
        self.given: TitansState | None = None  # the state that was given last, and what a state that lies otherwise
        self.copied: list[Array] = []  # was copied to: addresses in tables are of these

    def find(self, state: TitansState) -> None:
        """Put into the tables where a state lies that was not given last."""
        self.copied = []
        for table, layers_of in ((self.inputs.drift, state.drift), (self.inputs.momentum, state.momentum),
                                 (self.inputs.start, state.chunk_start)):
            for name, layers in layers_of.items():
                arrays = [np.require(S.data, self.h.dtype, ["C", "A", "W"]) for S in layers]
                self.copied += arrays
                m = 2 * MEMORIES.index(name)
                table[0, m:m + 2] = Tables(self.h.dtype, [(1, {})])(arrays)

    def make(self, table: Any) -> dict[str, list[Tensor]]:
        """States that are to be filled; their rows are put into the table."""
        whole = np.empty((), self.whole)
        np.multiply(self.begins, whole.__array_interface__["data"][0], out=table[0])
        table += self.rows
        return {name: [Tensor(whole[first]), Tensor(whole[second])] for name, (first, second) in self.fields.items()}

    def __call__(self, state: TitansState) -> TitansState:
        self.program.to(self.begin)
        heard = np.concatenate([state.tail.data, self.h[:, None]], axis=1)
        self.filter(heard, self.taps, self.filtered)
        self.program.to(self.merge)
        if state is self.given:
            self.inputs.drift[...] = self.after
            if state.momentum:
                self.inputs.momentum[...] = self.momentum_after
        else:
            self.find(state)
        self.moved[0] = [name in state.chunk_start for name in MEMORIES]
        np.copyto(self.inputs.start, self.inputs.drift, where=~np.repeat(self.moved, 2)[:, None])
        drift = self.make(self.after)
        momentum = self.make(self.momentum_after) if state.momentum else {}
        self.o.fill(0)
        self.read()
        position = state.position + 1
        start = {name: state.chunk_start.get(name, state.drift[name])
                 for name, size in self.mixer.chunk_size.items() if position % size}
        self.given = TitansState(Tensor(heard[:, 1:].copy()), position, drift, start, momentum)
        return self.given


# Attention ----------------------------------------------------------------------------------------------------


class AttentionToken:
    """x += mixer(h) of attention over all that was read, for one token.  h, x (B,D)

    Keys and values lie in arrays with room for further ones, and a state is as much of them as it has read: whoever
    goes on from the last one writes behind it. From any other, they are copied.
    """

    def __init__(self, program: Program, mixer: CausalAttention, h: Array, x: Array):
        self.mixer, self.program, self.shape, self.dtype = mixer, program, (len(h), mixer.key_heads), h.dtype
        B, H, K, d = len(h), mixer.heads, mixer.key_heads, mixer.size
        q, k, v, read = (np.empty((B, n * d), h.dtype) for n in (H, K, K, H))
        for i, (f, z) in enumerate(((mixer.query, q), (mixer.key, k), (mixer.value, v))):
            program.product(f.weight.data, h, z, None if f.bias is None else f.bias.data, beside=i > 0)
        self.row = program.attention(q, k, v, read, d)
        program.product(mixer.output.weight.data, read, x, x)
        self.last: Callable = lambda: None  # the state that it gave last, as long as anybody has it

    def __call__(self, past: AttentionState | None) -> AttentionState:
        position = 0 if past is None else past.key.shape[2]
        if past is not None and past is self.last() and position < past.key.data.base.shape[2]:
            held = past.key.data.base, past.value.data.base
        else:
            room = *self.shape, position + max(ROOM, position // 4), self.mixer.size
            held = np.empty(room, self.dtype), np.empty(room, self.dtype)
            if past is not None:
                for array, read in zip(held, (past.key, past.value), strict=True):
                    array[:, :, :position] = read.data
        self.by = self.mixer.turn(position, self.dtype)
        self.program.place(self.row, held[0], held[1], position, self.by)
        after = AttentionState(*(Tensor(array[:, :, :position + 1]) for array in held))
        self.last = weakref.ref(after)
        return after


# A block, a model ---------------------------------------------------------------------------------------------


def normed(program: Program, norm: RMSNorm, x: Array, z: Array) -> None:
    """z = norm(x), row by row"""
    program.norm(norm.eps, x, np.ones(x.shape[1], x.dtype) if norm.weight is None else norm.weight.data, z)


class BlockToken:
    """x ← x + mixer(norm x);  x ← cms(x), for one token.  x (B,D), h (B,D) is scratch"""

    def __init__(self, program: Program, block: Any, h: Array, x: Array):
        self.program, self.block, self.h, self.x = program, block, h, x
        normed(program, block.norm, x, h)
        self.begin = len(program.rows)
        self.mixer: Any = None  # the model's own
        if type(block.mixer) is SelfModifyingTitans and block.mixer.known_to_kernel():
            self.mixer = TitansToken(program, block.mixer, h, x)
        elif type(block.mixer) is CausalAttention and not block.mixer.window and block.mixer.output.bias is None:
            self.mixer = AttentionToken(program, block.mixer, h, x)
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
        up, gate, made = (np.empty((len(h), len(level.up.weight)), h.dtype) for _ in range(3))
        normed(program, level.norm, x, h)
        program.product(level.up.weight.data, h, up)
        if hasattr(level, "gate"):
            program.product(level.gate.weight.data, h, gate, beside=True)
            program.swiglu(gate, up, made)
        else:
            program.gelu(up, made)
        program.product(level.down.weight.data, made, x, x)

    def __call__(self, past: BlockState) -> BlockState:
        """What of it is a loop is done by the program, no later than when something needs it."""
        if self.mixer and (past.mixer or type(self.mixer) is AttentionToken):
            mixed = self.mixer(past.mixer)
        else:
            self.program.to(self.begin)
            y, mixed = self.block.mixer(Tensor(self.h[:, None].copy()), past.mixer)
            self.x += y.data[:, 0]
            self.program.at = self.mixed
        if not self.plain or any(level.drift for level in past.levels):
            self.program.to(self.mixed)
            self.x[...] = self.block.cms(Tensor(self.x[:, None].copy()), past.levels).data[:, 0]
            self.program.at = self.end
        return BlockState(mixed, past.levels)


class Plan:
    """A model's operations on one more token of each of B sequences."""

    def __init__(self, model: Any, B: int):
        c, self.table = model.config, model.embedding.data
        self.weights, self.modules = model.parameters(), model.blocks
        self.made_of = self.versions()
        self.fits = all(w.data.flags.carray and w.dtype == self.table.dtype for w in self.weights)
        if self.fits:
            self.scale = self.table.dtype.type(c.width ** 0.5 if c.scaled else 1)
            self.x, h = (np.empty((B, c.width), self.table.dtype) for _ in range(2))
            self.program = Program(self.table.dtype)
            self.blocks = [BlockToken(self.program, block, h, self.x) for block in model.blocks]
            normed(self.program, model.norm, self.x, h)
            self.logits = np.empty((B, c.vocabulary), self.table.dtype)
            self.program.product((model.embedding if c.tied else model.unembedding).data, h, self.logits)
            self.program.ready()
        self.last: Any = None  # the state that it gave last, as long as anybody has it

    def versions(self) -> list[Any]:
        """What changes when a weight gets another array, a block another mixer, or that other settings"""
        return [w.changed for w in self.weights] + [
            part for block in self.modules for part in (block.mixer, getattr(block.mixer, "config", None))]

    def knows(self, state: State) -> bool:
        """Whether it is the state that was given last, which need not be looked at again."""
        return self.last is not None and self.last() is state

    def __call__(self, tokens: Array, state: State) -> tuple[Tensor, State]:
        """Logits (B,1,V) after tokens (B,1), and the state then."""
        np.multiply(self.table[tokens[:, 0]], self.scale, out=self.x)
        self.program.at = 0
        after = State([block(past) for block, past in zip(self.blocks, state.blocks, strict=True)], state.clock)
        self.last = weakref.ref(after)
        self.program.to(self.program.end)
        return Tensor(self.logits[:, None].copy()), after


KEPT = 4  # plans of one model, for as many sizes of a batch
_plans = threading.local()  # of this thread, for plans hold arrays that are written into: by the model, by the batch


def plan(model: Any, B: int) -> Plan | None:
    """A plan of the model as it is now; None where the model itself has to run."""
    table, norms = model.embedding.data, [model.norm, *(block.norm for block in model.blocks)]
    if not kernels.JIT or model.config.positions or type(table) is not np.ndarray or any(
            type(norm) is not RMSNorm for norm in norms) or table.dtype not in (np.float32, np.float64):
        return None
    plans = vars(_plans).setdefault("of", weakref.WeakKeyDictionary()).setdefault(model, {})
    if B not in plans or plans[B].made_of != plans[B].versions():
        if B not in plans and len(plans) == KEPT:
            del plans[next(iter(plans))]
        plans[B] = Plan(model, B)
    return plans[B] if plans[B].fits else None
