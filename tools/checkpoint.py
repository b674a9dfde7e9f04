"""What is in a checkpoint, and who can go on from it?  The last one of a run, those that are kept, and the best."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import cms
import hope
from config import Config
from hope import Hope, State
from tools.folder import name_again

LAST, BEST = "checkpoint.npz", "best.npz"


def write(folder: Path, model: Hope, state: State | None, optimizer: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write checkpoint.npz: weights, running state, what the optimiser remembers, and where the run stands."""
    kept = {f"optimizer.{name}": value for name, value in optimizer.items()}
    hope.save(folder / LAST, model, state, progress=np.array(json.dumps(progress)), **kept)


def read(folder: Path, config: Config) -> tuple[dict[str, np.ndarray], State | None, dict[str, Any], dict[str, Any]]:
    """What `write` wrote: weights, state, optimiser, progress; ValueError if it is missing, damaged or another's."""
    path = folder / LAST
    try:
        model, state, arrays = hope.load(path)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint in {folder}; start this run again") from None
    if others := different(model.config, config):
        raise ValueError(f"{path} and config.json are of two models: they differ in {', '.join(others)}")
    progress = json.loads(str(arrays.get("progress", "{}")))
    if not {"step", "data"} <= set(progress):
        raise ValueError(f"{path} holds a model, but no run to go on with")
    optimizer = {name.removeprefix("optimizer."): value
                 for name, value in arrays.items() if name.startswith("optimizer.")}
    return model.state_dict(), state, optimizer, progress


def inherited(origin: str, config: Config) -> tuple[dict[str, np.ndarray], int]:
    """The weights of a trained model for one of this configuration, and how far its levels' clocks have run.

    A model with one level becomes one with several [§7.3]. ValueError says why weights do not fit.
    """
    path = find(origin)
    old, _, arrays = hope.load(path)
    weights, shapes = old.state_dict(), {name: p.shape for name, p in Hope(config, None).named_parameters()}
    try:
        if weights.keys() != shapes.keys():
            weights = cms.stack_levels(weights, old.config, config)
        if wrong := [name for name in {**shapes, **weights}
                     if name not in weights or weights[name].shape != shapes.get(name)]:
            raise ValueError(f"{wrong[0]} has another shape, or none")
    except ValueError as error:
        others = ", ".join(different(old.config, config))
        raise ValueError(f"the weights of {path} do not fit a model with other {others}: {error}") from None
    return weights, next((int(value) for name, value in arrays.items() if name.endswith(".clock")), 0)


def different(one: Config, other: Config) -> list[str]:
    """The settings in which two models differ."""
    return [name for name, value in asdict(one).items() if value != getattr(other, name)]


def find(origin: str | Path) -> Path:
    """The checkpoint that is meant by a run's folder, or by a file; ValueError if there is none."""
    path = Path(origin)
    path = path / LAST if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; name a run's folder, or a checkpoint in it")
    return path


def keep(folder: Path, step: int, last: int, best: bool) -> None:
    """Give the newest checkpoint a name of its own, let go of all such but the last, and remember the best."""
    for name in [f"checkpoint-{step:06}.npz", *[BEST] * best]:
        name_again(folder / LAST, folder / name)
    numbers = {path: path.stem.partition("-")[2] for path in folder.glob("checkpoint-*.npz")}
    ours = [path for path, number in numbers.items() if number.isdecimal()]
    for old in sorted(ours, key=lambda path: int(numbers[path]))[:-last]:
        old.unlink()
