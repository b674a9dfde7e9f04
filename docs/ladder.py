"""Draw the ladder of optimisers: `python docs/ladder.py` (about ten minutes on two cores).

docs/optimizers.png           the path of every rung on four landscapes (`--paths`: only these, in seconds)
docs/optimizers-training.png  training curves of a small Hope on real text, and their numbers in .json beside it
docs/optimizers-rates.json    `python docs/ladder.py --rates muon adamw …`: losses of each at several learning rates, at
                              the width of the preset nano: where RATES in config.py are from

Every rung has the same steps, data and sweep. Its learning rate is chosen with seed 0, by the mean loss of the last
twenty steps; the seeds that are shown are others. `--rungs NAME …` trains these anew and keeps the others' numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tqdm import tqdm  # noqa: E402

import optimizers  # noqa: E402
from config import PRESETS, Config  # noqa: E402
from data import Corpus, Segments, Text  # noqa: E402
from hope import Hope  # noqa: E402

RATES = [10 ** (k / 2) for k in range(-7, 2)]  # 3·10⁻⁴, 10⁻³ … 3
SMALL = Config(width=32, layers=1, heads=2, segment=64, hidden=64, chunks=(1, 4), memory_chunk=32, projection_chunk=32)
BATCH = 8
NANO = replace(PRESETS["nano"][0], layers=2, segment=256)  # its width, in a quarter of the time


# The landscapes: the plane as the diagonal of a 2 × 2 matrix ----------------------------------------------------------


def quadratic(x, y):
    """Curvatures 1 and 40, axes turned by 30 degrees."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    u, v = c * x + s * y, c * y - s * x
    return (u**2 + 40 * v**2) / 2, c * u - 40 * s * v, s * u + 40 * c * v


def ravine(x, y):
    """Rosenbrock's, with 20 for 100; lowest at (1, 1)."""
    return (1 - x) ** 2 + 20 * (y - x**2) ** 2, 2 * (x - 1) - 80 * x * (y - x**2), 40 * (y - x**2)


def curved_valley(x, y):
    """The unit circle, falling gently towards (1, 0)."""
    r = x**2 + y**2 - 1
    return 4 * r**2 + ((x - 1) ** 2 + y**2) / 4, 16 * r * x + (x - 1) / 2, 16 * r * y + y / 2


def toy(r, theta, k=1.0, a=1.0, omega=2.0):
    """The paper's own example: r² + k (r − θ + a sin ωr)² [A 53]. CHOICE: k, a and ω, which it does not give."""
    away = r - theta + a * np.sin(omega * r)
    return r**2 + k * away**2, 2 * r + 2 * k * away * (1 + a * omega * np.cos(omega * r)), -2 * k * away


LANDSCAPES = (  # title, landscape, start, lowest point, (left, right, bottom, top)
    ("an ill-conditioned quadratic", quadratic, (-1.6, 0.2), (0, 0), (-2.0, 0.8, -1.4, 0.9)),
    ("a ravine", ravine, (-1.1, 1.4), (1, 1), (-1.6, 1.6, -0.6, 2.1)),
    ("a curved valley", curved_valley, (-0.9, 0.8), (1, 0), (-1.6, 1.6, -1.4, 1.4)),
    ("the paper's example", toy, (-3.5, 2.0), (0, 0), (-4.5, 2.5, -5.0, 3.0)))


def diagonal(f):
    """A landscape of the plane for a layer fed with unit vectors; its axes are singular directions of the weight."""

    def landscape(W):
        loss, dx, dy = f(W[0, 0], W[1, 1])
        return loss, np.diag([dx, dy]), np.eye(2)

    return landscape


def draw_paths(file: Path, steps: int = 60) -> None:
    """The path of every rung on every landscape at its best learning rate there."""
    from matplotlib.figure import Figure

    names = list(optimizers.OPTIMIZERS)
    figure = Figure(figsize=(2 * math.ceil(len(names) / 2), 4.5 * len(LANDSCAPES)), layout="constrained")
    for k, (title, f, start, lowest, (left, right, bottom, top)) in enumerate(LANDSCAPES):
        panel = figure.add_subfigure(figure.add_gridspec(len(LANDSCAPES), 1)[k])
        panel.suptitle(f"{title}: {steps} steps, light to dark, and the mean loss of the last ten", size=11)
        x, y = np.meshgrid(np.linspace(left, right, 160), np.linspace(bottom, top, 160))
        heights = f(x, y)[0]
        every = np.ravel(panel.subplots(2, math.ceil(len(names) / 2)))
        for axes in every[len(names):]:
            axes.axis("off")
        for name, axes in zip(names, every, strict=False):
            lr, points, losses = optimizers.best_walk(name, np.diag(start), diagonal(f), steps, 4)
            px, py = points[:, 0, 0], points[:, 1, 1]
            axes.contour(x, y, heights, np.geomspace(0.02, heights.max(), 9), colors="0.78", linewidths=0.7)
            axes.plot(px, py, color="tab:blue", linewidth=0.8)
            axes.scatter(px, py, s=7, c=np.arange(len(px)), cmap="viridis_r", zorder=2)
            axes.plot(*lowest, "*", color="tab:red", markersize=8, zorder=3)
            axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
            axes.set_title(f"{name}\nη = {lr:.2g}, loss {losses[-10:].mean():.1g}", size=8)
    figure.savefig(file, dpi=110)


# Training -------------------------------------------------------------------------------------------------------------


def training(name: str, lr: float, seed: int, steps: int, text: Text, config: Config = SMALL, batch: int = BATCH,
             weight_decay: float = 0.0, **options: Any) -> tuple[np.ndarray, float]:
    """The loss of every step, in nats per byte (infinite once it has diverged), and the seconds per step."""
    model = Hope(config, np.random.default_rng(seed))
    optimizer = optimizers.build(name, model.groups(weight_decay), lr, **options)
    segments, losses, seconds = Segments(text, batch, config.segment, seed=seed), np.full(steps, math.inf), []
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


def compare(names: Sequence[str], steps: int, seeds: int) -> dict[str, Any]:
    """Every rung at its best rate: its losses (seeds, steps), and a row of numbers."""
    text, rows = Corpus.default().split("train"), []
    bar = tqdm(total=len(names) * (len(RATES) + seeds), unit="run")
    for name in names:
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


def suit(names: list[str], file: Path, steps: int = 80) -> None:
    """Try learning rates around an optimiser's best one of `compare`, at nano's width and with its options."""
    text, best = Corpus.default().split("train"), json.loads((HERE / "optimizers-training.json").read_text("utf-8"))
    for name in names:
        tried: dict[float, float] = {}
        ends = [next(row["lr"] for row in best["rows"] if row["rung"] == name)]
        while ends:
            for rate in ends:
                losses, _ = training(name, rate, 0, steps, text, NANO, 2, 0.1, accumulate="gradients")
                tried[rate] = float(losses[-20:].mean())
            lowest = min(tried, key=lambda rate: tried[rate])  # until it lies within
            ends = ([min(tried) / math.sqrt(10)] * (lowest == min(tried)) + [max(tried) * math.sqrt(10)] * (
                lowest == max(tried)))
        print(name, *(f"{rate:.2g}: {loss:.3f}" for rate, loss in sorted(tried.items())), sep="   ")
        kept = json.loads(file.read_text("utf-8")) if file.exists() else {}
        kept[name] = {f"{rate:.3g}": round(loss, 4) for rate, loss in sorted(tried.items())}
        file.write_text(json.dumps(kept, indent=1), encoding="utf-8")


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
    parser.add_argument("--paths", action="store_true", help="draw only the paths on the landscapes")
    parser.add_argument("--rungs", nargs="+", metavar="NAME", choices=optimizers.OPTIMIZERS,
                        help="train only these, with the steps and seeds of the others, whose numbers stay")
    parser.add_argument("--steps", type=int, default=120, help="steps of every run [120]")
    parser.add_argument("--seeds", type=int, default=3, help="runs that are shown for every rung [3]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the pictures [docs]")
    parser.add_argument("--rates", nargs="+", metavar="NAME", default=[], choices=list(optimizers.OPTIMIZERS),
                        help="only try learning rates of these at the width of the preset nano")
    args = parser.parse_args()
    if args.steps < 20 or args.seeds < 1:
        parser.error(f"--steps {args.steps} --seeds {args.seeds}: give at least 20 steps and one seed")
    kept = args.out / "optimizers-training.json"
    with np.errstate(all="ignore"):  # the sweeps include learning rates that overflow
        if args.rates:
            suit(args.rates, args.out / "optimizers-rates.json")
            return
        if not args.rungs:
            draw_paths(args.out / "optimizers.png")
        if args.paths:
            return
        if args.rungs:
            found = json.loads(kept.read_text(encoding="utf-8"))
            anew = compare(args.rungs, found["steps"], found["seeds"])["rows"]
            found["rows"] = [row for row in found["rows"] if row["rung"] not in args.rungs] + anew
        else:
            found = compare(list(optimizers.OPTIMIZERS), args.steps, args.seeds)
    draw(found, args.out / "optimizers-training.png")
    kept.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
