"""What does a minute buy?  Bits per byte on held-out text against the clock, for three models of one size.

`nano`, the Transformer of as many parameters here, and the same Transformer in PyTorch learn from the same
batches in the same order, in turns, each in a process of its own. The optimiser, AdamW or Muon, and the
learning rate are the best of a sweep for either model; both Transformers take the same. The rate falls as a
cosine of the time, and measuring the loss takes none of it.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Job, Others, race
from benchmarks.report import HERE, Result, Table, Target
from benchmarks.training import SMALL, Trainer, load, prepare
from benchmarks.worker import Contender, against_the_clock

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SWEEP = (("adamw", 4e-3), ("muon", 0.025), ("muon", 0.05), ("muon", 0.1))
TURNS = 12  # how often all take turns
COLOURS = ("#1f5fa8", "#d1731f", "#7a7a7a")


def learning(folder: str, optimizer: str, lr: float, seconds: float, warmup: int = 20, final: float = 0.1,
             **options: Any) -> Contender:
    """Our side; the loss is that of the batches in held_out.npy."""
    from autograd import no_grad

    trainer, held_out = Trainer(load(folder), lr, optimizer, **options), np.load(Path(folder) / "held_out.npy")

    @no_grad()
    def nats() -> float:
        return float(np.mean([trainer.model.loss(tokens)[0].item() for tokens in held_out]))
    batches = np.load(Path(folder) / "tokens.npy", mmap_mode="r")
    return against_the_clock(trainer, batches, nats, seconds, warmup, final)


def learn(jobs: dict[str, Job], minutes: float, threads: int, turns: int
          ) -> dict[str, list[dict[str, float]]]:
    """Let all learn for so long, in turns; what each had reached after each of its turns."""
    found: dict[str, list[dict[str, Any]]] = {}
    timed = {n: Job(j.make, j.arguments | {"seconds": 60 * minutes}) for n, j in jobs.items()}
    with race(timed, threads) as lanes:
        for turn in range(1, turns + 1):
            for name, lane in lanes.items():
                lane.arguments = {"until": 60 * minutes * turn / turns}
                lane.step()
                found.setdefault(name, []).append(lane.values[0])
    return found


def run(options: Options) -> Result:
    """Bits per byte after so many minutes, and a picture."""
    from config import PRESETS
    from data import Corpus, fixed
    from hope import transformer

    nano, training = PRESETS["nano"]
    nano = replace(nano, **SMALL) if options.small else nano
    threads, others = max(options.threads), Others()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        held_out = np.stack(list(fixed(Corpus.default().split("validation"), 4, nano.segment, 16)))
        for folder, config in ((one, nano), (other, transformer(nano))):
            prepare(folder, config, 4, 64 if options.small else 4000)
            np.save(Path(folder) / "held_out.npy", held_out.astype(np.int64))
        makers = {"nano": ("benchmarks.loss:learning", one),
                  "Transformer, ours": ("benchmarks.loss:learning", other),
                  "Transformer, PyTorch": ("benchmarks.torch_port:learning", other)}

        def job(name: str, optimizer: str, lr: float) -> Job:
            make, folder = makers[name]
            more = training.rung() if name == "nano" and optimizer == training.optimizer else {}
            return Job(make, {"folder": folder, "optimizer": optimizer, "lr": lr, **more})
        sweep = Table("The sweep: bits per byte after a fifth of the time",
                      ["model", *(f"{optimizer} {lr:g}" for optimizer, lr in SWEEP)])
        best = {}
        for name in list(makers)[:2]:
            tried = learn({f"{way}": job(name, *way) for way in SWEEP}, options.minutes / 5, threads, 1)
            bits = {way: tried[f"{way}"][-1]["bits"] for way in SWEEP}
            best[name] = min(bits, key=bits.__getitem__)
            sweep.rows.append([name, *bits.values()])
        best["Transformer, PyTorch"] = best["Transformer, ours"]
        found = learn({name: job(name, *way) for name, way in best.items()}, options.minutes, threads, TURNS)
    table = Table(f"Bits per byte on {held_out[:, :, 1:].size:,} held-out bytes after {options.minutes:g} "
                  f"minutes, {threads} thread(s)",
                  ["model", "optimiser", "learning rate", "steps", "half the time", "all of it"])
    for name, points in found.items():
        table.rows.append([name, *best[name], points[-1]["steps"], points[len(points) // 2 - 1]["bits"],
                           points[-1]["bits"]])
    draw(found, options)
    last = {name: points[-1]["bits"] for name, points in found.items()}
    targets = [Target.most(f"bits per byte of nano less those of {name}, {options.minutes:g} minutes",
                           last["nano"] - last[name] if name in last else None, 0.0)
               for name in list(makers)[1:]]
    notes = [] if options.small else ["![Bits per byte against minutes](loss.png)"]
    return Result("loss", [table, sweep], targets, notes, others.share())


def draw(found: dict[str, list[dict[str, float]]], options: Options) -> None:
    """loss.png beside this file, unless it is only a look."""
    from tools.plots import canvas

    if options.small:
        return
    figure, (panel,) = canvas("Bits per byte on held-out text against minutes of learning", 1)
    colours, beside = dict(zip(found, COLOURS, strict=False)), -np.inf
    highest = max(points[0]["bits"] for points in found.values())
    for name, points in sorted(found.items(), key=lambda item: item[1][-1]["bits"]):
        seconds, bits = ([p[key] for p in points] for key in ("seconds", "bits"))
        panel.plot(np.divide(seconds, 60), bits, color=colours[name], marker=".", linewidth=2)
        beside = max(bits[-1], beside + 0.04 * (highest - bits[-1]))  # names do not cover one another
        panel.annotate(f"{name} {bits[-1]:.2f}", (seconds[-1] / 60, beside), xytext=(6, 0), color=colours[name],
                       size=9, textcoords="offset points", va="center")
    panel.set(xlabel="minutes", ylabel="bits per byte", xlim=(0, options.minutes * 1.25))
    figure.savefig(HERE / "loss.png")
