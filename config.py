"""What can be chosen?  `Config` makes a model, `Training` a run, PRESETS both; what does not fit is said in one line.

It imports no other file of ours. The names that may be chosen stand here as literals; a test holds them equal to what
the files offer that compute with them. The command line (`train.py --help`) is made of this file: a flag for every
field, explained by the comment beside it, under the heading above it.

Chunk sizes are periods: in tokens for what a mixer holds, in segments for the levels.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

RULES = ("linear", "retention", "delta", "signed", "gated", "oja", "dgd", "dgd-l2")  # of one matrix per head: memory.py
MIXERS = ("titans", "plain-titans", "attention", *RULES, "omega", "ada", "generated", "banks", "cell", "rnn")
MEMORIES = ("q", "k", "v", "eta", "alpha", "memory")  # of self-modifying Titans: titans.py
CHOICES = {"cms": ("sequential", "independent", "nested", "spread"), "norm": ("plain", "rms", "layer"),
           "activation": ("gelu", "swiglu"), "memory": ("mlp", "matrix"),
           "objective": ("l2", "dot"), "targets": ("self", "value"), "reads": ("exact", "chunk"),
           "retention": ("initial", "zero"), "form": ("fused", "chunked", "recurrent"),
           "moves": ("optimizer", "context"), "level_drift": ("kept", "ends"),
           "step": ("proximal", "printed"), "features": ("identity", "relu", "elu", "square"),
           "optimizer": ("sgd", "momentum", "adagrad", "adamw", "preconditioned", "delta_momentum", "deep_momentum",
                         "higher_order", "nonlinear", "muon", "m3", "dgd", "multi_timescale"),
           "schedule": ("cosine", "linear", "constant"), "order": ("shuffled", "consecutive"),
           "device": ("auto", "cpu", "cuda"), "matmul": ("float32", "tf32", "bfloat16")}
LEAST = dict.fromkeys((
    "width", "layers", "heads", "segment", "vocabulary", "hidden", "memory_chunk", "projection_chunk",
    "generator_chunk", "generator_rank", "generator_hidden", "omega_window", "error_power", "steps", "batch",
    "accumulate", "validation", "log_every", "checkpoint_every"), 1) | dict.fromkeys((
        "memory_hidden", "generator_rate", "learn_rate", "tick", "drift_rank", "window", "key_heads", "head_size",
        "rotary_base", "positions", "minutes", "warmup", "final",
        "weight_decay", "seed", "threads", "sample_every", "sample_tokens", "keep"), 0)
POSITIVE = ("lr", "clip", "norm_eps")
BIASES = ("qkv", "output", "level")  # where there may be some
LOGS = ("json", "tensorboard", "wandb")  # of a run: log.jsonl is always written


@dataclass(frozen=True)
class Config:
    """Every choice that makes a model."""

    # size
    width: int = 256            # D, the length of the vector that stands for a token
    layers: int = 4             # blocks
    heads: int = 4              # independent memories per block, each of width/heads
    segment: int = 512          # T, tokens in one training window
    vocabulary: int = 256       # V; bytes by default
    # what stands around mixers and levels
    norm: str = "plain"         # before each: RMS without weights, or with, or LayerNorm
    norm_eps: float = 1e-6      # ε of all norms
    scaled: bool = True         # embeddings are multiplied by √width
    tied: bool = True           # the unembedding is the embedding
    positions: int = 0          # P, positions that have an embedding of their own, too; 0 = none have
    biases: tuple[str, ...] = ()  # of qkv (the mixer attention), its output, level
    # what reads in a block
    mixer: str = "titans"       # what stands before the levels; with + between, several side by side
    # levels
    chunks: tuple[int, ...] = (1, 4, 16)  # chunk size of every level, fast to slow, in segments
    cms: str = "sequential"     # how the levels are put together
    hidden: int = 512           # F, hidden size of one level
    activation: str = "gelu"    # of a level; swiglu has a third matrix, its gate
    moves: str = "optimizer"    # in training, levels move with the optimiser, or in the context, too, as in reading
    tick: int = 0               # tokens in a tick of the clocks in the context; 0 = the segment over the slowest chunk
    learn_rate: float = 0.1     # inner learning rate of the levels while reading
    level_rates: tuple[float, ...] = ()  # … of each level, fast to slow, where they differ
    drift_rank: int = 0         # rank of what a level may learn while reading; 0 = all of its weights
    level_drift: str = "kept"   # what a level has learned is kept, or ends when the next slower one moves
    # of the mixers titans and plain-titans
    memory: str = "mlp"         # a memory is a residual network of two layers, or one matrix
    memory_hidden: int = 0      # its hidden size; 0 = the head size
    adaptive: tuple[str, ...] = ("k", "v", "eta", "alpha", "memory")  # the memories; "q" may join
    objective: str = "l2"       # what a write lowers: ½‖M(k) − v̂‖², or −⟨M(k), v̂⟩
    error_power: float = 2.0    # p of Σᵢ|M(k) − v̂|ᵢᵖ/p, where the objective is l2
    targets: str = "self"       # v̂ = M(v), or the value itself
    reads: str = "exact"        # the main memory is read as of the last token, or as of the chunk's start
    memory_chunk: int = 64      # tokens over which the main memory's errors see one frozen state
    projection_chunk: int = 64  # tokens over which k, v, η and α are read of one frozen state
    eta_max: float = 0.5        # bound of the inner learning rate
    eta_start: float = 0.05     # where it starts
    momentum: bool = False      # what is written goes on, with a retention β of its own
    beta_start: float = 0.5     # where β starts
    retention: str = "initial"  # retention pulls towards the initial state, or (literally) towards zero
    through_writes: bool = True  # gradients through the memories' own writes; False cuts them there
    # of how memories are written
    step: str = "proximal"      # of Titans, dgd, dgd-l2: the exact η/(1 + η‖z‖²), or η as the paper prints it
    form: str = "fused"         # how the delta rule and Titans are computed
    # of the mixers with one matrix per head
    features: str = "identity"  # φ of keys and queries: identity, relu, elu (+ 1), square
    omega_window: int = 4       # c, the tokens that every write of an omega memory learns from
    # of the mixer attention
    window: int = 0             # tokens that it, or ada, looks back, the present one among them; 0 = all
    key_heads: int = 0          # heads of keys and values, each for several of queries; 0 = as many
    head_size: int = 0          # d; 0 = width/heads
    rotary_base: float = 10000.0  # of rotary positions; 0 = none
    rotary_scaling: tuple[float, ...] = ()  # of their angles: by one factor, or factor,low,high,length as Llama 3
    # of the mixer banks
    spans: tuple[int, ...] = (2, 8, 32, 128, 512)  # of each: tokens between two moves
    # of the mixer cell
    rates: tuple[float, ...] = (0.8, 0.2, 0.05)  # of its states, fast to slow: how far they move
    # of the mixer generated
    generator_chunk: int = 8    # tokens between two proposals of a weight generator
    generator_rate: float = 0.1  # how far one of its proposals moves the weights
    generator_rank: int = 2     # rank of a proposal
    generator_hidden: int = 128  # hidden size of the network that proposes

    def __post_init__(self) -> None:
        check(self)
        for part in self.mixer.split("+"):
            if part not in MIXERS:
                raise ValueError(f"mixer {part!r}{nearest(part, MIXERS)}; choose from {', '.join(MIXERS)}, "
                                 "or several with + between")
        if not self.head_size and self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} over {self.heads} heads gives heads of "
                             f"{self.width / self.heads:g}; the width must be an even multiple of heads")
        if self.head_size % 2:
            raise ValueError(f"head_size is {self.head_size}; it must be even")
        if self.heads % (self.key_heads or 1):
            raise ValueError(f"{self.heads} heads cannot share {self.key_heads} of keys; these must divide them")
        if self.head_size and self.mixer != "attention":
            raise ValueError(f"head_size is a choice of the mixer attention; of {self.mixer} heads are width/heads")
        if unknown := set(self.biases) - set(BIASES):
            raise ValueError(f"biases {', '.join(sorted(unknown))}; choose from {', '.join(BIASES)}")
        if len(self.rotary_scaling) not in (0, 1, 4) or min(self.rotary_scaling, default=1) <= 0:
            raise ValueError(f"rotary_scaling {self.rotary_scaling}; give factor, or factor,low,high,length")
        if self.positions and (self.mixer != "attention" or self.window):
            raise ValueError("positions are embedded only for the mixer attention without a window, which counts them")
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
        if self.drift_rank > min(self.width, self.hidden):
            raise ValueError(f"drift_rank is {self.drift_rank}; the matrices of a level have at most rank "
                             f"{min(self.width, self.hidden)}")
        if self.level_rates and (len(self.level_rates) != len(self.chunks) or min(self.level_rates) <= 0):
            raise ValueError(f"level_rates {self.level_rates}; give each of the {len(self.chunks)} levels one, above 0")
        if self.moves == "context" and not (self.level_rates or self.learn_rate):
            raise ValueError("learn_rate 0; levels that move in the context learn their rates from one above 0 on")
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
    def in_context(self) -> bool:
        """Whether levels move inside the window that they are trained on."""
        return self.moves == "context" or self.cms == "nested"

    @property
    def ticks(self) -> int:
        """Ticks of the levels' clocks in one segment, where levels move in the context."""
        return self.segment // self.tick if self.tick and self.cms != "nested" else self.chunks[-1]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """A config from JSON-like values; ValueError names an unknown key and the nearest known one."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown setting {key!r}{nearest(key, known)}")
        return cls(**values)


@dataclass(frozen=True)
class Training:
    """Every choice about a run that is not about the model."""

    # how long
    steps: int = 600            # steps of the optimiser
    minutes: float = 0.0        # stop and save after so many minutes, even if steps are left; 0 = no limit
    # what is read
    data: tuple[str, ...] = ()  # files, folders, globs, or one folder of shards; none = the text of this Python
    random_data: bool = False   # read random bytes instead: nothing can be learned of them but their number
    order: str = "shuffled"     # of segments; or consecutive, with the running state carried on
    batch: int = 4              # B, segments read side by side
    accumulate: int = 1         # batches whose gradients make one step
    validation: int = 128       # batches of validation text to measure on, at most
    # the optimiser
    optimizer: str = "adamw"    # a rung of the ladder in optimizers.py
    options: tuple[str, ...] = ()  # the optimiser's own, such as slow_period=8,reading=sum
    lr: float = 2e-3            # learning rate after the warm-up
    warmup: int = 20            # steps in which it rises to that
    schedule: str = "cosine"    # how it falls from there
    final: float = 0.1          # the share of it towards which it falls
    weight_decay: float = 0.1   # of matrices, in units of the learning rate
    clip: float = 1.0           # the gradient is shortened to this norm
    # where it starts
    seed: int = 0               # of the weights, the order and the samples
    origin: str = ""            # a run, or one of its checkpoints: start from its weights, the levels' clocks going on
    # the machine
    device: str = "auto"        # the CPU, an NVIDIA GPU (see gpu/), or auto: a GPU if one can be used
    matmul: str = "float32"     # products of matrices on a GPU, added up in float32
    threads: int = 0            # 0 = as many as there are cores
    # what is kept and shown
    out: str = ""               # the run's folder; none = runs/PRESET-DATE-TIME
    checkpoint_every: int = 100  # steps between two checkpoints
    keep: int = 0               # keep the last so many of them, and the best by validation text; 0 = the last one
    log_every: int = 1          # steps between two lines of log.jsonl
    log: tuple[str, ...] = ()   # where else they go: tensorboard, wandb; json is log.jsonl, written always
    sample_every: int = 100     # steps between two samples; 0 = only one, at the end
    sample_tokens: int = 300    # length of a sample
    baseline: bool = False      # train a Transformer of as many parameters too, for comparison
    quiet: bool = False         # show neither settings nor progress nor samples on the way

    def __post_init__(self) -> None:
        check(self)

        if unknown := set(self.log) - set(LOGS):
            one = min(unknown)
            raise ValueError(f"log {one!r}{nearest(one, LOGS)}; choose from {', '.join(LOGS)}")

        if "" in self.data:
            raise ValueError("data holds a path that is empty; leave it out to read the text of this Python")

        def whole(path: str) -> str:  # to go on from anywhere
            return os.path.abspath(os.path.expanduser(path)) if path else ""
        object.__setattr__(self, "data", tuple(whole(path) for path in self.data))
        object.__setattr__(self, "origin", whole(self.origin))

    def rung(self) -> dict[str, Any]:
        """The optimiser's own options: numbers, true, false as in JSON; anything else is a word."""
        found = {}
        for option in self.options:
            name, equals, value = option.partition("=")
            if not equals:
                raise ValueError(f"the optimiser's option {option!r} has no value; write name=value")
            if name in ("lr", "name", "params"):
                raise ValueError(f"{name} is none of the optimiser's own options: --lr and --optimizer are settings")
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found


def check(choice: Config | Training) -> None:
    """Give every setting the type of its default; ValueError for what is of another kind, unknown or too small."""
    for field in fields(choice):
        name, value = field.name, setting(field.name, getattr(choice, field.name), field.default)
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name} {value!r}{nearest(value, CHOICES[name])}; choose from {', '.join(CHOICES[name])}")
        if name in LEAST and value < LEAST[name]:
            raise ValueError(f"{name} is {value}; it must be at least {LEAST[name]}")
        if name in POSITIVE and value <= 0:
            raise ValueError(f"{name} is {value}; it must be positive")
        object.__setattr__(choice, name, value)


KINDS: dict[type, tuple[Any, str]] = {  # of a setting: what it may be given as, and what to say
    bool: ((bool, np.bool_), "true or false"), int: ((int, np.integer), "a whole number"),
    float: ((int, float, np.integer, np.floating), "a finite number"), str: (str, "a word")}


def setting(name: str, value: Any, like: Any) -> Any:
    """The value of a setting, of the type of its default; ValueError if it is of another."""
    if isinstance(like, tuple):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is {value!r}; it must be a list{f', such as {list(like)}' if like else ''}")
        return tuple(setting(name, v, item(name, like)) for v in value)
    allowed, words = KINDS[type(like)]
    fits = isinstance(value, allowed) and isinstance(value, (bool, np.bool_)) == isinstance(like, bool)
    if not fits or (isinstance(like, float) and not np.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; it must be {words}, such as {like!r}")
    return type(like)(value)


def item(name: str, like: tuple[Any, ...]) -> Any:
    """One of the things that a list of settings holds."""
    return like[0] if like else 1.0 if name in ("level_rates", "rotary_scaling") else ""


def nearest(word: Any, known: Iterable[str]) -> str:
    """', did you mean X?' when something known is close."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""


# The learning rate of an optimiser that takes the place of a preset's own: the best that was measured at nano's width
# (docs/optimizers-rates.json); preconditioned, delta_momentum and multi_timescale have that of their nearest relative.
RATES = {"sgd": 0.01, "momentum": 0.01, "adagrad": 0.003, "adamw": 0.003, "preconditioned": 0.003,
         "delta_momentum": 0.01, "deep_momentum": 0.01, "higher_order": 0.01, "nonlinear": 0.01, "muon": 0.1, "m3": 0.1,
         "dgd": 0.003, "multi_timescale": 0.003}

NANO = Training(steps=500, batch=8, optimizer="muon", lr=0.05, options=("accumulate=gradients",), validation=32)
PRESETS = {
    "tiny": (Config(width=32, layers=2, heads=2, segment=64, hidden=32, memory_chunk=32, projection_chunk=32),
             Training(steps=20, warmup=2, validation=4, sample_every=10, sample_tokens=40, checkpoint_every=10)),
    "nano": (Config(segment=256, eta_start=0.02, memory_hidden=16), NANO),
    # nano's width and depth; of its memories the printed side of every setting, as wide as a head
    "paper-nano": (Config(segment=256, adaptive=MEMORIES, step="printed", momentum=True, retention="zero",
                          reads="chunk", projection_chunk=16, eta_max=0.1, eta_start=0.01), NANO),
    "balanced": (Config(layers=12), Training(steps=5000, warmup=200, batch=8)),
    "deep": (Config(width=384, layers=32, heads=6, segment=768, hidden=768),
             Training(steps=20000, warmup=1000, batch=8, lr=1e-3)),
    "paper-760m": (Config(width=1536, layers=24, heads=16, segment=4096, hidden=2048),  # 30 billion tokens
                   Training(steps=57000, warmup=2000, batch=1, accumulate=128, lr=1.25e-3)),
    "paper-1.3b": (Config(width=2048, layers=24, heads=16, segment=4096, hidden=2560),  # 100 billion tokens
                   Training(steps=190000, warmup=2000, batch=1, accumulate=128, lr=7e-4)),
}


def independent(**choices: Any) -> Config:
    """What small, medium and large share."""
    return Config(cms="independent", chunks=(1, 2, 4), level_rates=(0.01, 0.005, 0.0025), memory_hidden=128,
                  memory_chunk=16, projection_chunk=16, **choices)


def wide(width: int, layers: int, heads: int, segment: int = 2048, **choices: Any) -> Config:
    """What pilot, mid and target share: memories and levels four times as wide as what goes in."""
    return Config(width=width, layers=layers, heads=heads, segment=segment, vocabulary=32000, hidden=4 * width,
                  memory_hidden=4 * width // heads, **choices)


def by_muon(**choices: Any) -> Training:
    """How pilot, mid and target are trained."""
    return Training(optimizer="muon", options=("accumulate=gradients",), weight_decay=0.02, warmup=0,
                    schedule="constant", **choices)


def smoke(preset: tuple[Config, Training], **choices: Any) -> tuple[Config, Training]:
    """A preset that takes seconds on a CPU, to see that all of it works: a small model, ten steps."""
    small: dict[str, Any] = {"width": 64, "layers": 1, "heads": 2, "segment": 64, "hidden": 256} | choices
    few: dict[str, Any] = {"steps": 10, "warmup": 0, "batch": 4, "validation": 4, "log_every": 1,
                           "checkpoint_every": 10, "sample_every": 0, "sample_tokens": 40}
    return replace(preset[0], **small), replace(preset[1], **few)


PRESETS |= {  # of two other reproductions: docs/settings.md tells where these numbers are from
    "small": (independent(width=128, layers=2, heads=4, segment=64, vocabulary=5000, hidden=512),
              Training(steps=500, warmup=50, batch=32, lr=3e-4, weight_decay=0.01, final=0.0)),
    "medium": (independent(width=256, layers=4, heads=8, segment=128, vocabulary=10000, hidden=1024),
               Training(steps=2000, optimizer="m3", lr=RATES["m3"], warmup=50, batch=16, weight_decay=0.01, final=0.0)),
    "large": (independent(width=512, layers=6, heads=8, segment=256, vocabulary=32000, hidden=2048),
              Training(steps=5000, optimizer="dgd", lr=RATES["dgd"], warmup=50, batch=8, weight_decay=0.01, final=0.0)),
    "pilot": (wide(512, 12, 8, chunks=(1, 4, 32, 128), level_rates=(3e-4,) * 4),
              by_muon(steps=246667, batch=6, lr=2.5e-4, seed=1337, checkpoint_every=1000, log_every=50)),
    "mid": (wide(1024, 24, 16, chunks=(1, 4, 32, 128), level_rates=(4e-4,) * 4),
            by_muon(steps=100, batch=16, lr=2e-4, seed=808, checkpoint_every=50, log_every=10)),
    "target": (wide(1536, 32, 24, chunks=(1, 4, 32, 128, 512), level_rates=(3e-4, 2.5e-4, 2e-4, 2e-4, 1.5e-4)),
               by_muon(steps=200, batch=32, lr=1.5e-4, seed=9001, log_every=10)),
}
PRESETS |= {
    "small-smoke": smoke(PRESETS["small"]), "medium-smoke": smoke(PRESETS["medium"]),
    "large-smoke": smoke(PRESETS["large"]),
    "pilot-smoke": smoke(PRESETS["pilot"], width=128, layers=2, heads=4, hidden=512, memory_hidden=128,
                         chunks=(1, 4, 16), level_rates=(5e-4,) * 3),
    "mid-smoke": smoke(PRESETS["mid"], width=256, layers=4, heads=8, hidden=1024, memory_hidden=128,
                       chunks=(1, 4, 16, 64)),
    "target-smoke": smoke(PRESETS["target"], width=256, layers=4, heads=8, hidden=1024, memory_hidden=128)}
