"""Does what the paper claims hold at a size that two cores train in minutes?

    python -m apps.evaluate claims                 all claims, about an hour on one core
    python -m apps.evaluate claims recall intents  these; --quick only shows that they run

The same rules for every claim. All models compared have the same number of parameters (to a percent) and read
the same tokens. The learning rate of each is the best of the same sweep, on a seed that is not measured. Then
every model is trained on every seed; what is shown is the mean and its 95% interval (Student's t). What is
claimed is judged on the difference within a seed: "yes" if its interval lies on the paper's side of zero,
"no" if on the other, "not shown" if it holds zero; where the paper says or compares nothing of the kind, the side
is ours. Numbers, sweep and picture go to docs/claims/, with the table of all claims.

Legend: B batch, T time; (seeds,points) what a model scored.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import optimizers
from apps.evaluate import BIT, LANGUAGES, Drawn, fit, learn_on, share_right, text_batches, transfer, words
from apps.tasks import associative_recall
from autograd import Tensor, no_grad
from cms import LevelState
from config import Config, nearest
from data import IGNORE, Corpus, Text, fixed
from hope import BlockState, Hope, State, count
from layers import CausalConv, Mixer, cross_entropy
from tools.folder import write_text
from tools.plots import COLOURS, canvas

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "claims"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
SWEEP = 99  # the seed of the sweeps
Interval = tuple[float, float]  # mean, half-width


def interval(values: Any) -> Interval:
    """Mean and half-width of the 95% interval of a few numbers, one per seed."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    return float(np.mean(values)), float(STUDENT[n] * np.std(values, ddof=1) / math.sqrt(n))


def verdict(differences: Any) -> str:
    """Whether differences, positive where the paper is right, are so beyond chance."""
    mean, half = interval(differences)
    return "yes" if mean - half > 0 else "no" if mean + half < 0 else "not shown"


def said(found: Interval, places: int = 2) -> str:
    return f"{found[0]:.{places}f} ± {found[1]:.{places}f}"


@dataclass
class Study:
    """What a claim is measured with: seeds, a share of the steps, a progress bar; and what it has tried."""

    seeds: int = 5
    share: float = 1.0
    bar: Any = None
    sweeps: dict[str, dict[str, float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # rate of each sweep
    parameters: dict[str, int] = field(default_factory=dict)

    def steps(self, n: int) -> int:
        return max(2, round(n * self.share))

    def sweep(self, name: str, rates: Sequence[float], score: Callable[[float, int], float]) -> float:
        """The rate with the highest score on the seed of the sweeps; of equally good ones that in their middle."""
        rates = rates if self.share == 1 else rates[:2]
        scores = [score(rate, SWEEP) for rate in rates]
        self.sweeps[name] = {f"{rate:g}": found for rate, found in zip(rates, scores, strict=True)}
        best = [rate for rate, found in zip(rates, scores, strict=True) if found == max(scores)]
        self.best[name] = best[len(best) // 2] if best else rates[0]
        return self.best[name]

    def compare(self, models: dict[str, Config], rates: Sequence[float],
                score: Callable[[Config, float, int], Any], note: str = "") -> dict[str, np.ndarray]:
        """Scores (higher is better) of every model at its best rate, (seeds,points) each."""
        found = {}
        for name, config in models.items():
            self.parameters[name] = count(config)
            best = self.sweep(name + note, rates, lambda rate, seed, c=config: float(np.mean(score(c, rate, seed))))
            self.bar.set_postfix_str(name)
            found[name] = np.array([np.atleast_1d(score(config, best, seed)) for seed in range(self.seeds)])
        return found


def equal(config: Config, parameters: int) -> Config:
    """The same configuration with its levels as wide as so many parameters allow."""
    one = count(replace(config, hidden=config.hidden + 1)) - count(config)
    return replace(config, hidden=max(1, config.hidden + round((parameters - count(config)) / one)))


@lru_cache(maxsize=1)
def corpus() -> tuple[Text, Text]:
    default = Corpus.default()
    return default.split("train"), default.split("validation")


def bits_per_byte(model: Hope, batches: int = 8) -> float:
    """Of validation text, segments side by side, every one from the initial state."""
    with no_grad():
        windows = fixed(corpus()[1], 16, model.config.segment, batches)
        nats = [model.loss(window)[0].item() for window in windows]
    return float(np.mean(nats)) / BIT


# 1. Recall ------------------------------------------------------------------------------------------------


class Filtered(Mixer):
    """A mixer that reads through a short causal filter, as the memories do by themselves; state: (tail, the mixer's)"""

    def __init__(self, rng: np.random.Generator, width: int, mixer: Any):
        self.conv, self.mixer = CausalConv(rng, width), mixer

    def start(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.conv.start(x), self.mixer.start(x)

    def __call__(self, x: Tensor, state: tuple[Tensor, Any] | None = None) -> tuple[Tensor, tuple[Tensor, Any]]:
        tail, mixed = state or self.start(x)
        x, tail = self.conv(x, tail)
        y, mixed = self.mixer(x, mixed)
        return y, (tail, mixed)


def looking_back(config: Config, seed: int, back: bool = True) -> Hope:
    """A model whose mixers all read through a short filter, attention too.

    Half of the channels start on the token itself, half on the one before; without `back` on random taps.
    """
    rng = np.random.default_rng(seed)
    model = Hope(config, rng)
    for block in model.blocks:
        if config.mixer == "attention":
            block.mixer = Filtered(rng, config.width, block.mixer)
        if back:
            taps = block.mixer.conv.weight.data
            taps *= 0.2  # so that the one stands out
            taps[0, 1::2] += 1
            taps[1, ::2] += 1
    return model


def alike(base: Config, mixers: dict[str, str]) -> dict[str, Config]:
    """One configuration per mixer, with as many parameters, the filter that attention gets among them."""
    filters = 4 * base.width * base.layers
    return {name: equal(replace(base, mixer=mixer), count(base) - filters * (mixer == "attention"))
            for name, mixer in mixers.items()}


def recall(study: Study) -> dict[str, Any]:
    """Up to 8 pairs are shown, in half of the samples all once more with new values; then every key is asked.

    Judged are 16 pairs, twice as many as any model was trained on and as many as a key has dimensions in each
    of the two heads. Every model has one layer and a short filter, attention too, and half of the channels of a
    filter start on the token before: from random taps models learn to look back later, and in so few steps what
    is compared is luck (the first reading below). DGD is that of the dot product [A 92] and of the squared error
    [A 93]: delta with retention, of which these questions ask nothing: all pairs count alike. Self-modifying
    memories are matrices, as all others are, but make their own targets. Their seeds differ most: of 8 pairs they
    recall between a quarter and five sixths, so training comes less far in so few steps. The last reading gives
    them two layers, at the rate that was best for matrices. The order of rules that is judged is our question: the
    paper compares whole models.
    """
    keys, values, counts, taught, batch, steps = 32, 8, (4, 8, 12, 16), 8, 16, study.steps(800)
    base = Config(width=32, layers=1, heads=2, segment=5 * max(counts), vocabulary=keys + values, chunks=(1,),
                  hidden=64, memory="matrix", memory_chunk=16, projection_chunk=16, eta_max=1.0, eta_start=0.3)
    models = alike(base, {"self-modifying": "titans", "DGD, squared error": "dgd-l2", "DGD": "dgd",
                          "delta": "delta", "Hebbian": "linear", "attention": "attention"})
    asked = [associative_recall(np.random.default_rng(7), 64, n, n, keys, values, n * again)
             for again in (0, 1) for n in counts]

    def score(config: Config, rate: float, seed: int, back: bool = True) -> list[float]:
        rng, model = np.random.default_rng([seed, 1]), looking_back(config, seed, back)

        def draw() -> Drawn:
            n = int(rng.integers(1, taught + 1))
            return associative_recall(rng, batch, n, n, keys, values, n * int(rng.integers(2)))
        fit(model, draw, steps, rate, bar=study.bar)
        with no_grad():
            return [share_right(np.argmax(model(tokens)[0].data, -1), targets) for tokens, targets in asked]
    found = study.compare(models, (2.5e-3, 5e-3, 1e-2, 2e-2), score)
    study.parameters["attention"] += 4 * base.width

    def tried(name: str, config: Config, **options: Any) -> dict[str, Any]:  # at the best rate of that model
        scores = np.array([score(config, study.best[name], seed, **options) for seed in range(study.seeds)])
        return {"kept": {name: interval(scores[:, counts.index(taught)])}}
    deep = equal(replace(base, memory="mlp"), count(base))
    cause = {f"all filters start from random taps ({taught} pairs)": tried("delta", models["delta"], back=False),
             f"self-modifying memories have two layers ({taught} pairs)": tried("self-modifying", deep)}
    said_at = {once: {name: s[:, half + counts.index(16)] for name, s in found.items()}
               for half, once in ((0, "once"), (len(counts), "rewritten"))}
    order = (("delta", "Hebbian"), ("DGD", "delta"), ("DGD, squared error", "delta"), ("self-modifying", "delta"),
             ("attention", "delta"))
    return {"x": (f"pairs (trained on up to {taught}), shown once or rewritten", list(range(2 * len(counts)))),
            "ticks": [f"{n}\n{once}" for once in ("once", "again") for n in counts], "lines": found,
            "y": "share of values recalled", "cause": cause,
            "holds": "; ".join(f"{more} over {less}: " + ", ".join(
                f"{once} {verdict(s[more] - s[less])}" for once, s in said_at.items()) for more, less in order),
            "here": "16 pairs, shown once / rewritten: " + ", ".join(
                f"{name} {said(interval(s))} / {said(interval(said_at['rewritten'][name]))}"
                for name, s in said_at["once"].items())}


# 2. Formal languages --------------------------------------------------------------------------------------


def languages(study: Study) -> dict[str, Any]:
    """Words of six formal languages, up to 12 symbols, learned at once; known is a word with every symbol right.

    Judged are words as long as those it was trained on, and words of 48 symbols, four times as long as any that a
    model has seen; attention has rotary positions, and half of the channels of every short filter start on the
    token before, as in recall. Parity, (aa)* and (abab)* turn a state over: a memory needs an eigenvalue below
    zero for that (Grazzi et al. 2024), along a key 1 − η for the delta rule. "signed" is the delta rule with η up
    to 2, and nothing else in it differs: it learns (aa)*, and parity in most seeds, of which delta learns nothing;
    the sign is the cause, not the size. The squared error of DGD [A 93] forgets twice, α − 2η′, but η′ is bounded
    by 1/2 here (η by 1): no lower than α − 1, where the step as printed reaches α − 2. Beyond the length it was
    trained on, only signed goes on at all, in some seeds and other languages from one measurement to the next.
    Languages that count nobody keeps on counting; words of them that happen to be short are known.
    """
    length, longer, steps, rows = 12, 48, study.steps(400), 4
    base = Config(width=32, layers=2, heads=1, segment=length + 1, vocabulary=32, chunks=(1,), hidden=64,
                  memory_chunk=4, projection_chunk=4, eta_max=4.0, eta_start=1.0)
    models = alike(base, {"self-modifying": "titans", "DGD, squared error": "dgd-l2", "delta": "delta",
                          "delta, signed": "signed", "attention": "attention"})

    def score(config: Config, rate: float, seed: int) -> list[float]:
        rng, model = np.random.default_rng([seed, 2]), looking_back(config, seed)
        fit(model, lambda: words(rng, rows, length), steps, rate, bar=study.bar)
        scores = []
        for n in (length, longer):
            for name in LANGUAGES:
                tokens, targets = words(np.random.default_rng(7), 64, n, [name])
                with no_grad():
                    scores.append(share_right(np.argmax(model(tokens)[0].data, -1), targets, whole=True))
        return scores
    found = study.compare(models, (3e-3, 1e-2, 2e-2), score)
    study.parameters["attention"] += 4 * base.width * base.layers
    half = len(LANGUAGES)
    each = {name: {language: [interval(s[:, i]), interval(s[:, half + i])] for i, language in enumerate(LANGUAGES)}
            for name, s in found.items()}
    return {"x": ("", list(range(2 * half))), "y": "share of words known", "lines": found,
            "of each language, short and long": each, **near_and_far(found, length, longer),
            "ticks": [f"{name}\n{n}" for n in (length, longer) for name in LANGUAGES]}


def near_and_far(found: dict[str, np.ndarray], length: int, longer: int) -> dict[str, str]:
    """What is said of words of two lengths, the means of all languages: in numbers, and whether it holds."""
    half = len(LANGUAGES)
    known = {name: (np.mean(s[:, :half], axis=1), np.mean(s[:, half:], axis=1)) for name, s in found.items()}
    pairs = [*((name, "attention") for name in found if name != "attention"), ("delta, signed", "delta")]
    return {"here": f"words of {length}, as trained on / of {longer}: " + ", ".join(
                f"{name} {said(interval(near))} / {said(interval(far))}" for name, (near, far) in known.items()),
            "holds": "; ".join(f"{more} over {less}: " + " / ".join(
                verdict(a - b) for a, b in zip(known[more], known[less], strict=True)) for more, less in pairs)}


# 3, 4. Streams of tasks: what more levels keep ------------------------------------------------------------

LEVELS = {"1 level": (1,), "2 levels": (1, 4), "3 levels": (1, 2, 4), "4 levels": (1, 2, 4, 8)}
READINGS: dict[str, dict[str, Any]] = {  # what keeps more levels from forgetting less: is it this?
    "slow levels move by the mean gradient": {"mean": True},
    "training asks for all tasks at the end": {"asked": True},
    "every level is as wide as the one": {"wide": True},
}
Family = Callable[[np.random.Generator, int], tuple[Callable[[int], Drawn], Callable[[int], Drawn]]]


def by_levels(study: Study, family: Family, tasks: int, segments: int, steps: int, config: Config, chance: float,
              readings: Sequence[str] = tuple(READINGS)) -> dict[str, Any]:
    """New tasks read one after the other by levels that learn: what is known at the end, by number of levels.

    Models are trained on streams of random tasks, their levels learning meanwhile, to predict the next answer;
    what is measured are streams of new tasks. family: (rng, batch) → (read, ask), a segment of task i
    to learn from, and one with questions, each a window (B,T+1) with targets (B,T).
    """
    batch, width = 8, 96
    total = count(replace(config, chunks=(1,), hidden=width))
    models = {name: equal(replace(config, chunks=chunks), total) for name, chunks in LEVELS.items()}
    curves: dict[tuple[str, int], np.ndarray] = {}  # of the main reading: (segments+1,tasks) by model and seed
    slow: dict[tuple[str, int], list[float]] = {}  # and what the slow levels know by themselves

    def known(model: Hope, state: State, ask: Callable[[int], Drawn]) -> list[float]:
        with no_grad():
            answers = [(model(tokens[:, :-1], state)[0], targets) for tokens, targets in map(ask, range(tasks))]
        return [share_right(np.argmax(logits.data, -1), targets) for logits, targets in answers]

    def score(name: str, rate: float, inner: float, seed: int, *, mean: bool = False, asked: bool = False,
              wide: bool = False) -> list[float]:
        model = Hope(replace(models[name], hidden=width) if wide else models[name], np.random.default_rng(seed))
        rng = np.random.default_rng([seed, 3])

        def loss(read: Callable[[int], Drawn], ask: Callable[[int], Drawn]) -> Tensor:
            state, nats = State.start(model.config), Tensor(np.float32(0))
            for task in np.repeat(np.arange(tasks), segments).tolist():
                tokens, targets = read(task)
                logits, state = learn_on(model, tokens, state, inner, mean)
                nats = nats + cross_entropy(logits, targets) * (1 / segments)
            for task in range(tasks if asked else 0):
                tokens, targets = ask(task)
                nats = nats + cross_entropy(model(tokens[:, :-1], state)[0], targets)
            return nats * (1 / tasks)
        initial = [{**group, "period": 1} for group in model.groups()]  # states that every stream begins with
        fit(model, lambda: family(rng, batch), steps, rate, bar=study.bar, loss=loss,
            optimizer=optimizers.build("adamw", initial, rate))
        read, ask = family(np.random.default_rng([seed, 7]), 64)
        state, curve = State.start(model.config), []
        for task in np.repeat(np.arange(tasks), segments).tolist():
            curve.append(known(model, state, ask))
            state = learn_on(model, read(task)[0], state, inner, mean)[1]
        curve.append(known(model, state, ask))
        if not (mean or asked or wide):
            curves[name, seed] = np.array(curve)
            state = State([replace(b, levels=(LevelState(), *b.levels[1:])) for b in state.blocks], state.clock)
            slow[name, seed] = known(model, state, ask)
        return curve[-1]

    @cache
    def trial(name: str, rate: float, inner: float, seed: int, **options: Any) -> float:
        return float(np.mean(score(name, rate, inner, seed, **options)))

    def measure(name: str, note: str = "", rate: float = 0.0, **options: Any) -> tuple[float, np.ndarray]:
        """The best outer rate, and accuracy at the end at it and the best inner rate, (seeds,tasks)."""
        rate = rate or study.sweep(f"{name}, training", (5e-3, 1e-2, 2e-2),
                                   lambda r, seed: trial(name, r, 3.0, seed))
        inner = study.sweep(f"{name}, while reading{note}", (1.0, 3.0, 10.0),
                            lambda r, seed: trial(name, rate, r, seed, **options))
        study.bar.set_postfix_str(name + note)
        return rate, np.array([score(name, rate, inner, seed, **options) for seed in range(study.seeds)])

    def both(found: dict[str, np.ndarray]) -> dict[str, Any]:
        kept = {name: np.mean(s, axis=1) for name, s in found.items()}
        return {"kept": {name: interval(k) for name, k in kept.items()},
                "4 levels keep more": verdict(kept["4 levels"] - kept["1 level"])}
    rates, found = {}, {}
    for name, one in models.items():
        study.parameters[name] = count(one)
        rates[name], found[name] = measure(name)
    ends = {name: found[name] for name in ("1 level", "4 levels")}
    alone = np.array([slow["4 levels", seed] for seed in range(study.seeds)])
    cause = {"of the four only the three slow levels are asked": both({**ends, "4 levels": alone})}
    for reading in readings:
        options = READINGS[reading]
        same = () if "asked" in options else ("1 level",)  # one level of chunk size 1: nothing is changed
        cause[reading] = both({name: ends[name] if name in same else
                               measure(name, f", {reading}", rates[name], **options)[1] for name in ends})
    lines = {name: np.array([curves[name, seed][:, 0] for seed in range(study.seeds)]) for name in models}
    matrices = {name: [curves[name, seed][::segments] for seed in range(study.seeds)] for name in models}
    each = {name: [interval(task) for task in found[name].T] for name in models}
    main = both(found)
    return {"x": ("segments read; the first task's come first", list(range(tasks * segments + 1))),
            "y": "accuracy on the first task", "lines": lines, "holds": main["4 levels keep more"],
            "known at the end": main["kept"], "of each task": each, "chance": chance, "cause": cause,
            "just learned": {name: interval([np.mean(np.diag(m[1:])) for m in ms]) for name, ms in matrices.items()},
            "forgetting": {name: interval([transfer(m)["forgetting"] for m in ms])
                           for name, ms in matrices.items()},
            "here": f"accuracy at the end on all tasks (by chance {chance:.2f}), and on the first: " + ", ".join(
                f"{name} {said(kept)}, {said(each[name][0])}" for name, kept in main["kept"].items())}


def two_languages(study: Study) -> dict[str, Any]:
    """Eight words mean one thing in a first language and another in a second: is the first kept after the second?

    As in the paper, what learns is not the optimiser but the levels, while they read; the model was trained to
    read streams of random pairs of languages. Here a pair that is new comes as one stream, four segments of
    each language, every word with its meaning once in each. Attention begins anew with every segment, so only
    the levels can keep a language; asking teaches nothing. Judged is accuracy at the end on both languages:
    whoever does not learn the second has nothing to forget the first for.

    Every number of levels learns each language when it comes, and then loses the first; of one level, as wide as
    all, most is left. What the runs show of the cause: a language is known after one segment, and the fastest
    level alone moves that soon. Set it back to its start, and little above chance is left: the slow levels hold
    almost nothing that could be kept. Nor are they overwritten: the first language is lost before those of chunk sizes
    4 and 8 move again. With smaller slow steps, wider levels, or training that asks for both languages at the
    end, four levels do not keep more than one either. A task so small that one level learns it at once may be the
    reason, or training of first order, which holds still what the levels have learned: neither was varied. The
    paper's one level is another: MLPs that stand still, so that only attention learns in context. It is not here.
    """
    size, meanings = 8, 8  # tokens: words, meanings, two that name the language

    def family(rng: np.random.Generator, batch: int) -> tuple[Callable[[int], Drawn], Callable[[int], Drawn]]:
        dictionary = size + rng.integers(meanings, size=(2, batch, size))

        def read(language: int) -> Drawn:
            word = rng.permuted(np.tile(np.arange(size), (batch, 1)), axis=1)
            meaning = np.take_along_axis(dictionary[language], word, axis=1)
            pairs = np.stack([word, meaning], axis=2).reshape(batch, -1)
            tokens = np.hstack([np.full((batch, 1), size + meanings + language), pairs])
            return tokens, np.where(tokens[:, 1:] < size, IGNORE, tokens[:, 1:])
        return read, read
    return by_levels(study, family, 2, 4, study.steps(80), Config(
        width=32, layers=1, heads=2, segment=2 * size, vocabulary=size + meanings + 2, mixer="attention"),
        1 / meanings)


def intents(study: Study) -> dict[str, Any]:
    """Twelve intents arrive in three groups, each a new keyword and its label; at the end all labels compete.

    As in two-languages the levels learn while they read, here three segments of each group. Keywords and labels
    are dealt to intents at random in every stream, and no two intents share one: what is forgotten is not
    contradicted by what comes later, it is overwritten. One level keeps all, two and three keep nearly all; four lose
    most of the first group, and their slow levels alone know little. Where the four lose it was not looked into
    further. (Twenty intents in five groups were tried first: more than one level did not learn them.) The paper's
    baselines, MLPs that stand still, elastic weights and an external learner, are not here.
    """
    groups, classes = 3, 4  # tokens: keywords, as many labels, one that begins every segment
    labels = groups * classes

    def family(rng: np.random.Generator, batch: int) -> tuple[Callable[[int], Drawn], Callable[[int], Drawn]]:
        keyword, label = (rng.permuted(np.tile(np.arange(labels), (batch, 1)), axis=1) for _ in range(2))

        def window(intent: np.ndarray, group: int) -> Drawn:
            """Intents (B,n) as their keywords, each before its label; asked are those of one group."""
            said, told = (np.take_along_axis(names, intent, axis=1) for names in (keyword, labels + label))
            asked = np.stack([np.full_like(told, IGNORE), np.where(intent // classes == group, told, IGNORE)], axis=2)
            pairs = np.stack([said, told], axis=2).reshape(batch, -1)
            return np.hstack([np.full((batch, 1), 2 * labels), pairs]), asked.reshape(batch, -1)

        def read(group: int) -> Drawn:
            return window(group * classes + rng.permuted(np.tile(np.arange(classes), (batch, 1)), axis=1), group)

        def ask(group: int) -> Drawn:  # among the intents of all groups
            return window(rng.permuted(np.tile(np.arange(labels), (batch, 1)), axis=1)[:, :classes], group)
        return read, ask
    return by_levels(study, family, groups, 3, study.steps(80), Config(
        width=32, layers=1, heads=2, segment=2 * classes, vocabulary=2 * labels + 1, mixer="attention"), 1 / labels,
        readings=())


# 5. Learning while reading --------------------------------------------------------------------------------


def reading(study: Study) -> dict[str, Any]:
    """A trained model reads on through unseen text, 4,096 bytes at each of eight places, its levels learning.

    Each level by itself and all; the rate of learning is tuned on text that was trained on. A model with one
    level and as many parameters stands beside it.
    """
    chunks, segment, steps, length = (1, 4, 16), 64, study.steps(200), max(512, study.steps(4096))
    base = Config(width=48, layers=2, heads=2, segment=segment, mixer="attention", chunks=chunks, hidden=64)
    subsets = {"off": (), **{f"only chunk size {c}": (c,) for c in chunks}, "all levels": chunks}
    one = equal(replace(base, chunks=(1,)), count(base))
    train, held_out = corpus()

    def read(model: Hope, learning: Sequence[int], rate: float, text: Text, rows: int = 8) -> float:
        """Bits per byte of `rows` places of the text, each read on for `length` bytes."""
        starts, state, nats = [i * (len(text) - length - 1) // rows for i in range(rows)], None, []
        for t in range(0, length - segment + 1, segment):
            window = text.stack([s + t for s in starts], segment)
            if learning:
                loss, state = model.learn(window, state, rate)
                state = State([BlockState(None, tuple(its if chunk in learning else LevelState()
                                                      for chunk, its in zip(chunks, past.levels, strict=False)))
                               for past in state.blocks], state.clock)
            else:
                with no_grad():
                    loss = model.loss(window)[0].item()
            nats.append(loss)
        return float(np.mean(nats)) / BIT

    found: dict[str, np.ndarray] = {}
    for name, config in {"": base, "one level: ": one}.items():
        study.parameters[name or "three levels"] = count(config)
        rate = study.sweep(f"{name}training", (2e-3, 5e-3, 1e-2, 2e-2, 4e-2),
                           lambda rate, seed, c=config: -bits_per_byte(trained(study, c, rate, seed, steps)))
        models = [trained(study, config, rate, seed, steps) for seed in (SWEEP, *range(study.seeds))]
        for learning, levels in (subsets if not name else {"off": (), "learning": (1,)}).items():
            inner = 0.0
            if levels:  # tuned on text that was trained on, so as not to peep
                inner = study.sweep(name + learning, (0.1, 0.3, 1.0, 3.0, 10.0), lambda rate, seed,
                                    m=models[0], ls=levels: -read(m, ls, rate, train))
            found[name + learning] = np.array([[read(m, levels, inner, held_out)] for m in models[1:]])
    gain = (found["off"] - found["all levels"])[:, 0]
    gains = {name: interval((found["off" if not name.startswith("one") else "one level: off"] - bits)[:, 0])
             for name, bits in found.items() if not name.endswith("off")}
    return {"x": ("", [0]), "y": "bits per byte of unseen text", "lines": found, "holds": verdict(gain),
            "here": "bits per byte: " + ", ".join(
                f"{name} {said(interval(found[name]), 3)}" for name in found if name.endswith(("off", "levels")))
                + "; learning lowers them by " + ", ".join(f"{n} {said(g, 3)}" for n, g in gains.items())}


# 6, 7, 9. Settings of training, on real text --------------------------------------------------------------


def trained(study: Study, config: Config, rate: float, seed: int, steps: int, optimizer: str = "adamw",
            **options: Any) -> Hope:
    """A model that has read so many batches of eight random segments of the training text."""
    model = Hope(config, np.random.default_rng(seed))
    fit(model, text_batches(corpus()[0], 8, config.segment, seed), steps, rate, bar=study.bar,
        optimizer=optimizers.build(optimizer, model.groups(), rate, **options))
    return model


def writes(study: Study) -> dict[str, Any]:
    """Self-modifying Titans trained by gradients through their writes, and by gradients cut off there.

    Both are made of the same operations. What is cut off costs no time on the way back, so in equal time the
    second takes more steps. Is that the price of the gradients, or of operations? The reading below gives
    gradients through writes the kernel that they have (the same numbers), and the second as many steps as fit then.
    """
    steps = study.steps(150)
    through = Config(width=32, layers=2, heads=2, segment=64, chunks=(1,), hidden=64, memory_chunk=16,
                     projection_chunk=16, form="chunked", eta_max=0.5, eta_start=0.1)
    models = {"through writes": through, "stopped": replace(through, through_writes=False)}
    seconds: dict[bool, list[float]] = {True: [], False: []}

    def score(config: Config, rate: float, seed: int) -> list[float]:
        started = time.process_time()
        model = trained(study, config, rate, seed, steps)
        seconds[config.through_writes].append(time.process_time() - started)
        return [-bits_per_byte(model)]
    bits = {name: -scores for name, scores in study.compare(models, (3e-3, 1e-2, 3e-2), score).items()}
    cost = float(np.median(seconds[True]) / np.median(seconds[False]))
    best = study.best["stopped"]
    longer = max(steps, round(steps * cost))
    again = [trained(study, models["stopped"], best, seed, longer) for seed in range(study.seeds)]
    bits["stopped, equal time"] = np.array([[bits_per_byte(model)] for model in again])
    verdicts = [verdict((bits[name] - bits["through writes"])[:, 0]) for name in list(bits)[1:]]

    def price(config: Config) -> float:  # of ten steps, by the processor's clock
        trained(study, config, 1e-3, 0, 2)  # compiles
        started = time.process_time()
        trained(study, config, 1e-3, 0, 10)
        return time.process_time() - started
    kernel = float(np.median([price(replace(through, form="fused")) / price(models["stopped"]) for _ in range(3)]))
    fewer = max(2, round(steps * kernel))
    short = np.array([bits_per_byte(trained(study, models["stopped"], best, seed, fewer))
                      for seed in range(study.seeds)])
    cause = {f"gradients through writes have their kernel, a step of which takes {kernel:.2f} times a stopped one": {
        "kept": {"through writes": interval(bits["through writes"][:, 0]), "stopped, equal time": interval(short)},
        "holds": verdict(short - bits["through writes"][:, 0])}}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": bits, "cause": cause,
            "holds": f"equal steps: {verdicts[0]}; equal time: {verdicts[1]}",
            "here": ", ".join(f"{name} {said(interval(b), 3)}" for name, b in bits.items())
                    + f" bits per byte; a step through writes takes {cost:.2f} times as long"}


def optimisers(study: Study) -> dict[str, Any]:
    """The same small model, trained for as many steps as fit into the processor time of 300 steps of AdamW.

    M3 is Muon with a slow memory of gradients and with V [A 75]; the readings leave one or both of them out. The
    slow memory is what holds M3 back: without it, M3 and Muon do not differ. In so few steps it is read a dozen
    times, and what it holds is by then old; whether it pays in a long run, or in equal steps as in the paper, is not
    asked here.
    """
    config = Config(width=64, layers=2, heads=2, segment=64, mixer="attention", chunks=(1, 4), hidden=96)

    def cost(name: str) -> float:  # of a step, by the processor's clock
        times = []
        for _ in range(3):
            started = time.process_time()
            trained(study, config, 1e-3, 0, 5, name)
            times.append(time.process_time() - started)
        return float(np.median(times))
    cost("adamw")  # compiles
    costs = {name: cost(name) for name in ("adamw", "muon", "m3")}
    allowed = {name: study.steps(round(300 * costs["adamw"] / c)) for name, c in costs.items()}

    def bits(name: str, note: str = "", **options: Any) -> np.ndarray:
        def score(rate: float, seed: int) -> float:
            return -bits_per_byte(trained(study, config, rate, seed, allowed[name], name, **options))
        rates = (2e-3, 5e-3, 1e-2, 2e-2) if name == "adamw" else (1e-2, 3e-2, 1e-1, 2e-1)
        best = study.sweep(name + note, rates, score)
        return np.array([[-score(best, seed)] for seed in range(study.seeds)])
    found, cause = {name: bits(name) for name in costs}, {}
    for reading, options in {"M3 has no slow memory": {"slow_weight": 0.0}, "M3 has no V": {"variance": False},
                             "M3 has neither": {"slow_weight": 0.0, "variance": False}}.items():
        again = bits("m3", f", {reading}", **options)
        cause[reading] = {"kept": {"m3": interval(again)}, "below muon": verdict((found["muon"] - again)[:, 0])}
    verdicts = {other: verdict((found[other] - found["m3"])[:, 0]) for other in ("adamw", "muon")}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": found, "steps": allowed, "cause": cause,
            "holds": "; ".join(f"below {other}: {v}" for other, v in verdicts.items()),
            "here": "equal time: " + ", ".join(
                f"{name} {said(interval(b), 3)} ({allowed[name]} steps)" for name, b in found.items())}


def variants(study: Study) -> dict[str, Any]:
    """Two levels put together in three ways, against one level; nested levels also move while they are measured.

    A chain of two has half the width and twice the depth of one level; the reading asks whether it is only slower.
    """
    steps, chunks = study.steps(250), (1, 4)
    base = Config(width=48, layers=2, heads=2, segment=64, mixer="attention", chunks=chunks, hidden=64)
    models = {"sequential": base, "independent": equal(replace(base, cms="independent"), count(base)),
              "nested": replace(base, cms="nested", form="chunked"),
              "one level": equal(replace(base, chunks=(1,)), count(base))}

    def score(config: Config, rate: float, seed: int) -> list[float]:
        if config.cms != "nested":
            return [-bits_per_byte(trained(study, config, rate, seed, steps))]
        model, draw = Hope(config, np.random.default_rng(seed)), text_batches(corpus()[0], 8, 64, seed)
        fit(model, draw, steps, rate, bar=study.bar, loss=lambda tokens, targets: model.context_loss(
            np.hstack([tokens, targets[:, -1:]]))[0])
        windows = fixed(corpus()[1], 16, 64, 8)  # read as it was trained: its levels move while they read
        nats = [model.context_loss(window, first_order=True)[0].item() for window in windows]
        return [-float(np.mean(nats)) / BIT]
    found = {name: -scores for name, scores in study.compare(models, (2e-3, 5e-3, 1e-2, 2e-2), score).items()}
    gains = {name: verdict((found["one level"] - found[name])[:, 0]) for name in list(models)[:3]}

    def longer(name: str) -> np.ndarray:
        long = [trained(study, models[name], study.best[name], seed, 3 * steps) for seed in range(study.seeds)]
        return np.array([bits_per_byte(model) for model in long])
    again = {name: longer(name) for name in ("sequential", "one level")}
    cause = {"they learn for three times as many steps": {
        "kept": {name: interval(s) for name, s in again.items()},
        "sequential below one level": verdict(again["one level"] - again["sequential"])}}
    return {"x": ("", [0]), "y": "bits per byte of validation text", "lines": found, "cause": cause,
            "holds": "; ".join(f"{name} below one level: {v}" for name, v in gains.items()),
            "here": ", ".join(f"{name} {said(interval(b), 3)}" for name, b in found.items())}


# 8. A million tokens --------------------------------------------------------------------------------------


def context(study: Study) -> dict[str, Any]:
    """One text read to 8,192 bytes by every model, and on to a million by one; time is the processor's.

    What is judged is the cost of reading on, not what is remembered.
    """
    base = Config(width=32, layers=2, heads=1, segment=128, chunks=(1,), hidden=64)
    models = {"self-modifying": base, "Transformer": equal(replace(base, mixer="attention"), count(base))}
    places = [2 ** i for i in range(9, 21)]  # tokens read
    far, near = (2 ** 20, 2 ** 13) if study.share == 1 else (2 ** 11, 2 ** 10)
    bits: dict[str, list[list[float]]] = {}
    found = {}
    for name, config in models.items():
        study.parameters[name] = count(config)
        rate = study.sweep(name, (3e-3, 1e-2, 3e-2), lambda rate, seed, c=config: -bits_per_byte(
            trained(study, c, rate, seed, study.steps(200))))
        for seed in range(study.seeds):
            model = trained(study, config, rate, seed, study.steps(200))
            end = far if seed == 0 and name == "self-modifying" else near  # one model reads to the end
            read = read_on(model, seed, [n for n in places if n <= end], study.bar)
            close = [line["bits per byte"] for line in read if line["tokens"] <= near]
            bits.setdefault(name, []).append(close)
            found.setdefault(name, read)
    measures, growth, parts = ("microseconds per token", "state bytes"), {}, []
    for name, read in found.items():
        first, last = read[0], read[-1]
        growth[name] = {what: last[what] / first[what] for what in measures}
        time_grew, state_grew = growth[name].values()
        parts.append(f"{name}, {first['tokens']:,} to {last['tokens']:,} tokens: time per token "
                     f"× {time_grew:.2f}, state × {state_grew:.2f}, bits per byte "
                     f"{first['bits per byte']:.2f} → {last['bits per byte']:.2f}")
    flat = all(grew < 1.1 for grew in growth["self-modifying"].values())
    return {"x": ("tokens read", [n for n in places if n <= near]), "y": "bits per byte there",
            "lines": {name: np.array(scores) for name, scores in bits.items()}, "reading on": found,
            "growth": growth, "holds": "yes" if flat else "no", "here": "; ".join(parts)}


def read_on(model: Hope, seed: int, places: Sequence[int], bar: Any) -> list[dict[str, float]]:
    """Read on from a place of its own; what reading is like just before each number of tokens in `places`."""
    text, segment, nats, found = corpus()[0], model.config.segment, [], []
    state, since, started = None, 0, time.process_time()
    begin = seed * (len(text) - places[-1] - 1) // 10
    for t in range(0, places[-1], segment):
        window = text.read(begin + t, begin + t + segment + 1).astype(np.int64)
        with no_grad():
            loss, state = model.loss(window[None], state)
        nats.append(loss.item())
        bar.update()
        if t + segment == places[len(found)]:
            seconds, tokens = time.process_time() - started, t + segment - since
            found.append({"tokens": t + segment, "bits per byte": float(np.mean(nats)) / BIT,
                          "state bytes": state.nbytes, "microseconds per token": 1e6 * seconds / tokens})
            nats, since, started = [], t + segment, time.process_time()
    return found


CLAIMS: dict[str, tuple[Callable[[Study], dict[str, Any]], str]] = {  # and what the paper says of it
    "recall": (recall, "in-context recall: Hope above Titans, Comba and RWKV-7 (Tables 3, 4); attention above Hope on "
                       "real text, at most level with it in MAD"),
    "languages": (languages, "formal languages: Hope, LSTM and SRWM solve them all; DeltaNet and attention fail at "
                             "parity, (aa)* and (abab)* (Table 5)"),
    "two-languages": (two_languages, "two languages in turn: in-context learning over static MLPs forgets; one, two, "
                                     "three additional levels forget less (Fig. 8)"),
    "intents": (intents, "class-incremental intents: Hope above in-context learning, EWC and InCA (Fig. 6)"),
    "reading": (reading, "nothing of the kind (nearest: perplexity over the context used, Fig. 10)"),
    "writes": (writes, "said, not compared: initial states are learned through the writes of their context (§8.1)"),
    "optimisers": (optimisers, "a vision transformer in equal steps: M3 below AdamW and Muon (Fig. 11), slower per "
                               "step than Muon (Fig. 12)"),
    "context": (context, "accuracy held to 10 million tokens of BABILong, after fine-tuning (Fig. 9)"),
    "variants": (variants, "nested, sequential and independent levels are defined, none compared (§7.1)"),
}

# What is kept and shown -----------------------------------------------------------------------------------


def run(names: Sequence[str], out: Path | None, quick: bool, quiet: bool) -> None:
    """Measure claims (all, if none is named); ValueError for a name that is none."""
    if wrong := [name for name in names if name not in CLAIMS]:
        raise ValueError(f"there is no claim {wrong[0]!r}{nearest(wrong[0], list(CLAIMS))}; "
                         f"choose from {', '.join(CLAIMS)}")
    if quick and out is None:
        raise ValueError("--quick measures nothing worth keeping; give a folder for it: --out FOLDER")
    folder = out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or CLAIMS:
        measure, paper = CLAIMS[name]
        started, worked = time.perf_counter(), time.process_time()
        with tqdm(desc=name, unit="step", disable=quiet) as bar:
            study = Study(2, 0.01, bar) if quick else Study(bar=bar)
            found = measure(study)
        kept = {"claim": name, "paper": paper, "here": found["here"], "holds": found["holds"],
                "command": f"python -m apps.evaluate claims {name}", "machine": machine(),
                "seconds": round(time.perf_counter() - started),
                "processor seconds": round(time.process_time() - worked),
                "seeds": study.seeds, "parameters": study.parameters, "sweep": study.sweeps,
                **{k: v for k, v in found.items() if k not in ("here", "holds", "lines")},
                "scores": {k: np.round(v, 5).tolist() for k, v in found["lines"].items()}}
        write_text(folder / f"{name}.json", json.dumps(kept, indent=1))
        draw(name, paper, found, folder / f"{name}.png")
        print(f"{name}: {kept['here']}\n  holds? {kept['holds']}   ({kept['seconds']} s)")
    write_text(folder / "README.md", overview(folder))


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {os.environ.get('NUMBA_NUM_THREADS', 'all')} of them used"


def draw(name: str, paper: str, found: dict[str, Any], path: Path) -> None:
    """Means with their 95% intervals: lines over sizes, bars where there is only one."""
    figure, (panel,) = canvas(textwrap.fill(f"{name}. The paper: {paper}", 90), 1)
    label, xs = found["x"]
    for i, (series, scores) in enumerate(found["lines"].items()):
        mean, half = np.array([interval(column) for column in scores.T]).T
        colour, marker = COLOURS[i % len(COLOURS)], "os"[i // len(COLOURS)]
        if len(xs) == 1:
            panel.errorbar([i], mean, half, fmt="o", capsize=4, color=colour)
        else:
            shift = (i - len(found["lines"]) / 2) * 0.02 * (xs[-1] - xs[0]) / len(xs)
            panel.errorbar(np.array(xs) + shift, mean, half, fmt=marker if "ticks" in found else marker + "-",
                           capsize=3, markersize=4, color=colour, label=series)
    if len(xs) == 1:
        names = [series.replace(" ", "\n", 1) for series in found["lines"]]
        panel.set_xticks(range(len(names)), names, size=8)
    else:
        panel.legend(frameon=False, fontsize=8)
        panel.set_xticks(xs, found.get("ticks", xs), size=8 if "ticks" not in found else 6)
    panel.set(xlabel=label, ylabel=found["y"])
    figure.savefig(path)


def edges(sweep: dict[str, dict[str, float]]) -> list[str]:
    """The sweeps in which only the smallest or the largest rate tried is the best: a better one may lie beyond."""
    return [name for name, scores in sweep.items()
            if max(scores.values()) not in [scores[rate] for rate in sorted(scores, key=float)[1:-1]]]


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """What was found for every claim that has been measured there, by name."""
    paths = {name: folder / f"{name}.json" for name in CLAIMS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def overview(folder: Path) -> str:
    """The table of all claims measured so far, from their files; it names what has not been measured."""
    lines = ["# The claims", "", "Each claim is one command, `python -m apps.evaluate claims NAME`: five seeds, as many",
             "parameters and bytes for every model compared, and the same sweep of learning rates. Numbers are means ±",
             "half of the 95% interval; all of them, and the sweep, are in the file beside the picture. *Paper* is what",
             "its text says. *Holds?* judges what is asked here, by the differences within a seed; that is not always",
             "the same question.", "",
             "| claim | paper | here | holds? |", "|---|---|---|---|"]
    notes, asked, found = [], [], measured(folder)
    for name, (measure, paper) in CLAIMS.items():
        asked.append(f"- *{name}*: {' '.join(inspect.cleandoc(measure.__doc__ or '').split())}")
        if not (kept := found.get(name)):
            lines.append(f"| {name} | {paper} | | not measured |")
            continue
        lines.append(f"| [{name}]({name}.png) | {paper} | {kept['here']} | {kept['holds']} |")
        for reading, tried in kept.get("cause", {}).items():
            left = ", ".join(f"{levels} {said(tuple(k))}" for levels, k in tried["kept"].items())
            rest = "".join(f"; {what}: {it}" for what, it in tried.items() if what != "kept")
            notes.append(f"- {name}, if {reading}: {left}{rest}.")
        if at := edges(kept["sweep"]):
            notes.append(f"- {name}: the best rate is at the edge of the sweep for {', '.join(at)}.")
    return "\n".join([*lines, "", "## What is asked", "", *asked, "", "## Beside the numbers", "", *notes]) + "\n"
