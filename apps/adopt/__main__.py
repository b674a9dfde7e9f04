"""Adopt a Transformer that somebody else trained, and let it go on learning.

    python -m apps.adopt MODEL --out runs/NAME                       a folder with config.json, model.safetensors,
                                                                     tokenizer.json becomes a run
    python -m apps.adopt MODEL --out runs/NAME --chunks 1,4,16       its MLPs are placed in levels
    python -m apps.adopt --export runs/NAME --out FOLDER             a run becomes such a folder again
    python -m apps.adopt --export runs/NAME --out FOLDER --session S   … with what a session of apps.chat has learned
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hope
from apps.adopt import models, words
from apps.runs import Run
from apps.sessions import Session, file_of
from config import Config, Training
from tools import checkpoint, command, console, folder, stopping

PRESET = "adopted"
FINE_TUNING = Training(steps=200, lr=1e-4, weight_decay=0.0, sample_tokens=100)  # where --from begins
RANK = 16  # CHOICE: what a session learns takes a few hundredths of the model's own size; 0 for all of its weights
SETTINGS = ("chunks", "cms", "segment", "learn_rate", "level_rates", "drift_rank", "level_drift")


def parser() -> command.Parser:
    made = command.Parser(prog="python -m apps.adopt", description=__doc__, allow_abbrev=False,
                          formatter_class=command.Help)
    made.add_argument("model", nargs="?", metavar="MODEL", help="a folder of theirs")
    made.add_argument("--export", metavar="RUN", help="a run that began with an adopted model")
    made.add_argument("--session", default="", metavar="NAME", help="with --export: what was learned in it, too")
    made.add_argument("--out", required=True, metavar="FOLDER", help="where the run, or what is exported, goes")
    notes = {name: note for _, group in command.headings(Config) for name, note in group.items()}
    defaults: dict[str, Any] = {"chunks": (1,), "cms": "spread", "segment": 512, "drift_rank": RANK}
    for name in SETTINGS:
        made.add_argument(command.FLAGS[name], dest=name, default=argparse.SUPPRESS,
                          help=f"{notes[name]} [{command.typed(defaults.get(name, command.DEFAULTS[name]))}]",
                          **command.reading(name, command.DEFAULTS[name]))
    return made


def adopt(source: Path, out: Path, settings: dict[str, Any]) -> str:
    """Make a run of a folder of theirs; returns what it is, in a line."""
    found = models.settings_of(source)
    words.check(source, found)
    model = models.read(source, **{"drift_rank": RANK, **settings})
    with folder.made(out) as made:
        words.adopt(source, made, found)
        words.Words(made)  # complains, if at all, before anything is kept
        folder.describe(made, PRESET, model.config, FINE_TUNING, {"sha256": "", "bytes": 0, "documents": {}})
        hope.save(made / checkpoint.LAST, model)
    c = model.config
    levels = [level for block in model.blocks for level in block.cms.levels]
    learned = 4 * sum(len(w) * (level.rank or w.shape[1]) for level in levels for w in level.weights().values())
    return (f"{out}: {found['model_type']}, {hope.count(c):,} parameters, {console.amount(4 * hope.count(c))} in "
            f"float32; levels with chunk sizes {command.typed(c.chunks)}, {c.cms}; what a session learns takes "
            f"{console.amount(learned)}, twice that where levels wait for their clocks"
            f"{f' (rank {c.drift_rank})' if c.drift_rank else ''}")


def export(where: Path, out: Path, session: str) -> str:
    """Write the model of a run as theirs; returns what was written, in a line."""
    if not (where / words.ABOUT).exists():
        raise ValueError(f"there is no {words.ABOUT} in {where}: no run is there that began with an adopted model")
    run, about = Run.open(where), folder.read_json(where / words.ABOUT)["config"]
    path = file_of(run.folder / "sessions" / "chat", session)
    state = Session.load(path, run.fingerprint).place.state if session else None
    with folder.made(out) as made:
        models.write(made, run.model, about, state)
        words.give_back(where, made)
    return f"{out}: {about['model_type']}, {hope.count(run.model.config):,} parameters in float32" + (
        f", with what was learned in the session {session}" if session else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 2 for bad input, 130 when stopped."""
    kept = "nothing was written"
    console.ready()
    try:
        given = vars(parser().parse_args(arguments))
        model, run, session, out = (given.pop(name) for name in ("model", "export", "session", "out"))
        if bool(model) == bool(run):
            raise ValueError("name either a MODEL to adopt, or with --export a run")
        if run and given:
            raise ValueError(f"--{next(iter(given))} belongs to a MODEL to adopt, not to --export")
        if session and not run:
            raise ValueError("--session belongs to --export")
        with stopping.heeded(lambda: kept):
            print(export(Path(run), Path(out), session) if run else adopt(Path(model), Path(out), given))
        return 0
    except KeyboardInterrupt:
        print(f"apps.adopt: stopped; {kept}", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError) as error:
        print(f"apps.adopt: error: {console.reason(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
