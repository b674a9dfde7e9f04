"""How far does it scale?  What this fabric does, a model of it, and what that says of many ranks.

    mpirun -n 4 python -m cluster.scale                   measures here, and writes cluster/scale.json and scale.png
    python -m cluster.scale --preset paper-760m           the curve of another preset, from what was measured

Each rank sends every other its part, one after another, and c cores that N ranks share take turns: n bytes take

    T(N, n) = (N − 1) ⌈N/c⌉ t(n/N)
    t(m) = α₁ + m/β₁  if m < M,  else α₂ + m/β₂        α latency of a message, β bytes a second

t is one for the exchange and one for the spread, and another where cores are shared, which takes turns of the system's:
MPI sends small messages by another way than large ones, and what fits into a cache is sooner there. All α, β and M are
fitted to what 2, 3 and 4 ranks take. A step of K batches on N ranks has ⌈K/N⌉ rounds, each of which exchanges the
gradients, bucket by bucket; after the last, sums are spread. Of the exchange, what the way back (two thirds of a round)
is long enough to hide costs nothing; the curve is drawn with this overlap, and without any, for ranks that have a core
or a card each.

Legend: N ranks, n bytes that all ranks have together, m = n/N bytes of a message.
"""

from __future__ import annotations

from cluster import early

if __name__ == "__main__":
    early.threads()

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import hope
from config import PRESETS
from kernels import ahead
from tools import machine
from tools.console import report
from tools.folder import write_text
from tools.plots import COLOURS, canvas

HERE = Path(__file__).resolve().parent
SIZES = [1 << power for power in range(14, 25)]  # bytes
PASSES = 4  # over all sizes: something else may have had the machine in one
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
Lines = Sequence[tuple[float, float, float]]  # t(m): each with the m from which on it holds, α and β
Fabric = dict[str, Sequence[Lines]]  # exchange and spread: t(m) where each rank has a core, and where some share one


def ranks_started() -> int:
    """How many ranks there are; 1 where nobody has started several."""
    if not any(name in os.environ for name in early.LOCAL):  # MPI itself is asked only where it may be
        return 1
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size()


def measure(seconds: float = 0.3) -> list[dict[str, Any]]:
    """What exchange and spread take at least, for 2 ranks up to as many as there are; on rank 0, else nothing."""
    from mpi4py import MPI

    from cluster.fabric import Mpi

    world, found = MPI.COMM_WORLD, list[dict[str, Any]]()
    for ranks in range(2, world.Get_size() + 1):
        part = world.Split(world.Get_rank() < ranks)
        if world.Get_rank() < ranks:
            fabric, least = Mpi(part), dict[tuple[str, int], float]()
            for what, size in [(what, size) for what in ("exchange", "spread") for size in SIZES] * PASSES:
                counts = [size // 4 * (r + 1) // ranks - size // 4 * r // ranks for r in range(ranks)]
                sent = np.ones(size // 4 if what == "exchange" else counts[fabric.rank], np.float32)
                times: list[float] = []
                while fabric.first(len(times) < 9 or sum(times) < seconds / PASSES):
                    part.Barrier()
                    started = time.perf_counter()
                    getattr(fabric, what)(sent, counts).wait()
                    times.append(max(fabric.all(time.perf_counter() - started)))
                least[what, size] = min(least.get((what, size), math.inf), *times)
            found += [{"what": what, "ranks": ranks, "bytes": size, "seconds": took} for (what, size), took in
                      least.items()]
        part.Free()
        others = world.Ibarrier()
        while not others.Test():  # MPI's own wait would take turns with those that are measured
            time.sleep(0.01)
    return found if world.Get_rank() == 0 else []


def fit(found: Sequence[dict[str, Any]], cores: int) -> Fabric:
    """t(m) of exchange and spread, with cores of their own and shared, as far as that was measured."""
    def lines(what: str, shared: bool) -> Lines:
        its = [x for x in found if x["what"] == what and (x["ranks"] > cores) == shared]
        return fit_lines([x["bytes"] / x["ranks"] for x in its],
                         [x["seconds"] / (x["ranks"] - 1) / math.ceil(x["ranks"] / cores) for x in its])
    kinds = sorted({x["ranks"] > cores for x in found})
    return {what: [lines(what, shared) for shared in kinds] for what in ("exchange", "spread")}


def fit_lines(messages: Sequence[float], seconds: Sequence[float]) -> Lines:
    """t(m) by least squares of relative errors: two lines, each for messages up to 8 times as long or more; or one."""
    order = np.argsort(messages)
    m, t = np.array(messages)[order], np.array(seconds)[order]

    def cut(*at: int) -> tuple[float, Lines]:
        found = [(float(m[i]) if i else 0.0, *line(m[i:j], t[i:j])) for i, j in itertools.pairwise((0, *at, len(m)))]
        return float(np.sum((np.array([message(x, found) for x in m]) / t - 1) ** 2)), found
    between = [i for i in range(1, len(m)) if m[i - 1] < m[i] and m[i - 1] >= 8 * m[0] and m[-1] >= 8 * m[i]]
    return min([cut(), *map(cut, between)], key=lambda one: one[0])[1]


def line(m: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """α ≥ 0 and β of t = α + m/β."""
    rows = np.stack([np.ones_like(m), m], 1) / t[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(rows, np.ones(len(m)), rcond=None)
    if latency < 0:
        latency, per_byte = 0.0, np.sum(m / t) / np.sum((m / t) ** 2)
    return float(latency), 1 / float(per_byte)


def message(size: float, lines: Lines) -> float:
    """t(m) in seconds."""
    _, latency, bandwidth = max(one for one in lines if one[0] <= size)
    return latency + size / bandwidth


def transfer(ranks: int, size: float, lines: Sequence[Lines], cores: float = math.inf) -> float:
    """T(N, n) in seconds."""
    return (ranks - 1) * max(1, math.ceil(ranks / cores)) * message(size / ranks, lines[-1 if ranks > cores else 0])


def efficiency(ranks: int, batches: int, seconds: float, size: float, fabric: Fabric, overlap: bool = True,
               buckets: int = 1) -> float:
    """The share of its time in which a rank computes: `seconds` for a batch, gradients of `size` bytes."""
    rounds = math.ceil(batches / ranks)
    exchange, spread = (buckets * transfer(ranks, size / buckets, fabric[what]) for what in ("exchange", "spread"))
    hidden = min(exchange, 2 / 3 * seconds) if overlap else 0.0
    return batches / ranks * seconds / (rounds * (seconds + exchange - hidden) + spread)


def curve(preset: str, kept: dict[str, Any], fabric: Fabric, bandwidth: float, latency: float, speed: float,
          bucket: float) -> dict[str, Any]:
    """Efficiency of a preset on 1 to 1,024 ranks, one batch or more for each in a step."""
    config, training = PRESETS[preset]
    size = 4.0 * hope.count(config)
    here = kept["seconds per token"][preset] * config.segment * training.batch
    flops = 3 * hope.flops_per_token(config) * config.segment * training.batch
    fabrics: dict[str, tuple[float, Fabric]] = {
        f"this machine's fabric and processor (as measured, {here:.3g} s a batch)": (here, fabric),
        f"a GPU of {speed / 1e12:.3g} TFLOP/s on a network of {bandwidth / 1e9:.3g} GB/s, {1e6 * latency:g} µs "
        f"(assumed; {flops / speed:.3g} s a batch)":
            (flops / speed, {what: [[(0.0, latency, bandwidth)]] for what in fabric})}
    buckets, found = math.ceil(size / bucket), {}
    for name, (seconds, its) in fabrics.items():
        for label, overlap in (("", True), (", nothing overlapped", False)):
            found[name + label] = [efficiency(n, max(n, training.accumulate), seconds, size, its, overlap, buckets)
                                   for n in RANKS]
    return {"bytes": size, "batches": training.accumulate, "curves": found}


def draw(preset: str, found: dict[str, Any], path: Path) -> None:
    figure, (panel,) = canvas(f"{preset} on many ranks: the share of its time in which a rank computes", 1)
    for i, (name, values) in enumerate(found["curves"].items()):
        panel.plot(RANKS, values, "o-" if i % 2 == 0 else "o--", markersize=3, color=COLOURS[i // 2], label=name)
    panel.axvline(found["batches"], color="grey", linewidth=0.8)
    panel.annotate(f" {found['batches']} batches a step;\n to its right one each", (found["batches"], 0.02), size=7)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="ranks", ylabel="efficiency", ylim=(0, 1.05))
    panel.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", choices=PRESETS, default="paper-1.3b")
    made.add_argument("--bandwidth", type=float, default=12.5, help="of a network, GB/s and rank [12.5]")
    made.add_argument("--latency", type=float, default=5.0, help="of a network, µs [5]")
    made.add_argument("--speed", type=float, default=50.0, help="of a GPU in training, TFLOP/s [50]")
    made.add_argument("--bucket", type=float, default=64.0, help="MB of gradients that travel together [64]")
    made.add_argument("--out", type=Path, default=HERE, help="folder of scale.json and scale.png [cluster/]")
    made.add_argument("--seconds", type=float, default=0.3, help="spent on each size [0.3]")
    given = made.parse_args()
    kept_at = given.out / "scale.json"
    if ranks_started() > 1:
        alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1"
        cores = ahead.cores() if alone else os.cpu_count() or 1  # Open MPI gives each rank a few of them
        found = measure(given.seconds)
        if not found:
            return
        kept: dict[str, Any] = {"machine": machine.machine(), "cores": cores, "measured": found,
                                "seconds per token": {}}
    else:
        if not kept_at.exists():
            raise SystemExit(f"there is no {kept_at}: mpirun -n 4 python -m cluster.scale measures")
        kept = json.loads(kept_at.read_text(encoding="utf-8"))
    config, training = PRESETS[given.preset]
    if given.preset not in kept["seconds per token"]:
        kept["seconds per token"][given.preset] = machine.one_layer(config, training.batch)[1] * config.layers
        write_text(kept_at, json.dumps(kept, indent=1))
    errors, fabric = [], fit(kept["measured"], kept["cores"])
    print(f"{'ranks':>6}{'bytes':>12}{'what':>10}{'measured':>12}{'model':>12}")
    for x in kept["measured"]:
        model = transfer(x["ranks"], x["bytes"], fabric[x["what"]], kept["cores"])
        errors.append(abs(math.log(model / x["seconds"])))
        print(f"{x['ranks']:>6}{x['bytes']:>12,}{x['what']:>10}{1e3 * x['seconds']:>9.3f} ms{1e3 * model:>9.3f} ms")
    shown = curve(given.preset, kept, fabric, given.bandwidth * 1e9, given.latency * 1e-6, given.speed * 1e12,
                  given.bucket * 2**20)
    report({f"{what}{', cores shared' * (i > 0)}": "; ".join(
                f"from {start / 1e3:,.0f} kB " * (start > 0) + f"{1e6 * latency:.1f} µs, {bandwidth / 1e9:.2f} GB/s"
                for start, latency, bandwidth in lines)
            for what, both in fabric.items() for i, lines in enumerate(both)} | {
            "the model is off by": f"a factor of {math.exp(float(np.median(errors))):.2f} (median), "
                                   f"{math.exp(max(errors)):.2f} (most)",
            f"{given.preset}, gradients": f"{shown['bytes']:,.0f} bytes, sent and received once a round and, summed, "
                                          "once a step, but for a rank's own part of 1/N"})
    for name, values in shown["curves"].items():
        print(f"\n{name}:\n  " + "  ".join(f"{n}: {value:.0%}" for n, value in zip(RANKS, values, strict=True)))
    draw(given.preset, shown, given.out / "scale.png")


if __name__ == "__main__":
    main()
