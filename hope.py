"""What is Hope?  A stack of blocks: self-modifying Titans, then a continuum memory system [A 94–97].

    x ← x + mixer(norm x);   x ← cms(x)          for every block;  embedding in, tied unembedding out

One `Config` holds every choice. Hope-Attention is the same with `mixer="attention"`; the Transformer is that
with one level, `chunks=(1,)`. So every baseline is a setting, not another program.

Three things differ in how they are kept. The *parameters* (initial states of all memories among them) are
learned by the outer optimiser. The *running state* is what reading has changed, one per sequence:
`logits, state = model(tokens, state)`. The *learning while reading* of the slow levels is a call of its own:
`loss, state = model.learn(tokens, state)`.

Legend: B batch, T time, V vocabulary, D width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import cms
from autograd import (
    Tensor,
    embedding,
    enable_grad,
    grad,
    host,
    mean,
    no_grad,
    stack,
    sum,
    tensor,
    tree_leaves,
    tree_map,
)
from config import Config
from layers import CausalAttention, Module, RMSNorm, Rng, fused_cross_entropy, linear, normal, rms_norm
from memory import RULES, MatrixMemory, SelfModifyingTitans, SimpleRecurrent, WeightGenerator

OTHERS: dict[str, type] = {"generated": WeightGenerator, "banks": cms.Banks, "cell": cms.Cell,
                           "rnn": SimpleRecurrent}

# The running state ------------------------------------------------------------------------------------------

@dataclass
class State:
    """What reading has changed: per block the mixer's memories, each level's drift and what it gathered."""

    blocks: list[dict[str, Any]]
    clock: int = 0  # segments learned from

    @classmethod
    def start(cls, config: Config) -> State:
        """The state before the first token."""
        return cls([{"mixer": None, "drift": [None] * len(config.block_chunks(b)),
                     "pending": [None] * len(config.block_chunks(b))} for b in range(config.layers)])

    def leaves(self) -> list[Tensor]:
        """Its distinct tensors; the first axis of each is the batch."""
        return tree_leaves(self.blocks)

    def detach(self) -> State:
        """The same values without history: gradients end here."""
        return State(tree_map(Tensor.detach, self.blocks), self.clock)

    def reset(self, what: str = "all") -> State:
        """A state without its memories ("memory"), what its levels learned ("levels"), or both ("all")."""
        if what not in ("all", "memory", "levels"):
            raise ValueError(f"reset {what!r}; choose all, memory or levels")
        blocks = []
        for b in self.blocks:
            none = [None] * len(b["drift"])
            levels = {} if what == "memory" else {"drift": none, "pending": none}
            blocks.append({**b, **levels, "mixer": b["mixer"] if what == "levels" else None})
        return State(blocks, self.clock if what == "memory" else 0)

    @property
    def nbytes(self) -> int:
        """Size in memory, tensors that are shared counted once."""
        return int(np.sum([t.data.nbytes for t in self.leaves()]))

    def pack(self) -> dict[str, np.ndarray]:
        """Flat arrays for an .npz: every distinct tensor, and the shape of the nest as JSON."""
        arrays: list[np.ndarray] = []

        def number(t: Tensor) -> dict[str, int]:
            arrays.append(np.asarray(host(t.data)))
            return {"array": len(arrays) - 1}
        text = json.dumps({"blocks": tree_map(number, self.blocks), "clock": self.clock})
        return {"state": np.array(text)} | {f"state.{i}": a for i, a in enumerate(arrays)}

    @classmethod
    def unpack(cls, arrays: Any) -> State:
        """The state that `pack` flattened; tensors that were shared are shared again."""
        tensors: dict[int, Tensor] = {}

        def restore(tree: Any) -> Any:
            if isinstance(tree, dict) and "array" in tree:
                i = tree["array"]
                tensors.setdefault(i, Tensor(arrays[f"state.{i}"]))
                return tensors[i]
            if isinstance(tree, dict):
                return {k: restore(v) for k, v in tree.items()}
            return [restore(v) for v in tree] if isinstance(tree, list) else tree
        found = json.loads(str(arrays["state"]))
        return cls(restore(found["blocks"]), found["clock"])

    def save(self, path: str | Path) -> None:
        """Write the state to an .npz file (beside it first, then renamed)."""
        write_npz(path, self.pack())

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read a state that `save` wrote."""
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return cls.unpack(arrays)


def write_npz(path: str | Path, arrays: dict[str, Any]) -> None:
    """Write arrays so that the file at `path` is at every moment either the old one or the new one, whole."""
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as f:
            np.savez(f, **{name: host(array) for name, array in arrays.items()})
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# The model --------------------------------------------------------------------------------------------------

def make_mixer(rng: Rng | None, config: Config) -> Module:
    """What stands before the levels in a block, by `config.mixer`; plain Titans are [A 76–78]."""
    if config.mixer == "attention":
        return CausalAttention(rng, config.width, config.heads, (2 * config.layers) ** -0.5)
    if "+" in config.mixer:
        return SideBySide([make_mixer(rng, replace(config, mixer=name)) for name in config.mixer.split("+")])
    if config.mixer in OTHERS:
        return OTHERS[config.mixer](rng, config)
    if config.mixer in RULES:
        return MatrixMemory(rng, config, config.mixer)
    if config.mixer == "plain-titans":  # one memory that learns, fed by projections that do not [Titans]
        config = replace(config, adaptive=("memory",), targets="value")
    return SelfModifyingTitans(rng, config)


class SideBySide(Module):
    """Several mixers that read the same; their answers are added.  x (B,T,D); state: theirs, in order"""

    def __init__(self, mixers: Sequence[Any]):
        self.mixers = list(mixers)

    def __call__(self, x: Tensor, state: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        pasts = state or [None] * len(self.mixers)
        read = [mixer(x, past) for mixer, past in zip(self.mixers, pasts, strict=True)]
        return sum(stack([y for y, _ in read]), axis=0), [present for _, present in read]


class Block(Module):
    """x ← x + mixer(norm x);  x ← cms(x) [A 94–97].  x (B,T,D)"""

    def __init__(self, rng: Rng | None, config: Config, index: int):
        self.mixer: Any = make_mixer(rng, config)
        self.cms = cms.CMS(rng, config, index)

    def __call__(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        y, mixed = self.mixer(rms_norm(x), state["mixer"])
        return self.cms(x + y, state["drift"]), {**state, "mixer": mixed}


class Hope(Module):
    """The language model. tokens (B,T) integers → logits (B,T,V)."""

    def __init__(self, config: Config, rng: Rng | None):
        self.config = config
        self.embedding = normal(rng, (config.vocabulary, config.width), 0.02)
        self.blocks = [Block(rng, config, i) for i in range(config.layers)]
        self.norm = RMSNorm(config.width)
        for name, p in self.named_parameters():
            p.name = name

    def __call__(self, tokens: Any, state: State | None = None) -> tuple[Tensor, State]:
        state = state or State.start(self.config)
        x = embedding(self.embedding, self._checked(tokens, state)) * self.config.width ** 0.5
        blocks = []
        for block, past in zip(self.blocks, state.blocks, strict=True):
            x, present = block(x, past)
            blocks.append(present)
        return linear(self.norm(x), self.embedding), State(blocks, state.clock)

    def _checked(self, tokens: Any, state: State | None) -> Any:
        """Tokens that can be read, where the weights are."""
        tokens = tensor(tokens).data
        if tokens.ndim != 2 or not tokens.size:
            raise ValueError("tokens must have shape (batch, time) with at least one token, "
                             f"not {tokens.shape}")
        ours = isinstance(tokens, np.ndarray)  # those on a card were looked at before they went there
        if ours and (tokens.min() < 0 or tokens.max() >= self.config.vocabulary):
            raise ValueError(f"tokens must lie in 0..{self.config.vocabulary - 1}, as the vocabulary is "
                             f"{self.config.vocabulary}; these lie in {tokens.min()}..{tokens.max()}")
        for t in state.leaves() if state else ():
            if len(t) != len(tokens):
                raise ValueError(f"the state is of {len(t)} sequences and the tokens are of {len(tokens)}; "
                                 "every sequence needs its own state")
        return np.asarray(tokens, like=self.embedding.data)

    def loss(self, tokens: Any, state: State | None = None) -> tuple[Tensor, State]:
        """Mean negative log-likelihood, in nats, of each token after the first: tokens (B,T+1)."""
        tokens = self._checked(tokens, state)
        logits, state = self(tokens[:, :-1], state)
        return mean(fused_cross_entropy(logits, targets=tokens[:, 1:])), state

    # learning while reading ---------------------------------------------------------------------------------

    def drifts(self, state: State, batch: int) -> list[list[dict[str, Tensor]]]:
        """The drift of every level of every block, none as zeros, in a form that gradients can be taken of."""
        return [[level.zero_drift(batch) if moved is None else
                 {name: Tensor(d.data, requires_grad=True) for name, d in moved.items()}
                 for level, moved in zip(block.cms.levels, past["drift"], strict=True)]
                for block, past in zip(self.blocks, state.blocks, strict=True)]

    @enable_grad()
    def learn(self, tokens: Any, state: State | None = None, rate: float | None = None
              ) -> tuple[float, State]:
        """Predict a segment, then let the levels whose clock is due learn from it: tokens (B,T+1).

        Only the running state moves: each sequence's drift, by the gradient of its own loss, summed over the
        last C_ℓ segments [A 71] and clipped to norm 1 per sequence and level (CHOICE: f is the plain
        gradient). Nested levels return to their initial states when the clock of the next slower level is due
        [A 72]. Returns the mean loss before learning, and the state after it.
        """
        rate = self.config.learn_rate if rate is None else rate
        state, tokens = (state or State.start(self.config)).detach(), self._checked(tokens, state)
        batch, time = tokens.shape[0], tokens.shape[1] - 1
        drift = self.drifts(state, batch)
        asked = [{**past, "drift": moved} for past, moved in zip(state.blocks, drift, strict=True)]
        logits, after = self(tokens[:, :-1], State(asked, state.clock))
        losses = fused_cross_entropy(logits, targets=tokens[:, 1:])  # (B,T)
        leaves = [d for moved in drift for level in moved for d in level.values()]
        found = iter(grad(sum(losses) * (1 / time), leaves))
        clock = state.clock + 1
        blocks = []
        for block, past, read, moved in zip(self.blocks, state.blocks, after.blocks, drift, strict=True):
            ticks = [block.cms.tick(n, clock, d, pending, {name: next(found) for name in d}, rate)
                     for n, (d, pending) in enumerate(zip(moved, past["pending"], strict=True))]
            blocks.append({**read, "drift": [d for d, _ in ticks], "pending": [p for _, p in ticks]})
        return float(np.mean(losses.data)), State(blocks, clock).detach()

    @enable_grad()
    def nested_loss(self, tokens: Any, state: State | None = None, first_order: bool = False
                    ) -> tuple[Tensor, State]:
        """The loss of the nested variant [A 72]: tokens (B,T+1), one window, in which all clocks run.

        The window is cut into C_k pieces (C_k the slowest chunk size), the unit of its clocks. A level moves
        by its own gradient when its clock is due, as in `learn`, and goes back to its initial state at the
        end of its context, the chunk of the next slower level. Its initial state is what that slower process
        learns: the gradient of the whole window's loss runs through all these moves (`first_order` leaves out
        their second derivatives).
        """
        state = state or State.start(self.config)
        chunks, rate, tokens = self.config.chunks, self.config.learn_rate, self._checked(tokens, state)
        pieces, batch = chunks[-1], tokens.shape[0]
        length = (tokens.shape[1] - 1) // pieces
        if length < 1 or length * pieces + 1 != tokens.shape[1]:
            raise ValueError(f"a nested window has a multiple of {pieces} tokens and one more, "
                             f"not {tokens.shape[1]}")
        drift: list[list[Any]] = [[None] * (len(chunks) - 1) for _ in self.blocks]
        pending: list[list[Any]] = [[None] * (len(chunks) - 1) for _ in self.blocks]
        total = Tensor(np.zeros_like(self.embedding.data, shape=()))
        for i in range(1, pieces + 1):
            # a copy, so that each piece's gradient is that of the drift as this piece used it
            drift = [[level.zero_drift(batch) if d is None else {name: w * 1 for name, w in d.items()}
                      for level, d in zip(block.cms.levels, moved, strict=False)]
                     for block, moved in zip(self.blocks, drift, strict=True)]
            state = State([{**past, "drift": [*moved, None]}
                           for past, moved in zip(state.blocks, drift, strict=True)], state.clock)
            loss, state = self.loss(tokens[:, (i - 1) * length:i * length + 1], state)
            total = total + loss * (1 / pieces)
            if i == pieces:
                break
            leaves = [w for moved in drift for d in moved for w in d.values()]
            found = iter(grad(loss * batch, leaves, create_graph=not first_order, retain_graph=True))
            for block, moved, gathered in zip(self.blocks, drift, pending, strict=True):
                for n, d in enumerate(moved):
                    g = {name: next(found) for name in d}
                    moved[n], gathered[n] = block.cms.tick(n, i, d, gathered[n], g, rate)
        return total, State([{**b, "drift": [None] * len(chunks)} for b in state.blocks], state.clock)

    # writing ------------------------------------------------------------------------------------------------

    def generate(self, prompt: Any, count: int, state: State | None = None, *, temperature: float = 1.0,
                 top_k: int = 0, top_p: float = 1.0, seed: int | Rng = 0, stop: Sequence[int] = ()
                 ) -> Iterator[tuple[int, State]]:
        """Continue one sequence: yields (token, state that has read everything before it), `count` times.

        prompt: token ids, at least one. temperature 0 takes the most likely token; top_k and top_p keep only
        likely ones. Ends early after a token in `stop`. To go on, give the last token and its state.
        """
        if len(prompt) == 0:
            raise ValueError("the prompt is empty; give at least one token to continue from")
        rng, state = np.random.default_rng(seed), state or State.start(self.config)
        tokens = np.asarray(prompt)[None]
        for _ in range(count):
            with no_grad():
                for t in range(0, tokens.shape[1], self.config.segment):
                    logits, state = self(tokens[:, t:t + self.config.segment], state)
            token = sample(host(logits.data[0, -1]), rng, temperature, top_k, top_p)
            yield token, state
            if token in stop:
                return
            tokens = np.array([[token]])

    # sizes --------------------------------------------------------------------------------------------------

    def groups(self, weight_decay: float = 0.1) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: one per clock; what has two axes with weight decay, the rest by AdamW.

        CHOICE: a nested window holds one chunk of the slowest level, so that all clocks of `nested_loss` are
        due at its end. There the process that learns the initial states steps, once per window, for every
        level [A 72].
        """
        levels = [] if self.config.cms == "nested" else [n for block in self.blocks for n in block.cms.levels]
        period = {id(p): level.chunk for level in levels for p in level.parameters()}
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for p in self.parameters():
            matrix = p.ndim == 2 and p is not self.embedding
            key = (period.get(id(p), 1), matrix)
            new = {"params": [], "period": key[0], "weight_decay": weight_decay if matrix else 0.0}
            groups.setdefault(key, new if matrix else {**new, "method": "adamw"})["params"].append(p)
        return [groups[key] for key in sorted(groups)]

    def first_non_finite(self, tokens: Any, state: State | None = None) -> str:
        """Where the first number that is not finite appears, in words; "" if nowhere."""
        for name, p in self.named_parameters():
            if not np.all(np.isfinite(p.data)):
                return f"the weight {name}"
        state = state or State.start(self.config)
        with no_grad(), np.errstate(all="ignore"):
            x = embedding(self.embedding, self._checked(tokens, state)) * self.config.width ** 0.5
            for i, (block, past) in enumerate(zip(self.blocks, state.blocks, strict=True)):
                y, _ = block.mixer(rms_norm(x), past["mixer"])
                if not np.all(np.isfinite(y.data)):
                    return f"block {i}, {self.config.mixer}"
                for n, level in enumerate(block.cms.levels):
                    if not np.all(np.isfinite(level(rms_norm(x + y), past["drift"][n]).data)):
                        return f"block {i}, the level with chunk size {level.chunk}"
                x = block.cms(x + y, past["drift"])
            logits = linear(self.norm(x), self.embedding)
        return "" if np.all(np.isfinite(logits.data)) else "the unembedding"


def sample(logits: np.ndarray, rng: Rng, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> int:
    """One token from logits (V,)."""
    if temperature <= 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")
    scaled = logits[order].astype(np.float64) / temperature
    p = np.exp(scaled - scaled[0])
    p /= np.sum(p)
    kept = np.cumsum(p) - p < top_p  # the smallest set whose probability reaches top_p
    kept[0] = True
    if top_k:
        kept[top_k:] = False
    p = np.where(kept, p, 0)
    return int(order[rng.choice(len(p), p=p / np.sum(p))])


def transformer(config: Config) -> Config:
    """The Transformer with as many parameters in its one MLP as all levels have together."""
    parameters = count(config)
    one = replace(config, mixer="attention", chunks=(1,), cms="sequential")
    per_unit = 2 * config.width * config.layers  # parameters of one hidden unit in every block
    return replace(one, hidden=max(1, config.hidden + round((parameters - count(one)) / per_unit)))


def count(config: Config) -> int:
    """Parameters of a model, counted without allocating them."""
    return int(np.sum([p.size for p in Hope(config, None).parameters()]))


def flops_per_token(config: Config) -> int:
    """Floating-point operations of matrix products per token, forward; training takes three times as many."""
    dense = int(np.sum([p.size for p in Hope(config, None).parameters() if p.ndim == 2]))
    memories = int(np.sum([memory_products(name, config) for name in config.mixer.split("+")]))
    return 2 * (dense + config.layers * memories)


def memory_products(mixer: str, config: Config) -> int:
    """Multiplications per token in what a mixer remembers; its projections are counted elsewhere."""
    H, d, rank, generator = (config.heads, config.width // config.heads, config.generator_rank,
                             config.generator_hidden)
    if mixer == "attention":
        return config.width * config.segment  # of q·k and of the sum of v, half is masked
    if mixer in RULES:
        return H * 3 * d * d
    if mixer == "generated":
        return H * (d * d + 2 * d * generator + rank * d * (2 * generator + d) // config.generator_chunk)
    if mixer == "banks":
        return H * len(config.spans) * 2 * d
    if mixer in ("cell", "rnn"):  # all of it is weights, counted with the rest
        return 0
    adaptive, h = config.adaptive if mixer == "titans" else ("memory",), config.memory_hidden or d
    vectors = [name for name in adaptive if name not in ("eta", "alpha")]
    scalars = len(adaptive) - len(vectors)
    first, second = (d * h, h * d) if config.memory == "mlp" else (d * d, 0)
    # project, predict, target; back through the second layer; read along k, write, pull to M₀ in each
    return H * (len(vectors) * (6 * (first + second) + second) + scalars * 6 * first)


# Files ------------------------------------------------------------------------------------------------------

def save(path: str | Path, model: Hope, state: State | None = None, **extra: np.ndarray) -> None:
    """Model, config and running state (and any further arrays) in one .npz, no pickle."""
    arrays = {f"weights.{name}": a for name, a in model.state_dict().items()}
    write_npz(path, {"config": np.array(json.dumps(asdict(model.config))), **arrays,
                     **(state.pack() if state else {}), **extra})


def load(path: str | Path) -> tuple[Hope, State | None, dict[str, np.ndarray]]:
    """What `save` wrote: the model, the running state if there was one, and the further arrays."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = Config.from_dict(json.loads(str(arrays.pop("config"))))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error}); "
                         "it may be damaged or not one of this program's") from error
    weights = {n.removeprefix("weights."): a for n, a in arrays.items() if n.startswith("weights.")}
    model = Hope(config, np.random.default_rng(0))
    model.astype(weights["embedding"].dtype if "embedding" in weights else np.float32)
    model.load_state_dict(weights)
    state = State.unpack(arrays) if "state" in arrays else None
    rest = {n: a for n, a in arrays.items() if n != "state" and not n.startswith(("weights.", "state."))}
    return model, state, rest
