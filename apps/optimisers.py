"""Which optimiser suits my setting?  A sweep of learning rates for each, then several seeds at the best one.

    python -m apps.evaluate optimisers --preset tiny --optimizers adamw muon --rates 0.001,0.01,0.1 --seeds 3

A preset's model is trained on its text (or --files), with its batch, warm-up, schedule and weight decay. The rate is
chosen with a seed of its own, by the mean loss of the last steps; the seeds that are shown are others, measured on
text that was held out. A best rate at the end of its sweep is marked: it may lie beyond.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

import optimizers
from autograd import no_grad
from config import PRESETS, RATES, Config, Training, nearest
from data import Corpus, Segments, fixed
from hope import Hope
from tools.plots import COLOURS, canvas

SWEEP = 1 << 20  # the seed of all sweeps; those that are shown count from 0
AROUND = (10**-0.5, 1.0, 10**0.5)  # of an optimiser's own rate, where none are given
LAST = 20  # steps whose mean loss chooses


def trained(config: Config, training: Training, corpus: Corpus, name: str, rate: float, seed: int, bar: Any
            ) -> tuple[list[float], float, float]:
    """Losses of all steps in nats, bits per byte of held-out text, and milliseconds a step; infinite if it diverged."""
    model = Hope(config, np.random.default_rng(seed))
    own = training.rung() if name == training.optimizer else {}
    optimizer = optimizers.build(name, model.groups(training.weight_decay), rate, **own)
    segments = Segments(corpus.split("train"), training.batch * training.accumulate, config.segment, seed=seed)
    losses: list[float] = []
    started = time.perf_counter()
    with np.errstate(all="ignore"):
        for step in range(training.steps):
            optimizer.zero_grad()
            loss, _ = model.loss(next(segments))
            losses.append(loss.item())
            bar.update()
            if not math.isfinite(losses[-1]):
                bar.update(training.steps - step - 1)
                return losses, math.inf, math.inf
            loss.backward()
            optimizers.clip_grad_norm(optimizer.params, training.clip)
            optimizer.lr_scale = optimizers.schedule(training.schedule, step, training.steps, training.warmup,
                                                     training.final)
            optimizer.step()
        each = 1e3 * (time.perf_counter() - started) / training.steps
        with no_grad():
            held_out = [(model.loss(tokens)[0].item(), len(tokens)) for tokens in fixed(
                corpus.split("validation"), training.batch, config.segment, training.validation)]
    losses_there, rows = zip(*held_out, strict=True)
    bits = float(np.average(losses_there, weights=rows)) / math.log(2)
    return losses, bits if math.isfinite(bits) else math.inf, each


def last(losses: Sequence[float]) -> float:
    """What a rate is chosen by; infinite if it diverged."""
    found = float(np.mean(losses[-LAST:]))
    return found if math.isfinite(found) else math.inf


def compare(given: argparse.Namespace, each: Callable[[Callable, Iterable], Iterable] = map) -> dict[str, Any]:
    """Every optimiser at its best rate: a sweep, then the seeds. `each` goes through independent trainings."""
    for word, known in [(given.preset, list(PRESETS)), *((name, list(RATES)) for name in given.optimizers)]:
        if word not in known:
            raise ValueError(f"there is no {word!r}{nearest(word, known)}; choose from {', '.join(known)}")
    if given.seeds < 1 or any(not rate > 0 for rate in given.rates):
        raise ValueError("--seeds is at least 1, and --rates are above 0")
    config, training = PRESETS[given.preset]
    training = replace(training, steps=given.steps if given.steps > 0 else training.steps)
    corpus = Corpus.from_paths(given.files) if given.files else Corpus.default()
    names = list(dict.fromkeys(given.optimizers))
    rates = {name: sorted(given.rates) or [round(RATES[name] * by, 6) for by in AROUND] for name in names}
    found: dict[str, Any] = {}
    total = sum(len(its) + given.seeds for its in rates.values()) * training.steps
    with tqdm(total=total, unit="step", disable=given.quiet) as bar:
        for name in names:
            bar.set_postfix_str(name)
            def run(at: tuple[float, int], name: str = name) -> tuple[list[float], float, float]:
                return trained(config, training, corpus, name, *at, bar)
            losses = each(run, [(rate, SWEEP) for rate in rates[name]])
            sweep = {rate: last(found[0]) for rate, found in zip(rates[name], losses, strict=True)}
            best = min(sweep, key=lambda rate: sweep[rate])
            runs = list(each(run, [(best, given.seed + i) for i in range(given.seeds)]))
            found[name] = {"rate": best, "edge": len(sweep) > 1 and best in (min(sweep), max(sweep)),
                           "sweep": {f"{rate:g}": loss for rate, loss in sweep.items()},
                           "bits per byte": [bits for _, bits, _ in runs], "losses": [losses for losses, _, _ in runs],
                           "milliseconds per step": float(np.median([each for *_, each in runs]))}
    rows = []
    for name, its in sorted(found.items(), key=lambda item: float(np.mean(item[1]["bits per byte"]))):
        bits = its["bits per byte"]
        rows.append([name, f"{its['rate']:g}{' (at the end of its sweep)' if its['edge'] else ''}",
                     float(np.mean(bits)), min(bits), max(bits), its["milliseconds per step"]])
    return {"head": ["optimiser", "best rate", "bits per byte", "lowest", "highest", "ms per step"], "rows": rows,
            "results": {"preset": given.preset, "steps": training.steps, "optimisers": found},
            "draw": lambda title, path: draw(found, title, path)}


def draw(found: dict[str, Any], title: str, path: Any) -> None:
    """The loss at every rate of the sweeps, and on the way at the best one."""
    figure, (above, below) = canvas(title, 1, 1)
    for i, (name, its) in enumerate(found.items()):
        colour, style = COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "--"
        shown = [(float(rate), loss) for rate, loss in its["sweep"].items() if math.isfinite(loss)]
        if shown:
            above.plot(*zip(*shown, strict=True), marker="o", markersize=3, color=colour, linestyle=style, label=name)
        for losses in its["losses"]:
            below.plot(range(1, len(losses) + 1), losses, color=colour, linestyle=style, linewidth=0.8)
    above.set_xscale("log")
    above.set(xlabel="learning rate", ylabel="nats, last steps")
    above.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    below.set(xlabel="step, at the best rate", ylabel="nats per byte")
    figure.savefig(path)
