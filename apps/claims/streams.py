"""Streams of dictionaries, read by levels that learn meanwhile: what is kept of the old once the new is known?

A stream deals out a meaning to every word, group by group, anew every time. A segment says all words of one group in
random order, each before its meaning, and is one tick of the levels' clocks. A small byte Transformer with a window of
two segments, whose filters start half on the byte before, learns to read such streams. Then its MLPs are placed in
levels, one a block (`spread`), and it learns on, now with moves in the context and the gradient going through them: it
is asked for every group again at the end, long after the window has left it. ICL learns on, too, its MLPs static: for
as many steps, unless a claim gives it more.

What a level gathers is the gradient of the loss of the meanings alone (of all bytes, if told so).

Legend: B batch, T time; (seeds,points) what a model scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

import optimizers
from apps.claims.study import SWEEP, Study, looking_back
from apps.evaluate import fit
from apps.tasks import Part, dictionaries
from autograd import Tensor, enable_grad, grad, no_grad, tree_flatten
from cms import stack_levels
from config import Config
from data import IGNORE, Tokens
from hope import Hope, State, drifted
from layers import cross_entropy

NEVER = 1 << 20  # the chunk size of an MLP that stands still
LEVELS = {"ICL": (), "1 additional level": (1, NEVER, NEVER, NEVER), "2 additional levels": (1, 2, NEVER, NEVER),
          "3 additional levels": (1, 2, 4, NEVER)}
RATES = (5e-3, 1e-2, 2e-2)  # of the optimiser
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the learned rates of the levels, while reading


@dataclass(frozen=True)
class Family:
    """What streams are like: groups of words, each with a meaning, and how often a group is said before the next."""

    groups: int
    words: int  # of a group
    meanings: int
    said: int  # segments of a group
    own: bool = False  # no two words have one meaning

    @property
    def config(self) -> Config:
        tick = 2 * self.words
        return Config(width=32, layers=4, heads=2, hidden=64, segment=tick, window=2 * tick, mixer="attention",
                      vocabulary=self.groups * self.words + self.meanings, chunks=(1,), cms="spread", learn_rate=1.0)

    def draw(self, rng: np.random.Generator, batch: int) -> Part:
        return dictionaries(rng, batch, self.groups, self.words, self.meanings, self.own)

    def order(self) -> list[int]:
        """The groups of a stream, one segment after another."""
        return np.repeat(np.arange(self.groups), self.said).tolist()

    def stream(self, rng: np.random.Generator, batch: int) -> tuple[Tokens, Tokens]:
        """A stream with questions at its end, for training: tokens and targets (B,T).

        Counted are the meanings of words that were said before. The lengths of two groups, side by side, vary.
        """
        read, order = self.draw(rng, batch), self.order()
        if self.said > 1 and rng.random() < 0.5:  # one segment more of a group, one less of the next
            order[self.said * int(rng.integers(1, self.groups))] -= 1
        asked = rng.permutation(self.groups)[:max(2, self.groups // 2)].tolist()
        parts = [read(group) for group in [*order, *asked]]
        known: set[int] = set()
        for group, (_, targets) in zip(order, parts, strict=False):
            if group not in known:
                targets[:] = IGNORE
            known.add(group)
        return np.hstack([tokens for tokens, _ in parts]), np.hstack([targets for _, targets in parts])


@enable_grad()
def tick(model: Hope, tokens: Tokens, answers: Tokens, state: State, scale: float = 1.0,
         training: bool = False) -> tuple[Tensor, State]:
    """Read a segment, then let the levels learn from its answers: logits (B,T,V), and the state after it.

    In `training` the next segments' gradients go back through the move (first order: its gradient counts as given).
    """
    drifts = [block.cms.drifts(past.levels, len(tokens), history=training) if block.cms.levels[0].chunk < NEVER else []
              for block, past in zip(model.blocks, state.blocks, strict=True)]
    logits, after = model(tokens, drifted(state, drifts))
    leaves, rebuild = tree_flatten(drifts)
    own = cross_entropy(logits, answers, reduction="sum") * (1 / tokens.shape[1])
    grads, clock = rebuild(grad(own, leaves, retain_graph=True)), state.clock + 1
    return logits, State([replace(read, levels=block.cms.learn(past.levels, d, g, clock, block.cms.rates() * scale))
                          for block, past, read, d, g in zip(model.blocks, state.blocks, after.blocks, drifts, grads,
                                                             strict=True)], clock)


def moving(model: Hope) -> bool:
    return model.config.moves == "context"


def answers(tokens: Tokens, words: int, everything: bool) -> Tokens:
    """What follows each token of a segment, if it is a meaning, or whatever it is; nothing after the last."""
    following = np.hstack([tokens[:, 1:], np.full((len(tokens), 1), IGNORE)])
    return following if everything else np.where(following >= words, following, IGNORE)


def learned(study: Study, family: Family, model: Hope, rate: float, seed: int, steps: int, everything: bool = False,
            asked: bool = True, before: bool = False) -> Hope:
    """The model, trained on streams; with `asked` off, nothing is asked at their end.

    All models of a seed read the same streams in the same order, and others `before` their levels are placed.
    """
    rng, words = np.random.default_rng([seed, 1 if before else 2]), family.groups * family.words
    span = model.config.segment

    def draw() -> tuple[Tokens, Tokens]:
        tokens, targets = family.stream(rng, 16)
        if not asked:
            targets[:, len(family.order()) * span:] = IGNORE
        return tokens, targets

    def loss(tokens: Tokens, targets: Tokens) -> Tensor:
        if not moving(model):
            return cross_entropy(model(tokens)[0], targets)
        state, total, end = State.start(model.config), Tensor(np.float32(0)), len(family.order()) * span
        for t in range(0, tokens.shape[1], span):
            part = tokens[:, t:t + span]
            if t < end:
                logits, state = tick(model, part, answers(part, words, everything), state, training=True)
            else:
                logits, state = model(part, state)  # asking teaches nothing
            total = total + cross_entropy(logits, targets[:, t:t + span], reduction="sum")
        return total * (1 / np.sum(targets != IGNORE))
    fit(model, draw, steps, rate, bar=study.bar, loss=loss, optimizer=optimizers.build("adamw", model.groups(), rate))
    return model


def pretrained(study: Study, family: Family, steps: int) -> dict[int, Hope]:
    """For every seed, that of the sweeps too, a model that has learned to read streams, its MLPs static."""
    return {seed: learned(study, family, looking_back(family.config, seed), 3e-3, seed, study.steps(steps), before=True)
            for seed in (SWEEP, *range(study.seeds))}


def best_rate(study: Study, family: Family, name: str, train: Callable[[float, int], Hope]) -> float:
    """The rate of training by which a model knows most of all groups at the end."""
    rate = study.sweep(name, RATES, lambda r, seed: float(np.mean(known(family, train(r, seed), seed)[-1])))
    study.bar.set_postfix_str(name)
    return rate


def placed(model: Hope, chunks: Sequence[int], seed: int) -> Hope:
    """A trained model with its MLPs in levels of these chunk sizes, one a block; without any as it is, a copy."""
    old = model.config
    new = replace(old, chunks=tuple(chunks), moves="context", tick=old.segment) if chunks else old
    made = looking_back(new, seed)
    made.load_state_dict({**made.state_dict(), **stack_levels(model.state_dict(), old, new)})
    return made


def known(family: Family, model: Hope, seed: int, scale: float = 1.0, order: Sequence[int] | None = None,
          everything: bool = False, without: str = "", batch: int = 64) -> np.ndarray:
    """How well every group is known after every segment of new streams: (segments,groups), asking teaches nothing.

    without: it is asked without what the "memory" (here the window of attention) or the "levels" hold, by name.
    """
    read, words = family.draw(np.random.default_rng([seed, 7]), batch), family.groups * family.words
    state, found = State.start(model.config), []
    for group in family.order() if order is None else order:
        tokens, _ = read(group)
        if moving(model):
            state = tick(model, tokens, answers(tokens, words, everything), state, scale)[1].detach()
        else:
            with no_grad():
                state = model(tokens, state)[1]
        left = state.reset(without) if without else state
        found.append([asked(model, read, left, group) for group in range(family.groups)])
    return np.array(found)


def at_scales(family: Family, model: Hope, seed: int, everything: bool = False) -> np.ndarray:
    """What is known of every group at the end, by how the learned rates of its levels are scaled: (scales,groups)"""
    return np.array([known(family, model, seed, scale, everything=everything)[-1]
                     for scale in (SCALES if moving(model) else (1.0,))])


def asked(model: Hope, read: Part, state: State, group: int) -> float:
    """The share of the meanings of a group that are told rightly."""
    tokens, targets = read(group)
    with no_grad():
        guesses = np.argmax(model(tokens, state)[0].data, axis=-1)
    return float(np.mean((guesses == targets)[targets != IGNORE]))


def frontier(new: np.ndarray, old: np.ndarray, least: float) -> float:
    """The most that is kept of the old among points that know at least so much of the new; 0 if there is none."""
    return float(np.max(old[new >= least], initial=0.0))
