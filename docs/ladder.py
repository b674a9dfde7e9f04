"""Draw the ladder of optimisers: `python docs/ladder.py` (about ten minutes on two cores).

docs/optimizers.png           the path of every rung on three landscapes (`python optimizers.py --draw`)
docs/optimizers-training.png  training curves of a small Hope on real text, and their numbers in .json beside it

Every rung has the same steps, data and sweep. Its learning rate is chosen with seed 0, by the mean loss of the last
twenty steps; the seeds that are shown are others.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tqdm import tqdm  # noqa: E402

import optimizers  # noqa: E402
from config import Config  # noqa: E402
from data import Corpus, Segments, Text  # noqa: E402
from hope import Hope  # noqa: E402

RATES = [10 ** (k / 2) for k in range(-7, 2)]  # 3·10⁻⁴, 10⁻³ … 3
SMALL = Config(width=32, layers=1, heads=2, segment=64, hidden=64, chunks=(1, 4), memory_chunk=32, projection_chunk=32)
BATCH = 8


def training(name: str, lr: float, seed: int, steps: int, text: Text) -> tuple[np.ndarray, float]:
    """The loss of every step, in nats per byte (infinite once it has diverged), and the seconds per step."""
    model = Hope(SMALL, np.random.default_rng(seed))
    optimizer = optimizers.build(name, model.groups(weight_decay=0.0), lr)
    segments, losses, seconds = Segments(text, BATCH, SMALL.segment, seed=seed), np.full(steps, math.inf), []
    for step in range(steps):
        started = time.perf_counter()
        loss, _ = model.loss(next(segments))
        if not loss.item() < 20:
            break
        losses[step] = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizers.clip_grad_norm(optimizer.params, 1.0)
        optimizer.lr_scale = optimizers.schedule("cosine", step, steps, warmup=10, final=0.1)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return losses, float(np.median(seconds))


def compare(steps: int, seeds: int) -> dict[str, Any]:
    """Every rung at its best rate: its losses (seeds, steps), and a row of numbers."""
    text, rows = Corpus.default().split("train"), []
    bar = tqdm(total=len(optimizers.OPTIMIZERS) * (len(RATES) + seeds), unit="run")
    for name in optimizers.OPTIMIZERS:
        bar.set_postfix_str(name)
        sweep = []
        for rate in RATES:
            sweep.append(float(training(name, rate, 0, steps, text)[0][-20:].mean()))
            bar.update()
        lr, found = RATES[int(np.argmin(sweep))], []
        for seed in range(1, seeds + 1):
            found.append(training(name, lr, seed, steps, text))
            bar.update()
        last = [float(losses[-20:].mean()) for losses, _ in found]
        rows.append({"rung": name, "lr": lr, "loss": float(np.mean(last)), "lowest": min(last), "highest": max(last),
                     "ms_per_step": 1000 * float(np.median([s for _, s in found])), "sweep": sweep,
                     "losses": [np.round(losses, 4).tolist() for losses, _ in found]})
    bar.close()
    return {"steps": steps, "seeds": seeds, "rates": RATES, "batch": BATCH, "segment": SMALL.segment, "rows": rows}


def draw(found: dict[str, Any], file: Path) -> None:
    """The losses over the steps, smoothed over twenty: mean and range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes, kernel = figure.subplots(), np.ones(20) / 20
    steps = np.arange(20, found["steps"] + 1)
    for i, row in enumerate(sorted(found["rows"], key=lambda row: row["loss"])):
        smooth = np.array([np.convolve(losses, kernel, "valid") for losses in row["losses"]])
        axes.plot(steps, smooth.mean(0), color=f"C{i % 10}", linestyle="-" if i < 10 else "--",
                  label=f"{row['loss']:.2f}  {row['rung']}, η = {row['lr']:.1g}")
        axes.fill_between(steps, smooth.min(0), smooth.max(0), alpha=0.15, color=f"C{i % 10}")
    axes.set(xlabel="step", ylabel="nats per byte, mean of 20 steps",
             title=f"A small Hope on real text, every optimiser at its best rate: {found['seeds']} seeds")
    axes.legend(fontsize=8, title="last 20 steps")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the ladder of optimisers.")
    parser.add_argument("--steps", type=int, default=120, help="steps of every run [120]")
    parser.add_argument("--seeds", type=int, default=3, help="runs that are shown for every rung [3]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the pictures [docs]")
    args = parser.parse_args()
    if args.steps < 20 or args.seeds < 1:
        parser.error(f"--steps {args.steps} --seeds {args.seeds}: give at least 20 steps and one seed")
    with np.errstate(all="ignore"):  # the sweep includes learning rates that overflow
        optimizers.draw(str(args.out / "optimizers.png"))
        found = compare(args.steps, args.seeds)
    draw(found, args.out / "optimizers-training.png")
    (args.out / "optimizers-training.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
