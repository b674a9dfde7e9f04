"""Where else do people look at a run?  TensorBoard and Weights & Biases, beside log.jsonl, which has everything.

    --log tensorboard    tensorboard --logdir runs                needs the package tensorboardX
    --log wandb          wandb sync runs/NAME/wandb/offline-*     needs the package wandb

Both get every number of a line of log.jsonl under its name, those of a level or a memory after a stroke:
loss, gradient_norm, fired/4, level_change/4, level_norm/4, memory_writes/k. CHOICE: wandb is offline, unless
WANDB_MODE says otherwise; nothing leaves the machine unasked.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.folder import write_text

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def package(name: str) -> Any:
    """The package that writes a log of this kind; ValueError if it is not installed."""
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError:
        raise ValueError(f"--log {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}") from None


def numbers(line: dict[str, Any], chunks: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Every number in a line of log.jsonl; of the levels that moved a 1 each, and a 0 of the others."""
    for name, value in line.items():
        if name == "fired":
            yield from ((f"fired/{chunk}", float(chunk in value)) for chunk in chunks)
        elif isinstance(value, dict):
            yield from ((f"{name}/{key}", float(one)) for key, one in value.items())
        elif name != "step":
            yield name, float(value)


class Loggers:
    """What is written beside log.jsonl, from a step on; `settings` are shown with it."""

    def __init__(self, names: Sequence[str], folder: Path, settings: dict[str, Any], step: int, chunks: Sequence[int]):
        self.chunks, self.board, self.run = chunks, None, None
        made = {name: package(name) for name in dict.fromkeys(names) if name in PACKAGES}
        if "tensorboard" in made:
            self.board = made["tensorboard"].SummaryWriter(  # a file of its own
                str(folder / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step}")
        if "wandb" in made:
            known = folder / "wandb" / "id"  # the same run again where it goes on
            if not known.exists():
                known.parent.mkdir(exist_ok=True)
                write_text(known, secrets.token_hex(4))
            wandb = made["wandb"]
            mode, project = (os.environ.get(f"WANDB_{name}", default)
                             for name, default in (("MODE", "offline"), ("PROJECT", "nested-learning")))
            self.run = wandb.init(
                mode=mode, project=project, name=folder.name,
                id=known.read_text("utf-8"), resume="allow", dir=str(folder), config=settings,
                settings=wandb.Settings(silent=True, console="off"))

    def write(self, line: dict[str, Any]) -> None:
        """Pass a line of log.jsonl on."""
        found = dict(numbers(line, self.chunks)) if self.board or self.run else {}
        if self.board:
            for name, value in found.items():
                self.board.add_scalar(name, value, line["step"])
            self.board.flush()
        if self.run:
            self.run.log(found | {"step": line["step"]})

    def close(self) -> None:
        if self.board:
            self.board.close()
        if self.run:
            self.run.finish()
        self.board = self.run = None


def expect(names: Sequence[str]) -> None:
    """ValueError if something is missing that these logs need."""
    for name in set(names) & set(PACKAGES):
        package(name)
