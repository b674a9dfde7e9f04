"""What does a trained model say, before anybody has trained one?  The small run that ships with the project.

    python -m apps.demonstration             train it anew, and keep it in apps/demo/
    python -m apps.demonstration --run RUN   keep this run there instead

It keeps the weights in half precision, if their predictions stay what they were, and of the run's records what tells
about it: settings, the last lines of the log, the last sample.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import hope
import train
from apps.runs import DEMO
from autograd import no_grad
from data import BYTES, Corpus, Vocabulary, fixed
from hope import Hope
from tools import console
from tools.command import Help, Parser
from tools.folder import HANDED_DOWN, expect_writable, hand_down, log_lines, read_json, vocabulary, write_text

FLAGS = ("--preset nano --width 128 --layers 3 --heads 2 --hidden 128 --memory-hidden 16 --segment 256 --batch 8 "
         "--steps 800 --warmup 40 --checkpoint-every 200 --sample-every 0 --out").split()
LARGEST = 3_000_000  # bytes
APART = 0.002  # bits per byte that half precision may cost


def bits_per_byte(model: Hope, words: Vocabulary = BYTES) -> float:
    """Of text that Python brings along and the run has not seen."""
    text, nats, size = Corpus.default().split("validation").encoded(words), 0.0, 0
    with no_grad():
        for tokens in fixed(text, 4, model.config.segment, 16):
            nats += model.loss(tokens)[0].item() * tokens[:, 1:].size
            size += words.count(tokens[:, 1:])
    return nats / size / math.log(2)


def keep(run: Path, folder: Path) -> str:
    """Write a run's checkpoint in half precision and its records; ValueError if that would lose too much."""
    if folder.exists() and run.exists() and run.samefile(folder):
        raise ValueError(f"{run} is where it would be written; choose another --out")
    model, words = hope.load(run / "checkpoint.npz")[0], vocabulary(run)
    about, log = read_json(run / "config.json"), log_lines(run)[-2:]  # all that may fail before anything is replaced
    sample = run / "sample.txt"
    said = sample.read_text(encoding="utf-8").strip().split("\n\nstep ")[-1] if sample.exists() else ""
    about["data"] = {name: value for name, value in about["data"].items() if name != "documents"}
    about["training"] |= {"out": "", "origin": "", "minutes": 0.0}
    exact = bits_per_byte(model, words)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "beside.npz"
    try:
        hope.save(beside, model.astype(np.float16))
        half, size = bits_per_byte(hope.load(beside)[0], words), beside.stat().st_size
        if not (half - exact < APART and size <= LARGEST):
            raise ValueError(f"{run} cannot be shipped: {size:,} bytes of at most {LARGEST:,}, {half:.4f} bits per "
                             f"byte in half precision after {exact:.4f}")
        beside.replace(folder / "checkpoint.npz")
        for name in HANDED_DOWN:  # of the run that was here before
            (folder / name).unlink(missing_ok=True)
        hand_down(run, folder)
    finally:
        beside.unlink(missing_ok=True)
    write_text(folder / "config.json", json.dumps(about, indent=1))
    write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
    write_text(folder / "sample.txt", f"step {said.removeprefix('step ')}\n\n" if said else "")
    return f"{folder}: {size:,} bytes, {half:.4f} bits per byte in half precision, {exact:.4f} before"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 2 for bad input, or what the training returned if it did not end."""
    console.ready()
    made = Parser(prog="python -m apps.demonstration", description=__doc__, allow_abbrev=False,
                  formatter_class=Help)
    made.add_argument("--run", default="", help="keep this run instead of a new one")
    made.add_argument("--out", default=str(DEMO), help="where [apps/demo]")
    scratch, done = Path(tempfile.mkdtemp()), False
    run = scratch / "run"
    try:
        given = made.parse_args(arguments)
        expect_writable(Path(given.out))
        if not given.run and (code := train.main([*FLAGS, str(run)])):
            return code
        print(keep(Path(given.run or run), Path(given.out)))
        done = True
    except (ValueError, OSError) as error:
        print(f"apps.demonstration: error: {console.reason(error)}", file=sys.stderr)
        return 2
    finally:
        if (run / "checkpoint.npz").exists() and not done:
            print(f"and then: python -m apps.demonstration --run {run}")
        else:
            shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
