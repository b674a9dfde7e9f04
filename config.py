"""What can be chosen?  `Config` holds every choice that makes a model, and says in one line what does not fit.

It imports no other file of ours. The names that may be chosen stand here as literals; a test holds them equal to what
the files offer that compute with them.

Chunk sizes are periods: in tokens for what a mixer holds, in segments for the levels.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

RULES = ("linear", "retention", "delta", "signed", "gated", "oja", "dgd", "dgd-l2")  # of one matrix per head: memory.py
MIXERS = ("titans", "plain-titans", "attention", *RULES, "omega", "ada", "generated", "banks", "cell", "rnn")
MEMORIES = ("q", "k", "v", "eta", "alpha", "memory")  # of self-modifying Titans: titans.py
CHOICES = {"cms": ("sequential", "independent", "nested", "spread"), "memory": ("mlp", "matrix"),
           "objective": ("l2", "dot"), "targets": ("self", "value"), "reads": ("exact", "chunk"),
           "retention": ("initial", "zero"), "form": ("fused", "chunked", "recurrent"),
           "moves": ("optimizer", "context"), "level_drift": ("kept", "ends"),
           "step": ("proximal", "printed"), "features": ("identity", "relu", "elu", "square")}

LEAST = dict.fromkeys((
    "width", "layers", "heads", "segment", "vocabulary", "hidden", "memory_chunk", "projection_chunk",
    "generator_chunk", "generator_rank", "generator_hidden", "omega_window", "error_power"), 1) | dict.fromkeys((
        "memory_hidden", "generator_rate", "learn_rate", "tick", "window"), 0)


@dataclass(frozen=True)
class Config:
    """Every choice that makes a model. Chunk sizes are periods: tokens for memories, segments for levels."""

    width: int = 256            # D, the length of the vector that stands for a token
    layers: int = 4             # blocks
    heads: int = 4              # independent memories per block, each of width/heads
    segment: int = 512          # T, tokens in one training window
    vocabulary: int = 256       # V; bytes by default
    mixer: str = "titans"       # what stands before the levels; with + between, several side by side
    chunks: tuple[int, ...] = (1, 4, 16)  # chunk size of every level, fast to slow, in segments
    cms: str = "sequential"     # how the levels are put together
    hidden: int = 512           # F, hidden size of one level
    window: int = 0             # tokens that attention looks back, the present one among them; 0 = all
    memory: str = "mlp"         # a memory is a residual network of two layers, or one matrix
    memory_hidden: int = 0      # its hidden size; 0 = the head size
    adaptive: tuple[str, ...] = ("k", "v", "eta", "alpha", "memory")  # the memories; "q" may join
    objective: str = "l2"       # what a write lowers: ½‖M(k) − v̂‖², or −⟨M(k), v̂⟩
    targets: str = "self"       # v̂ = M(v), or the value itself
    reads: str = "exact"        # the main memory is read as of the last token, or as of the chunk's start
    memory_chunk: int = 64      # tokens over which the main memory's errors see one frozen state
    projection_chunk: int = 64  # tokens over which k, v, η and α are read of one frozen state
    eta_max: float = 0.5        # bound of the inner learning rate
    eta_start: float = 0.1      # where it starts
    step: str = "proximal"      # of a write: the exact η/(1 + η‖z‖²), or η as the paper prints it
    momentum: bool = False      # what is written goes on, with a retention β of its own
    beta_start: float = 0.5     # where β starts
    error_power: float = 2.0    # p of ‖M(k) − v̂‖ᵖ, where the objective is l2
    features: str = "identity"  # φ of keys and queries of a matrix memory: identity, relu, elu (+ 1), square
    omega_window: int = 4       # c, the tokens that every write of an omega memory learns from
    retention: str = "initial"  # retention pulls towards the initial state, or (literally) towards zero
    through_writes: bool = True  # gradients through the memories' own writes; False cuts them there
    spans: tuple[int, ...] = (2, 8, 32, 128, 512)  # of banks: tokens between two moves of each
    rates: tuple[float, ...] = (0.8, 0.2, 0.05)  # of a cell's states, fast to slow: how far they move
    generator_chunk: int = 8    # tokens between two proposals of a weight generator
    generator_rate: float = 0.1  # how far one of its proposals moves the weights
    generator_rank: int = 2     # rank of a proposal
    generator_hidden: int = 128  # hidden size of the network that proposes
    form: str = "fused"         # how the delta rule is computed: fused, chunked or recurrent
    moves: str = "optimizer"    # in training, levels move with the optimiser, or in the context, too, as in reading
    tick: int = 0               # tokens in a tick of the clocks in the context; 0 = the segment over the slowest chunk
    learn_rate: float = 0.1     # inner learning rate of the levels while reading
    level_rates: tuple[float, ...] = ()  # … of each level, fast to slow, where they differ
    level_drift: str = "kept"   # what a level has learned is kept, or ends when the next slower one moves

    def __post_init__(self) -> None:
        for field in fields(self):
            value = setting(field.name, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}{nearest(getattr(self, name), allowed)}; "
                                 f"choose from {', '.join(allowed)}")
        for part in self.mixer.split("+"):
            if part not in MIXERS:
                raise ValueError(f"mixer {part!r}{nearest(part, MIXERS)}; choose from {', '.join(MIXERS)}, "
                                 "or several with + between")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads gives heads of "
                             f"{self.width / self.heads:g}; the width must be an even multiple of heads")
        if not self.chunks or list(self.chunks) != sorted(self.chunks) or self.chunks[0] < 1:
            raise ValueError(f"chunks {self.chunks}; give the levels' chunk sizes fast to slow, each at "
                             "least 1, such as 1,4,16")
        if not self.spans or min(self.spans) < 1:
            raise ValueError(f"spans {self.spans}; give each bank's in tokens, at least 1, such as 2,8,32")
        if not self.rates or list(self.rates) != sorted(self.rates, reverse=True) or not (
                0 < self.rates[-1] <= self.rates[0] < 1):
            raise ValueError(f"rates {self.rates}; give them fast to slow, between 0 and 1, such as 0.8,0.2")
        unknown = set(self.adaptive) - set(MEMORIES)
        if unknown or "memory" not in self.adaptive:
            raise ValueError(f"adaptive {self.adaptive}; choose from q, k, v, eta, alpha and memory, memory among them")
        if not 0 < self.eta_start < self.eta_max:
            raise ValueError(f"eta_start {self.eta_start} must lie between 0 and eta_max {self.eta_max}")
        if not 0 < self.beta_start < 1:
            raise ValueError(f"beta_start {self.beta_start} must lie between 0 and 1")
        if self.cms == "nested" and (any(b % a for a, b in zip(self.chunks, self.chunks[1:], strict=False))
                                     or self.segment % self.chunks[-1]):
            raise ValueError("nested levels need chunk sizes that divide one another and the segment; "
                             f"chunks {self.chunks} and segment {self.segment} do not")
        if self.level_rates and (len(self.level_rates) != len(self.chunks) or min(self.level_rates) <= 0):
            raise ValueError(f"level_rates {self.level_rates}; give each of the {len(self.chunks)} levels one, above 0")
        if self.moves == "context" and (self.segment % self.tick if self.tick else self.segment % self.chunks[-1]):
            raise ValueError(f"a segment of {self.segment} tokens cannot be cut into ticks of "
                             f"{self.tick or self.segment / self.chunks[-1]:g}; choose a tick that divides it")
        if self.cms == "spread" and len(self.chunks) > self.layers:
            raise ValueError(f"spread levels take a block each; {len(self.chunks)} chunk sizes do not fit in "
                             f"{self.layers} layers")

    def block_levels(self, block: int) -> tuple[int, ...]:
        """Which levels stand in a block: all, or one when they are spread over the depth."""
        levels = len(self.chunks)
        return tuple(range(levels)) if self.cms != "spread" else (block * levels // self.layers,)

    def block_chunks(self, block: int) -> tuple[int, ...]:
        """The chunk sizes of one block's levels."""
        return tuple(self.chunks[n] for n in self.block_levels(block))

    def block_rates(self, block: int) -> tuple[float, ...]:
        """Where the inner learning rates of one block's levels start."""
        return tuple((self.level_rates or [self.learn_rate] * len(self.chunks))[n] for n in self.block_levels(block))

    @property
    def ticks(self) -> int:
        """Ticks of the levels' clocks in one segment, where levels move in the context."""
        return max(1, self.segment // self.tick) if self.tick else self.chunks[-1]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """A config from JSON-like values; ValueError names an unknown key and the nearest known one."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown setting {key!r}{nearest(key, known)}")
        return cls(**values)


KINDS: dict[type, tuple[Any, str]] = {  # of a setting: what it may be given as, and what to say
    bool: ((bool, np.bool_), "true or false"), int: ((int, np.integer), "a whole number"),
    float: ((int, float, np.integer, np.floating), "a finite number"), str: (str, "a word")}


def setting(name: str, value: Any, like: Any) -> Any:
    """The value of a setting, of the type of its default; ValueError if it is of another."""
    if isinstance(like, tuple):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is {value!r}; it must be a list, such as {list(like)}")
        return tuple(setting(name, v, like[0] if like else 1.0) for v in value)
    allowed, words = KINDS[type(like)]
    fits = isinstance(value, allowed) and isinstance(value, (bool, np.bool_)) == isinstance(like, bool)
    if not fits or (isinstance(like, float) and not np.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; it must be {words}, such as {like!r}")
    return type(like)(value)


def nearest(word: Any, known: Sequence[str]) -> str:
    """', did you mean X?' when something known is close."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""
