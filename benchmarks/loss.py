"""What does a minute buy?  Bits per byte on held-out text against minutes, for models of one size.

Those of ours, `nano`, the Transformer of as many parameters and others, have learned already: their curves are those of
the claim `clock`. The last is that Transformer in PyTorch, which computes what ours does (the benchmark `transformer`
compares them). What a step of both takes is measured in turns; PyTorch's takes as many as fit into the same time, from
the same weights and batches, at the same rate, and with one seed only.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import ROOT, Job, Others, race, ratio, take_turns
from benchmarks.report import HERE, Result, Table, Target
from benchmarks.training import SMALL, prepare

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

CLAIM = ROOT / "docs" / "claims" / "clock.json"
OURS, THEIRS = "Transformer", "Transformer, PyTorch"
COLOURS = {"Hope": "#1f5fa8", "gated delta": "#3a8f4d", OURS: "#d1731f", THEIRS: "#7a7a7a", "plain Titans": "#8a4fa3",
           "delta": "#2aa198", "retention": "#b58900", "Hope-Attention": "#c23b5e"}


def run(options: Options) -> Result:
    """Bits per byte after so many minutes, and a picture."""
    from apps.claims.clock import BATCH, HELD_OUT, NANO, TRAINING, models
    from apps.claims.study import corpus, verdict
    from apps.evaluate import text_batches
    from data import fixed

    claim, others = json.loads(CLAIM.read_text(encoding="utf-8")), Others()
    nano = replace(NANO, **SMALL) if options.small else NANO
    config, (text, held_out), minutes = models(nano)[OURS], corpus(), claim["x"][1]
    bits = {name: np.array(scores) for name, scores in claim["scores"].items()}
    rates = {name: float(max(tried, key=tried.__getitem__)) for name, tried in claim["sweep"].items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(scratch, config, BATCH, 1)
        draw = text_batches(text, BATCH, config.segment, 0)
        windows = (draw() for _ in range(64 if options.small else 2 * claim["steps"][OURS]))
        np.save(folder / "tokens.npy", np.stack([np.c_[tokens, targets[:, -1]] for tokens, targets in windows]
                                                ).astype(np.int64))
        np.save(folder / "held_out.npy", np.stack(list(fixed(held_out, 16, config.segment, HELD_OUT))).astype(np.int64))

        def theirs(steps: int) -> Job:
            return Job("benchmarks.torch_port:learning", {
                "folder": scratch, "optimizer": TRAINING.optimizer, "lr": rates[OURS], "steps": steps})
        ours = Job("benchmarks.training:ours", {
            "folder": scratch, "lr": rates[OURS], "optimizer": TRAINING.optimizer, **TRAINING.rung()})
        with race({OURS: ours, THEIRS: theirs(1)}, 1) as lanes:
            take_turns(lanes, options.rounds, options.seconds)
            longer, seconds = ratio(lanes[THEIRS], lanes[OURS]), {name: lane.median for name, lane in lanes.items()}
        steps = {**claim["steps"], THEIRS: max(len(minutes), round(claim["steps"][OURS] / longer))}
        if options.small:
            steps[THEIRS] = len(minutes)
        with race({THEIRS: theirs(steps[THEIRS])}, 1) as lanes:
            lane, points = lanes[THEIRS], []
            for i in range(1, len(minutes) + 1):
                lane.arguments = {"until": round(steps[THEIRS] * i / len(minutes))}
                lane.step()
                points.append(lane.values[0]["bits"])
    bits[THEIRS], rates[THEIRS] = np.array([points]), rates[OURS]
    table = Table(f"Bits per byte on {config.segment * 16 * HELD_OUT:,} held-out bytes, one thread; ours from claim "
                  f"`clock`, {claim['seeds']} seeds, {claim['date']}",
                  ["model", "learning rate", "steps", *(f"after {m} minutes" for m in minutes[::2]), "nano below it"])
    targets = []
    for name, b in bits.items():
        below = b[:, -1] - bits["Hope"][:len(b), -1]
        table.rows.append([called(name), rates[name], steps[name], *(written(column) for column in b.T[::2]),
                           "" if name == "Hope" else verdict(below) if len(b) > 1 else "one seed"])
        if name != "Hope":
            targets.append(Target.most(f"bits per byte of nano less those of {called(name)}, {minutes[-1]} minutes",
                                       -float(np.mean(below)), 0.0))
    notes = ["A step takes " + ", ".join(f"the {called(name)} {1000 * s:,.0f} ms" for name, s in seconds.items()) + "."]
    if not options.small:
        draw_curves(minutes, bits)
        notes.append("![Bits per byte against minutes](loss.png)")
    return Result("loss", [table], targets, notes, others.share())


def called(name: str) -> str:
    """What the page calls a model of the claim."""
    return {"Hope": "nano", OURS: "Transformer, ours"}.get(name, name)


def written(bits: np.ndarray) -> str:
    """Their mean and its 95% interval; of a single one only that."""
    from apps.claims.study import interval, said

    return said(interval(bits), 3) if len(bits) > 1 else f"{bits[0]:.3f}"


def draw_curves(minutes: list[int], found: dict[str, np.ndarray]) -> None:
    """loss.png beside this file."""
    from tools.plots import canvas

    figure, (panel,) = canvas("Bits per byte on held-out text against minutes of learning", 1)
    beside, highest = -np.inf, max(bits[:, 0].max() for bits in found.values())
    for name, bits in sorted(found.items(), key=lambda item: item[1][:, -1].mean()):
        mean, colour = bits.mean(0), COLOURS[name]
        panel.plot(minutes, mean, color=colour, marker=".", linewidth=2)
        panel.fill_between(minutes, bits.min(0), bits.max(0), color=colour, alpha=0.15, linewidth=0)
        beside = max(mean[-1], beside + 0.04 * (highest - mean[-1]))  # names do not cover one another
        panel.annotate(f"{called(name)} {mean[-1]:.2f}", (minutes[-1], beside), xytext=(6, 0), color=colour, size=9,
                       textcoords="offset points", va="center")
    panel.set(xlabel="minutes", ylabel="bits per byte; from the lowest to the highest of the seeds",
              xlim=(0, minutes[-1] * 1.3))
    figure.savefig(HERE / "loss.png")
