"""What the claims share: seeds, sweeps, intervals and verdicts; models of one size; text to train and measure on.

Legend: B batch, T time; (seeds,points) what a model scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

import optimizers
from apps.evaluate import BIT, fit, text_batches
from autograd import Tensor, no_grad
from config import Config
from data import Corpus, Text, fixed
from hope import Hope, count
from layers import CausalConv, Mixer

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
SWEEP = 99  # the seed of the sweeps
WORST = -1e9  # the score of a rate at which a loss is no longer finite
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
    each: Callable[[Callable, Iterable], Iterable] = map  # how independent trainings are gone through

    def steps(self, n: int) -> int:
        return max(2, round(n * self.share))

    def sweep(self, name: str, rates: Sequence[float], score: Callable[[float, int], float]) -> float:
        """The rate with the highest score on the seed of the sweeps; of equally good ones that in their middle.

        Where only the smallest or the largest rate is the best, the sweep goes on beyond it, by the same ratio, up
        to three rates. A rate at which training breaks down is the worst of all.
        """
        def tried(rate: float) -> float:
            try:
                return float(score(rate, SWEEP))
            except FloatingPointError:
                return WORST
        first = rates if self.share == 1 else rates[:2]
        found = dict(zip(first, self.each(tried, first), strict=True))
        for _ in range(3 if self.share == 1 and len(rates) > 1 else 0):
            tried_rates = sorted(found)
            best = [rate for rate in tried_rates if found[rate] == max(found.values())]
            if set(best) & set(tried_rates[1:-1]) or len(best) == len(found):
                break
            (one, next_one) = tried_rates[:2] if best[0] == tried_rates[0] else tried_rates[:-3:-1]
            beyond = float(f"{one * one / next_one:.2g}")
            found[beyond], = self.each(tried, [beyond])
        self.sweeps[name] = {f"{rate:g}": found[rate] for rate in sorted(found)}
        best = [rate for rate in sorted(found) if found[rate] == max(found.values())]
        self.best[name] = best[len(best) // 2]
        return self.best[name]

    def compare(self, models: dict[str, Config], rates: Sequence[float],
                score: Callable[[Config, float, int], Any], note: str = "") -> dict[str, np.ndarray]:
        """Scores (higher is better) of every model at its best rate, (seeds,points) each."""
        found = {}
        for name, config in models.items():
            self.parameters[name] = count(config)
            def mean(rate: float, seed: int, config: Config = config) -> float:
                return float(np.mean(score(config, rate, seed)))
            best = self.sweep(name + note, rates, mean)
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


def without_writes(model: Hope, batches: int = 8) -> float:
    """Bits per byte of the model while its memories write nothing: η is nearly 0."""
    mixers = [block.mixer for block in model.blocks]
    kept = [mixer.config for mixer in mixers]
    for mixer in mixers:
        mixer.config = replace(mixer.config, eta_max=1e-9, eta_start=1e-10)
    bits = bits_per_byte(model, batches)
    for mixer, config in zip(mixers, kept, strict=True):
        mixer.config = config
    return bits


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


def trained(study: Study, config: Config, rate: float, seed: int, steps: int, optimizer: str = "adamw",
            batch: int = 8, watch: Callable[[Hope, int], None] | None = None, **options: Any) -> Hope:
    """A model that has read so many batches of random segments of the training text; `watch` sees it after each."""
    model = Hope(config, np.random.default_rng(seed))
    fit(model, text_batches(corpus()[0], batch, config.segment, seed), steps, rate, bar=study.bar,
        after=watch and partial(watch, model), optimizer=optimizers.build(optimizer, model.groups(), rate, **options))
    return model
