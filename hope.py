"""What is Hope?  A stack of blocks: self-modifying Titans, then a continuum memory system [A 94–97].

    x ← x + mixer(norm x);   x ← cms(x)          for every block;  embedding in, tied unembedding out

One `Config` holds every choice. Hope-Attention is the same with `mixer="attention"`; the Transformer is that
with one level, `chunks=(1,)`. So every baseline is a setting, not another program.

Three things differ in how they are kept. The *parameters* (initial states of all memories among them) are
learned by the outer optimiser. The *running state* (state.py) is what reading has changed, one per sequence:
`logits, state = model(tokens, state)`. The *learning while reading* of the slow levels is a call of its own:
`loss, state = model.learn(tokens, state)`.

Legend: B batch, T time, V vocabulary, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import cms
import decode
import mixers
from autograd import (
    Tensor,
    embedding,
    enable_grad,
    grad,
    host,
    no_grad,
    sum,
    tensor,
    tree_flatten,
)
from cms import LevelState
from config import Config
from layers import (
    CausalAttention,
    Mixer,
    Module,
    RMSNorm,
    Rng,
    cross_entropy,
    each_token,
    linear,
    normal,
)
from memory import RULES, MatrixMemory, OmegaMemory
from state import BlockState, State, write_npz
from titans import SelfModifyingTitans

OTHERS: dict[str, type] = {"omega": OmegaMemory, "ada": mixers.AdaTransformer, "generated": mixers.WeightGenerator,
                           "banks": mixers.Banks, "cell": mixers.Cell, "rnn": mixers.SimpleRecurrent}

# The model --------------------------------------------------------------------------------------------------

def make_mixer(rng: Rng | None, config: Config) -> Mixer:
    """What stands before the levels in a block, by `config.mixer`; plain Titans are [A 76–78]."""
    if "+" in config.mixer:
        names = config.mixer.split("+")
        return mixers.SideBySide([make_mixer(rng, replace(config, mixer=name)) for name in names])
    if config.mixer == "attention":
        return CausalAttention(rng, config.width, config.heads, (2 * config.layers) ** -0.5, config.window,
                               key_heads=config.key_heads, size=config.head_size, base=config.rotary_base,
                               scaling=config.rotary_scaling, biases=config.biases)
    if config.mixer in OTHERS:
        return OTHERS[config.mixer](rng, config)
    if config.mixer in RULES:
        return MatrixMemory(rng, config, config.mixer)
    if config.mixer == "plain-titans":  # one memory that learns, with projections that do not [Titans]
        config = replace(config, adaptive=("memory",), targets="value")
    return SelfModifyingTitans(rng, config)


class Block(Module):
    """x ← x + mixer(norm x);  x ← cms(x) [A 94–97].  x (B,T,D)"""

    def __init__(self, rng: Rng | None, config: Config, index: int):
        self.norm: Any = cms.make_norm(config)
        self.mixer: Any = make_mixer(rng, config)
        self.cms = cms.CMS(rng, config, index)

    def __call__(self, x: Tensor, state: BlockState, last: int = 0) -> tuple[Tensor, BlockState]:
        """x of all tokens, or of the last few, and the state after all."""
        y, mixed = self.mixer(self.norm(x), state.mixer)
        if last:
            x, y = x[:, -last:], y[:, -last:]
        (x,) = each_token(lambda _, x, y: [self.cms(x + y, state.levels)], x, y)
        return x, BlockState(mixed, state.levels)


def drifted(state: State, drifts: Sequence[Sequence[cms.Drift]]) -> State:
    """The state with these drifts for its levels; a level without one stands at its initial state."""
    blocks = []
    for block, known in zip(state.blocks, drifts, strict=True):
        rest = [LevelState()] * (len(block.levels) - len(known))
        blocks.append(BlockState(block.mixer, (*map(LevelState, known), *rest)))
    return State(blocks, state.clock)


def standing(state: State) -> State:
    """The state with all levels at their initial states."""
    return drifted(state, [() for _ in state.blocks])


class Hope(Module):
    """The language model. tokens (B,T) integers → logits (B,T,V)."""

    def __init__(self, config: Config, rng: Rng | None):
        self.config = config
        self.embedding = normal(rng, (config.vocabulary, config.width), 0.02)
        self.blocks = [Block(rng, config, i) for i in range(config.layers)]
        self.norm: Any = cms.make_norm(config) if config.norm == "layer" else RMSNorm(config.width, config.norm_eps)
        if config.positions:
            self.positions = normal(rng, (config.positions, config.width), 0.02)
        if not config.tied:
            self.unembedding = normal(rng, (config.vocabulary, config.width), config.width ** -0.5)
        for name, p in self.named_parameters():
            p.name = name

    def __call__(self, tokens: Any, state: State | None = None) -> tuple[Tensor, State]:
        x, state = self.read(tokens, state)
        return self.unembed(x), state

    def read(self, tokens: Any, state: State | None = None, last: int = 0) -> tuple[Tensor, State]:
        """What the last block makes of tokens (B,T), or of the last few, and the state after them: x (B,T,D)."""
        state = state or State.start(self.config)
        x, blocks = self.embed(tokens, state), []
        for block, past in zip(self.blocks, state.blocks, strict=True):
            x, present = block(x, past, last if block is self.blocks[-1] else 0)
            blocks.append(present)
        return x, State(blocks, state.clock)

    def step(self, tokens: Any, state: State | None = None) -> tuple[Tensor, State]:
        """One more token of every sequence, sooner: what `__call__` gives, without history.  tokens (B,1) → (B,1,V)"""
        state = state or State.start(self.config)
        if np.shape(tokens)[1:] != (1,) or (plan := decode.plan(self, len(tokens))) is None:
            with no_grad():
                return self(tokens, state)
        return plan(self._checked(tokens, None if plan.knows(state) else state), state)

    def embed(self, tokens: Any, state: State) -> Tensor:
        """The vectors that stand for tokens at their places: (B,T) → (B,T,D)"""
        tokens, c = self._checked(tokens, state), self.config
        x = embedding(self.embedding, tokens)
        if c.scaled:
            x = x * c.width ** 0.5
        if c.positions:
            past = state.blocks[0].mixer
            t = self.blocks[0].mixer.position(past) if past else 0
            if t + tokens.shape[1] > c.positions:
                raise ValueError(f"the model has positions for {c.positions} tokens, and the text is {t} + "
                                 f"{tokens.shape[1]} long; begin anew, or give it less")
            x = x + self.positions[t:t + tokens.shape[1]]
        return x

    def unembed(self, x: Tensor) -> Tensor:
        """Logits of the next token: (B,T,D) → (B,T,V)"""
        return linear(self.norm(x), self.embedding if self.config.tied else self.unembedding)

    def _checked(self, tokens: Any, state: State | None) -> Any:
        """Tokens that can be read, where the weights are."""
        tokens = tokens if type(tokens) is np.ndarray else tensor(tokens).data
        if tokens.ndim != 2 or not tokens.size:
            raise ValueError("tokens must have shape (batch, time) with at least one token, "
                             f"not {tokens.shape}")
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens must be whole numbers, not {tokens.dtype}")
        ours = isinstance(tokens, np.ndarray)  # those on a card were looked at before they went there
        if ours and (tokens.min() < 0 or tokens.max() >= self.config.vocabulary):
            raise ValueError(f"tokens must lie in 0..{self.config.vocabulary - 1}, as the vocabulary is "
                             f"{self.config.vocabulary}; these lie in {tokens.min()}..{tokens.max()}")
        for t in state.leaves() if state else ():
            if len(t) != len(tokens):
                raise ValueError(f"the state is of {len(t)} sequences and the tokens are of {len(tokens)}; "
                                 "every sequence needs its own state")
        return np.asarray(tokens, np.int64, like=self.embedding.data)  # a small type has no room for what follows

    def loss(self, tokens: Any, state: State | None = None) -> tuple[Tensor, State]:
        """Mean negative log-likelihood, in nats, of each token after the first: tokens (B,T+1)."""
        tokens = self._checked(tokens, state)
        logits, state = self(tokens[:, :-1], state)
        return cross_entropy(logits, tokens[:, 1:]), state

    # learning while reading ---------------------------------------------------------------------------------

    @enable_grad()
    def learn(self, tokens: Any, state: State | None = None, rate: float | None = None
              ) -> tuple[float, State]:
        """Predict a segment, then let the levels whose clock is due learn from it: tokens (B,T+1).

        Only the running state moves: each sequence's drift, by the gradients of its own loss, of norm 1 at most per
        sequence and level, summed over the last C_ℓ segments [A 71] (CHOICE: f is the plain gradient, of the
        next-token loss, clipped). Nested levels return to their initial states when the clock of the next
        slower level is due [A 72]. Returns the mean loss before learning, and the state after it.
        """
        state, tokens = (state or State.start(self.config)).detach(), self._checked(tokens, state)
        batch, time = tokens.shape[0], tokens.shape[1] - 1
        drifts = [block.cms.drifts(past.levels, batch)
                  for block, past in zip(self.blocks, state.blocks, strict=True)]
        logits, after = self(tokens[:, :-1], drifted(state, drifts))
        losses = cross_entropy(logits, tokens[:, 1:], reduction="none")  # (B,T)
        leaves, rebuild = tree_flatten(drifts)
        grads = rebuild(grad(sum(losses) * (1 / time), leaves))
        rates = None if rate is None else [float(rate)] * len(self.config.chunks)  # of no precision of its own
        moved = self.move_levels(state, after, drifts, grads, state.clock + 1, rates)
        return float(np.mean(losses.data)), moved.detach()

    def move_levels(self, before: State, after: State, drifts: list, grads: list, clock: int, rates: Any = None
                    ) -> State:
        """The state after reading, with levels that have learned by the gradients of the drifts they had meanwhile."""
        return State([BlockState(read.mixer, block.cms.learn(past.levels, d, g, clock, rates))
                      for block, past, read, d, g in zip(
                          self.blocks, before.blocks, after.blocks, drifts, grads, strict=True)], clock)

    @enable_grad()
    def context_loss(self, tokens: Any, state: State | None = None, first_order: bool = False, carry: bool = False
                     ) -> tuple[Tensor, State]:
        """The loss of a window in which the levels move, as they do in reading [A 71–73]: tokens (B,T+1).

        The window is cut into ticks of the levels' clocks; in reading, `learn` is given one at a time. After each, a
        level gathers the gradient of its own loss, and moves when its clock is due, at its own rate; the next tick is
        predicted by what it is then. The initial states are learned by the gradient of the whole window's loss through
        all these moves (`first_order` leaves out their second derivatives) [A 73], and so are the rates with
        `moves="context"`. A level that is due only at the end of a window rests in it, and its rate is not learned: the
        slowest, if ticks are not told (`tick`) and for nested levels, for which the window is its context [A 72].

        With `carry` the window goes on from the drifts of the state, and the state after it has moved at its end, too;
        otherwise, and if they are nested, levels begin and end at their initial states.
        """
        state, nested = state or State.start(self.config), self.config.cms == "nested"
        tokens, carry = self._checked(tokens, state), carry and not nested
        ticks, batch = self.config.ticks, tokens.shape[0]
        length = (tokens.shape[1] - 1) // ticks
        if length < 1 or length * ticks + 1 != tokens.shape[1]:
            raise ValueError(f"a window in which levels move has a multiple of {ticks} tokens and one more, "
                             f"not {tokens.shape[1]}")
        clock, total = state.clock, Tensor(np.zeros_like(self.embedding.data, shape=()))
        state = state if carry else State(standing(state).blocks, 0)
        for i in range(1, ticks + 1):
            drifts = [block.cms.drifts(past.levels, batch, history=True)[:-1 if nested else None]  # the slowest rests
                      for block, past in zip(self.blocks, state.blocks, strict=True)]
            part = tokens[:, (i - 1) * length:i * length + 1]
            loss, after = self.loss(part, drifted(state, drifts))
            total = total + loss * (1 / ticks)
            if i < ticks or carry:
                leaves, rebuild = tree_flatten(drifts)
                own = loss * batch  # not the mean over the batch: every sequence has a gradient of its own
                grads = rebuild(grad(own, leaves, create_graph=not first_order, retain_graph=True))
                state = self.move_levels(state, after, drifts, grads, state.clock + 1)
        return total, state if carry else State(standing(after).blocks, clock)

    # generating ---------------------------------------------------------------------------------------------

    def generate(self, prompt: Any, count: int, state: State | None = None, *, temperature: float = 1.0,
                 top_k: int = 0, top_p: float = 1.0, seed: int | Rng = 0, stop: Sequence[int] = ()
                 ) -> Iterator[tuple[int, State]]:
        """Continue one sequence: yields (token, state that has read everything before it), `count` times.

        prompt: token ids, at least one. temperature 0 takes the most likely token; top_k and top_p keep only
        likely ones. Ends early after a token in `stop`. To go on, give the last token and its state.
        """
        if len(prompt) == 0:
            raise ValueError("the prompt is empty; give at least one token to continue from")
        if count < 0 or not temperature >= 0:
            raise ValueError(f"{count} tokens at temperature {temperature}; neither can be less than 0")
        rng, state = np.random.default_rng(seed), state or State.start(self.config)
        tokens = np.asarray(prompt)[None]
        for _ in range(count):
            if tokens.shape[1] == 1:
                logits, state = self.step(tokens, state)
            else:
                with no_grad():
                    for t in range(0, tokens.shape[1], self.config.segment):
                        x, state = self.read(tokens[:, t:t + self.config.segment], state, last=1)
                    logits = self.unembed(x)
            token = sample(host(logits.data[0, -1]), rng, temperature, top_k, top_p)
            yield token, state
            if token in stop:
                return
            tokens = np.array([[token]])

    # its weights --------------------------------------------------------------------------------------------

    def groups(self, weight_decay: float = 0.1) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, one per clock: matrices with weight decay; all else by AdamW without it.

        All else is vectors, embeddings, what reads η and α out, and the initial states of memories, which are stacks of
        matrices (a cell's are one matrix, and go with the matrices, and so do the taps of a filter, (4,D)).

        CHOICE: where levels move in the context, the process that learns their initial states steps once per window,
        for every level; a nested window holds one chunk of the slowest, so that all clocks are due at its end.
        """
        levels = [] if self.config.in_context else [n for block in self.blocks for n in block.cms.levels]
        period = {id(p): level.chunk for level in levels for p in level.parameters()}
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        tables = [getattr(self, name, None) for name in ("embedding", "positions", "unembedding")]
        for p in self.parameters():
            matrix = p.ndim == 2 and all(p is not table for table in tables)
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
            x = self.embed(tokens, state)
            for i, (block, past) in enumerate(zip(self.blocks, state.blocks, strict=True)):
                y, _ = block.mixer(block.norm(x), past.mixer)
                if not np.all(np.isfinite(y.data)):
                    return f"block {i}, {self.config.mixer}"
                for n, level in enumerate(block.cms.levels):
                    if not np.all(np.isfinite(level(level.norm(x + y), past.levels[n].drift).data)):
                        return f"block {i}, the level with chunk size {level.chunk}"
                x = block.cms(x + y, past.levels)
                if not np.all(np.isfinite(x.data)):
                    return f"block {i}, its levels"
            logits = self.unembed(x)
        return "" if np.all(np.isfinite(logits.data)) else "the unembedding"


# Sampling and sizes -------------------------------------------------------------------------------------------

def sample(logits: np.ndarray, rng: Rng, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> int:
    """One token from logits (V,): of the top_k most likely (0 or less: of all), and of those that make up top_p."""
    if temperature <= 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")
    below = logits[order].astype(np.float64) - logits[order[0]]
    with np.errstate(over="ignore"):  # of a temperature close to 0
        p = np.exp(below / temperature)
    p /= np.sum(p)
    kept = np.cumsum(p) - p < top_p  # the smallest set whose probability reaches top_p
    kept[0] = True
    if top_k > 0:
        kept[top_k:] = False
    p = np.where(kept, p, 0)
    return int(order[rng.choice(len(p), p=p / np.sum(p))])


def transformer(config: Config) -> Config:
    """The Transformer with as many parameters altogether: its one MLP is as wide as makes up the difference."""
    parameters = count(config)
    one = replace(config, mixer="attention", chunks=(1,), cms="sequential", level_rates=(), moves="optimizer",
                  drift_rank=0)
    matrices = 3 if config.activation == "swiglu" else 2
    per_unit = matrices * config.width * config.layers  # parameters of one hidden unit in every block
    return replace(one, hidden=max(1, config.hidden + round((parameters - count(one)) / per_unit)))


def count(config: Config) -> int:
    """Parameters of a model, counted without allocating them."""
    return int(np.sum([p.size for p in Hope(config, None).parameters()]))


def flops_per_token(config: Config) -> int:
    """Floating-point operations of matrix products per token, forward; training takes three times as many."""
    model = Hope(config, None)
    looked_up = [*([] if config.tied else [model.embedding]), *([model.positions] if config.positions else [])]
    dense = int(np.sum([p.size for p in model.parameters() if p.ndim == 2 and all(p is not t for t in looked_up)]))
    remembering = int(np.sum([block.mixer.cost(config.segment).products for block in model.blocks]))
    return 2 * (dense + remembering)


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
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error}); "
                         "it may be damaged or not one of this program's") from error
    weights = {n.removeprefix("weights.").replace(".feed.", ".projection."):  # as it was once called
               a.astype(np.float32) if a.dtype == np.float16 else a  # half precision is for files
               for n, a in arrays.items() if n.startswith("weights.")}
    model = Hope(config, None)
    model.load_state_dict(weights, assign=True)
    state = State.unpack(arrays) if "state" in arrays else None
    rest = {n: a for n, a in arrays.items() if n != "state" and not n.startswith(("weights.", "state."))}
    return model, state, rest
