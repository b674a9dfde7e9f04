"""What does a minute buy?  Bits per byte on held-out text against minutes, for four models of one size.

`nano`, the gated delta rule, the Transformer of as many parameters here, and the same Transformer in PyTorch. What
a step of each takes is measured first, in turns; then each takes as many steps as fit into the minutes. So it takes
nothing from anyone that several learn at a time, or that another program runs. All learn by Muon from the same
batches in the same order, the rate falling as a cosine to the last step; it is the one that the claim `clock` found
best for each. A seed decides on the weights and on the order of the text. PyTorch's Transformer computes what ours does
(the benchmark `transformer` compares them) and learns with one seed only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import ROOT, Job, Lane, Others, race, take_turns
from benchmarks.report import HERE, Result, Table, Target
from benchmarks.training import SMALL, Trainer, load, prepare
from benchmarks.worker import Contender, scheduled

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SWEPT = ROOT / "docs" / "claims" / "clock.json"  # the rates that were tried, by model
MODELS = {  # name here → name there
    "nano": "Hope", "gated delta": "gated delta", "Transformer, ours": "Transformer",
    "Transformer, PyTorch": "Transformer"}
COLOURS = ("#1f5fa8", "#3a8f4d", "#d1731f", "#7a7a7a")
SEEDS, POINTS = 3, 12  # of the curve
Key = tuple[str, int]  # model, seed


def learning(folder: str, optimizer: str, lr: float, steps: int, warmup: int = 20, final: float = 0.1, **options: Any
             ) -> Contender:
    """Our side; the loss is that of the batches in held_out.npy."""
    from autograd import no_grad

    trainer, held_out = Trainer(load(folder), lr, optimizer, **options), np.load(Path(folder) / "held_out.npy")

    @no_grad()
    def nats() -> float:
        return float(np.mean([trainer.model.loss(tokens)[0].item() for tokens in held_out]))
    batches = np.load(Path(folder) / "tokens.npy", mmap_mode="r")
    return scheduled(trainer, batches, nats, steps, warmup, final)


def learn(jobs: dict[Key, Job], steps: dict[Key, int], threads: int) -> dict[Key, list[dict[str, float]]]:
    """Let all learn, as many at once as there are cores for; steps and bits per byte at every point of the curve."""
    running: list[Lane] = []

    def one(key: Key) -> list[dict[str, float]]:
        with race({str(key): jobs[key]}, threads) as lanes:
            lane = lanes[str(key)]
            running.append(lane)
            points = []
            for i in range(1, POINTS + 1):
                lane.arguments = {"until": round(steps[key] * i / POINTS)}
                lane.step()
                points.append(lane.values[0])
            print(f"{key[0]}, seed {key[1]}: {points[-1]['bits']:.3f} bits per byte after {steps[key]} steps",
                  file=sys.stderr)
            return points
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // threads)) as pool:
        try:
            return dict(zip(jobs, pool.map(one, jobs), strict=True))
        except BaseException:
            for lane in running:  # so that nobody waits for what is not wanted any more
                lane.process.process.kill()
            raise


def run(options: Options) -> Result:
    """Bits per byte after so many minutes, and a picture."""
    from apps.claims.clock import models
    from apps.claims.study import verdict
    from config import PRESETS
    from data import Corpus, fixed

    nano, training = PRESETS["nano"]
    nano = replace(nano, **SMALL) if options.small else nano
    threads, others = max(options.threads), Others()
    configs, seeds = models(nano), 2 if options.small else SEEDS
    sweep = json.loads(SWEPT.read_text(encoding="utf-8"))["sweep"]
    rates = {name: float(max(sweep[there], key=sweep[there].__getitem__)) for name, there in MODELS.items()}
    with tempfile.TemporaryDirectory() as scratch:
        held_out = np.stack(list(fixed(Corpus.default().split("validation"), 4, nano.segment, 16))).astype(np.int64)
        batch, batches = training.batch, 64 if options.small else 4000

        def job(name: str, seed: int, steps: int) -> Job:
            folder, theirs = Path(scratch) / f"{name}, {seed}", "PyTorch" in name
            if not folder.exists():
                folder.mkdir()
                prepare(str(folder), configs[MODELS[name]], batch, batches, seed)
                np.save(folder / "held_out.npy", held_out)
            return Job("benchmarks.torch_port:learning" if theirs else "benchmarks.loss:learning",
                       {"folder": str(folder), "optimizer": training.optimizer, "lr": rates[name], "steps": steps,
                        **({} if theirs else training.rung())})
        with race({name: job(name, 0, 1) for name in MODELS}, threads) as lanes:
            take_turns(lanes, options.rounds, options.seconds)
            seconds = {name: lane.median for name, lane in lanes.items()}
        steps = {name: max(POINTS, round(60 * options.minutes / spent)) for name, spent in seconds.items()}
        jobs = {(name, seed): job(name, seed, steps[name]) for seed in range(seeds) for name in seconds
                if not seed or "PyTorch" not in name}
        found = learn(jobs, {key: steps[key[0]] for key in jobs}, threads)
    bits = {name: np.array([[p["bits"] for p in found[name, seed]] for seed in range(seeds) if (name, seed) in found])
            for name in seconds}
    table = Table(f"Bits per byte on {held_out[:, :, 1:].size:,} held-out bytes after {options.minutes:g} minutes, "
                  f"{threads} thread(s), {seeds} seeds",
                  ["model", "learning rate", "ms per step", "steps", "half the time", "all of it", "nano below it"])
    targets = []
    for name, b in bits.items():
        below = b[:, -1] - bits["nano"][:len(b), -1]
        half, all_of_it = (written(b[:, i]) for i in (POINTS // 2 - 1, -1))
        table.rows.append([name, rates[name], 1000 * seconds[name], steps[name], half, all_of_it,
                           "" if name == "nano" else verdict(below) if len(b) > 1 else "one seed"])
        if name != "nano":
            targets.append(Target.most(f"bits per byte of nano less those of {name}, {options.minutes:g} minutes",
                                       -float(np.mean(below)), 0.0))
    draw({name: (np.arange(1, POINTS + 1) * options.minutes / POINTS, b) for name, b in bits.items()}, options)
    notes = [] if options.small else ["![Bits per byte against minutes](loss.png)"]
    return Result("loss", [table], targets, notes, others.share())


def written(bits: np.ndarray) -> str:
    """Their mean and its 95% interval; of a single one only that."""
    from apps.claims.study import interval, said

    return said(interval(bits), 3) if len(bits) > 1 else f"{bits[0]:.3f}"


def draw(found: dict[str, tuple[np.ndarray, np.ndarray]], options: Options) -> None:
    """loss.png beside this file, unless it is only a look."""
    from tools.plots import canvas

    if options.small:
        return
    figure, (panel,) = canvas("Bits per byte on held-out text against minutes of learning", 1)
    colours, beside = dict(zip(MODELS, COLOURS, strict=True)), -np.inf
    highest = max(bits[:, 0].max() for _, bits in found.values())
    for name, (minutes, bits) in sorted(found.items(), key=lambda item: item[1][1][:, -1].mean()):
        mean = bits.mean(0)
        panel.plot(minutes, mean, color=colours[name], marker=".", linewidth=2)
        panel.fill_between(minutes, bits.min(0), bits.max(0), color=colours[name], alpha=0.15, linewidth=0)
        beside = max(mean[-1], beside + 0.04 * (highest - mean[-1]))  # names do not cover one another
        panel.annotate(f"{name} {mean[-1]:.2f}", (minutes[-1], beside), xytext=(6, 0), color=colours[name],
                       size=9, textcoords="offset points", va="center")
    panel.set(xlabel="minutes", ylabel="bits per byte; from the lowest to the highest of the seeds",
              xlim=(0, options.minutes * 1.3))
    figure.savefig(HERE / "loss.png")
