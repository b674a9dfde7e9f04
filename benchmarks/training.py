"""How fast does it train?  `transformer` and `hope`: the same model, weights and data, here and in PyTorch.

A step of training is zero_grad, loss, backward, clip, AdamW. Programs are compared in float64 and in float32:
the loss, the gradient of every weight, and the losses of the first three steps.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import ROOT, Job, agree, race, ratio, take_turns
from benchmarks.report import Result, Table, Target, cell
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from benchmarks.__main__ import Options
    from config import Config
    from hope import Hope

TOLERANCE = {"float64": 1e-6, "float32": 3e-3}  # AdamW's first steps make much of gradients that are nearly 0
CEILING = Job("benchmarks.ceiling:product", {"shape": "2048 × 2048 by 2048 × 2048"})

COMPILED = "PyTorch, compiled"
SMALL = {"width": 32, "layers": 2, "heads": 2, "segment": 150, "hidden": 64}

# Our side ---------------------------------------------------------------------------------------------------


def prepare(folder: str, config: Config, batch: int, batches: int = 8, seed: int = 0) -> None:
    """A folder with what both sides read: config.json, weights.npz, tokens.npy (batches, batch, T+1)."""
    from data import Corpus, Segments
    from hope import Hope

    model = Hope(config, np.random.default_rng(seed))
    (Path(folder) / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
    np.savez(Path(folder) / "weights.npz", **model.state_dict())
    source = Segments(Corpus.default().split("train"), batch, config.segment, seed=seed)
    np.save(Path(folder) / "tokens.npy", np.stack([next(source) for _ in range(batches)]).astype(np.int64))


def load(folder: str, dtype: str = "float32") -> Hope:
    """The model in such a folder."""
    from config import Config
    from hope import Hope

    config = Config.from_dict(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
    model = Hope(config, np.random.default_rng(0))
    with np.load(Path(folder) / "weights.npz") as file:
        model.load_state_dict({name: file[name] for name in file.files})
    return model.astype(dtype)


class Trainer:
    """Steps of training; the seconds that each of their parts has taken."""

    def __init__(self, model: Hope, lr: float, optimizer: str = "adamw", **options: Any):
        import optimizers

        self.model, self.clip, self.clock = model, optimizers.clip_grad_norm, 0
        self.optimizer = optimizers.build(optimizer, model.groups(), lr, **options)
        self.seconds: Counter[str] = Counter()

    def step(self, tokens: np.ndarray, scale: float = 1.0) -> float:
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss, _ = self.model.loss(tokens)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.clip(self.optimizer.params, 1.0)
        self.optimizer.lr_scale = scale
        self.optimizer.step()
        self.clock += 1
        self.seconds += {"forward": forward - started, "backward": backward - forward,
                         "clip and AdamW": time.perf_counter() - backward}
        return loss.item()


def ours(folder: str, dtype: str = "float32", lr: float = 1e-3, optimizer: str = "adamw", **options: Any) -> Contender:
    """Steps of training on the batches in a folder; the optimiser may have options."""
    batches = np.load(Path(folder) / "tokens.npy")
    trainer = Trainer(load(folder, dtype), lr, optimizer, **options)

    def step() -> float:
        return trainer.step(batches[trainer.clock % len(batches)])

    def answer() -> dict[str, np.ndarray]:
        """The loss and all gradients before the first step, and the losses of the first three steps."""
        model = load(folder, dtype)
        loss, _ = model.loss(batches[0])
        loss.backward()
        found = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
        fresh = Trainer(model, lr, optimizer, **options)
        losses = [fresh.step(batches[i % len(batches)]) for i in range(3)]
        return {"loss": np.array(loss.item()), **found, "losses of three steps": np.array(losses)}
    return Contender(step, answer)


def profiled(folder: str) -> Contender:
    """What three steps spend their time on: shares by part of the step, by room, and by function."""
    batches = np.load(Path(folder) / "tokens.npy")
    trainer = Trainer(load(folder), 1e-3)

    def step() -> dict[str, dict[str, float]]:
        trainer.step(batches[0])
        trainer.seconds.clear()
        for i in range(3):
            trainer.step(batches[i % len(batches)])
        seconds = trainer.seconds.total()
        parts = {name: part / seconds for name, part in trainer.seconds.items()}
        with cProfile.Profile() as profile:
            for i in range(3):
                trainer.step(batches[i % len(batches)])
        rooms, functions = by_room(pstats.Stats(profile).stats)  # type: ignore[attr-defined]
        return {"part of a step": parts, "room": rooms, "function": functions}
    return Contender(step)


def by_room(stats: dict[tuple[str, int, str], tuple]) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the time by file and by function of ours; what they spend in libraries counts as theirs."""
    def is_ours(function: tuple[str, int, str]) -> bool:
        return Path(function[0]).parent == ROOT

    owners: dict[Any, dict[Any, float]] = {}

    def owner(function: Any, seen: tuple = ()) -> dict[Any, float]:
        """Which functions of ours stand behind one, and for what share of its time."""
        if is_ours(function) or not stats[function][4] or function in seen:
            return {function: 1.0}
        if function not in owners:
            callers = stats[function][4]
            total, shares = sum(c[3] for c in callers.values()) or 1.0, Counter()
            for caller, times in callers.items():
                for name, share in owner(caller, (*seen, function)).items():
                    shares[name] += share * times[3] / total
            owners[function] = dict(shares)
        return owners[function]

    rooms, functions = Counter(), Counter()
    for function, (_, _, own, _, _) in stats.items():
        for behind, share in owner(function).items():
            name = Path(behind[0]).name if is_ours(behind) else "elsewhere"
            rooms[name] += own * share
            functions[f"{name}::{behind[2]}"] += own * share
    total = rooms.total()
    return ({name: s / total for name, s in rooms.most_common()},
            {name: s / total for name, s in functions.most_common(12)})


# The two benchmarks -----------------------------------------------------------------------------------------


def compare(options: Options, name: str, config: Config, batch: int
            ) -> tuple[Result, dict[tuple[str, int], dict[str, float]]]:
    """Train it here and in PyTorch, at every number of threads; the numbers of (program, threads)."""
    import hope

    tokens = batch * config.segment
    flops = 3 * hope.flops_per_token(config) * tokens
    table = Table(f"Training, {hope.count(config):,} parameters, {batch} × {config.segment} tokens a step",
                  ["program", "threads", "tokens/s", "quartiles", "time, ours = 1", "peak memory, MB",
                   "share of the ceiling"])
    found, notes, others = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, config, batch)
        jobs = {"ours": Job("benchmarks.training:ours", {"folder": folder}),
                "PyTorch": Job("benchmarks.torch_port:training", {"folder": folder}),
                COMPILED: Job("benchmarks.torch_port:training", {"folder": folder, "compiled": True})}
        for dtype, tolerance in TOLERANCE.items():
            checked = {n: replace(job, arguments=job.arguments | {"dtype": dtype}) for n, job in jobs.items()
                       if n != COMPILED or (dtype == "float32" and not options.eager)}
            with race(checked, max(options.threads), (COMPILED,)) as lanes:
                jobs = {n: job for n, job in jobs.items()
                        if n in lanes or (n == COMPILED and dtype == "float64")}
                if len(lanes) > 1:
                    notes.append(f"{dtype}, {', '.join(lanes)}: loss, all gradients and the losses of three "
                                 f"steps differ by at most {agree(lanes, tolerance):.1g} (relative norm).")
        for threads in options.threads:
            with race(jobs | {"ceiling": CEILING}, threads, (COMPILED,)) as lanes:
                others.append(take_turns(lanes, options.rounds, options.seconds))
                ceiling = lanes.pop("ceiling")
                rate = ceiling.process.about["flops"] / ceiling.median
                for program, lane in lanes.items():
                    low, high = lane.quartiles
                    at = {"rate": tokens / lane.median, "ratio": ratio(lane, lanes["ours"]),
                          "memory": lane.process.peak / 1e6, "share": flops / lane.median / rate}
                    found[program, threads] = at
                    table.rows.append([program, threads, at["rate"],
                                       f"{cell(tokens / high)} – {cell(tokens / low)}",
                                       at["ratio"], at["memory"], at["share"]])
    notes.append(f"Counted are {flops / tokens / 1e6:.1f} MFLOP per token, three times the model's own "
                 "matrix products of a forward pass; the ceiling is the rate of NumPy's large product.")
    return Result(name, [table], notes=notes, others=float(np.mean(others))), found


def transformer(options: Options) -> Result:
    """The one-level attention model against the same model in PyTorch."""
    from config import Config

    config = Config(mixer="attention", chunks=(1,), hidden=1024)
    result, found = compare(options, "transformer", replace(config, **SMALL) if options.small else config, 4)
    for threads in options.threads:
        mine, theirs = found["ours", threads], found.get(("PyTorch", threads), {})
        result.targets += [
            Target.least(f"tokens/s, PyTorch eager = 1, {threads} thread(s)", theirs.get("ratio"), 1.0),
            Target.most(f"peak memory, PyTorch eager = 1, {threads} thread(s)",
                        mine["memory"] / theirs["memory"] if theirs else None, 1.0)]
    return result


def hope(options: Options) -> Result:
    """The preset nano against a chunk-parallel port to PyTorch, and where its time goes."""
    from config import PRESETS

    config, training = PRESETS["nano"]
    config = replace(config, **SMALL) if options.small else config
    result, found = compare(options, "hope", config, training.batch)
    for threads in options.threads:
        mine, eager, compiled = (found.get((n, threads), {}) for n in ("ours", "PyTorch", COMPILED))
        at = f"{threads} thread(s)"
        result.targets += [
            Target.least(f"share of the ceiling, {at}", mine["share"], 0.7),
            Target.least(f"tokens/s, PyTorch compiled = 1, {at}", compiled.get("ratio"), 1.8),
            Target.least(f"tokens/s, PyTorch eager = 1, {at}", eager.get("ratio"), 4.0),
            Target.most(f"peak memory, PyTorch eager = 1, {at}",
                        mine["memory"] / eager["memory"] if eager else None, 1.0)]
    first, last = (found["ours", n]["rate"] for n in (min(options.threads), max(options.threads)))
    scaled = last / first if {1, 2} <= set(options.threads) else None
    result.targets.append(Target.least("tokens/s, two threads, one = 1", scaled, 1.8))
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, config, training.batch)
        profile = Job("benchmarks.training:profiled", {"folder": folder})
        with race({"profile": profile}, max(options.threads)) as lanes:
            lanes["profile"].step()
            for kind, shares in lanes["profile"].values[0].items():
                rows = [[f"`{name}`", f"{share:.1%}"] for name, share in shares.items() if share >= 0.005]
                title = f"Where the time goes, by {kind}, {max(options.threads)} thread(s)"
                result.tables.append(Table(title, [kind, "share"], rows))
    return result
