"""Does what the paper claims hold at a size that two cores train in minutes?

    python -m apps.evaluate claims --list          which there are, and how many minutes each took
    python -m apps.evaluate claims recall intents  these; --quick only shows that they run
    python -m apps.evaluate claims                 all that take at most ten minutes of a core; --long: the others, too

The same rules for every claim, unless it says otherwise: all models compared have the same number of parameters (to a
percent) and read the same tokens; the learning rate of each is the best of the same sweep, on another seed. Then
every model is trained on every seed; what is shown is the mean and its 95% interval (Student's t). What is
claimed is judged on the difference within a seed: "yes" if its interval lies on the paper's side of zero,
"no" if on the other, "not shown" if it holds zero; where the paper says or compares nothing of the kind, the side
is ours. Numbers, sweep and picture go to docs/claims/, with the table of all claims.

Legend: B batch, T time; (seeds,points) what a model scored.
"""

from __future__ import annotations

import json
import os
import platform
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from apps.claims import (
    ablation,
    clock,
    context,
    intents,
    languages,
    mad,
    modelling,
    needles,
    optimisers,
    periods,
    reading,
    recall,
    steps,
    two_languages,
    variants,
    writes,
)
from apps.claims.study import Study, interval, said
from config import nearest
from tools.folder import expect_writable, write_text
from tools.plots import COLOURS, canvas, tried

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs" / "claims"
CLAIMS: dict[str, ModuleType] = {
    "modelling": modelling, "clock": clock, "steps": steps, "recall": recall, "mad": mad, "languages": languages,
    "ablation": ablation, "two-languages": two_languages, "intents": intents, "periods": periods, "needles": needles,
    "reading": reading, "writes": writes, "optimisers": optimisers, "context": context, "variants": variants}


def long(name: str) -> bool:
    """Whether a claim takes more than ten minutes of a core."""
    return getattr(CLAIMS[name], "LONG", False)


def run(names: Sequence[str], out: Path | None, quick: bool, quiet: bool, pool: Any = None, long_too: bool = False
        ) -> None:
    """Measure claims (if none is named, all but the long ones); ValueError for a name that is none.

    A pool of workers (cluster/pool.py) shares the claims, or the sweeps of a single one.
    """
    if wrong := [name for name in names if name not in CLAIMS]:
        raise ValueError(f"there is no claim {wrong[0]!r}{nearest(wrong[0], list(CLAIMS))}; "
                         f"choose from {', '.join(CLAIMS)}")
    if quick and out is None:
        raise ValueError("--quick measures nothing worth keeping; give a folder for it: --out FOLDER")
    folder = out or FOLDER
    expect_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = list(names or (name for name in CLAIMS if quick or long_too or not long(name)))

    def measure(name: str) -> str:
        claim = CLAIMS[name]
        started, worked = time.perf_counter(), time.process_time()
        with tqdm(desc=name, unit="step", disable=quiet) as bar:
            study = Study(2, 0.01, bar) if quick else Study(bar=bar)
            study.each = pool.map if pool else study.each
            try:
                found = claim.measure(study)
            except ImportError as e:  # of a package that this claim alone needs
                if name in names:
                    raise ValueError(str(e)) from e
                return f"{name} is left out: {e}"
        if len(chosen) == 1 and pool and pool.rank:  # all ranks have measured it together
            return ""
        kept = {"claim": name, "paper": claim.PAPER, "here": found["here"], "holds": found["holds"],
                "command": f"python -m apps.evaluate claims {name}", "machine": machine(),
                "date": time.strftime("%Y-%m-%d"),
                "seconds": round(time.perf_counter() - started),
                "processor seconds": round(time.process_time() - worked),
                "seeds": study.seeds, "parameters": study.parameters, "sweep": study.sweeps,
                **{k: v for k, v in found.items() if k not in ("here", "holds", "lines")},
                "scores": {k: np.round(v, 5).tolist() for k, v in found["lines"].items()}}
        write_text(folder / f"{name}.json", json.dumps(kept, indent=1))
        tried(lambda: draw(name, claim.PAPER, found, folder / f"{name}.png"))
        return f"{name}: {kept['here']}\n  holds? {kept['holds']}   ({kept['seconds']} s)"
    for said_of_one in (pool.map if pool and len(chosen) > 1 else map)(measure, chosen):
        print(said_of_one)
    if not pool or pool.rank == 0:
        write_text(folder / "README.md", overview(folder))


def listed(folder: Path = FOLDER) -> str:
    """One line for each claim: its name, the minutes of one core that it took, and what the paper says."""
    found = measured(folder)
    minutes = {name: f"{found[name]['processor seconds'] / 60:5.1f} min" if name in found else "        ?"
               for name in CLAIMS}
    return "\n".join(f"{name:18}{minutes[name]}  {'--long' if long(name) else '':6}  {claim.PAPER}"
                     for name, claim in CLAIMS.items())


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {os.environ.get('NUMBA_NUM_THREADS', 'all')} of them used"


def draw(name: str, paper: str, found: dict[str, Any], path: Path) -> None:
    """Means with their 95% intervals: lines over sizes, bars where there is only one."""
    figure, (panel,) = canvas(textwrap.fill(f"{name}. The paper: {paper}", 90), 1)
    label, xs = found["x"]
    for i, (series, scores) in enumerate(found["lines"].items()):
        mean, half = np.array([interval(column) for column in scores.T]).T
        colour, (marker, line) = COLOURS[i % len(COLOURS)], (("o", "-"), ("s", "--"))[i // len(COLOURS)]
        if len(xs) == 1:
            panel.errorbar([i], mean, half, fmt="o", capsize=4, color=colour)
        else:
            shift = (i - len(found["lines"]) / 2) * 0.02 * (xs[-1] - xs[0]) / len(xs)
            panel.errorbar(np.array(xs) + shift, mean, half, fmt=marker if "ticks" in found else marker + line,
                           capsize=3, markersize=4, color=colour, label=series)
    if len(xs) == 1:
        names = [series.replace(" ", "\n", 1) for series in found["lines"]]
        panel.set_xticks(range(len(names)), names, size=8)
    else:
        panel.legend(frameon=False, fontsize=8)
        panel.set_xticks(xs, found.get("ticks", xs), size=8 if "ticks" not in found else 6 if len(xs) < 12 else 5)
    panel.set(xlabel=label, ylabel=found["y"])
    if found["y"].startswith(("share", "accuracy")):  # an interval may reach beyond what a share can be
        panel.set_ylim(-0.03, 1.03)
    figure.savefig(path)


def edges(sweep: dict[str, dict[str, float]]) -> list[str]:
    """The sweeps in which only the smallest or the largest rate tried is the best: a better one may lie beyond."""
    return [name for name, scores in sweep.items()
            if max(scores.values()) not in [scores[rate] for rate in sorted(scores, key=float)[1:-1]]]


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """What was found for every claim that has been measured there, by name."""
    paths = {name: folder / f"{name}.json" for name in CLAIMS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def overview(folder: Path) -> str:
    """The table of all claims measured so far, from their files; it names what has not been measured."""
    lines = ["# The claims", "",
             "Each claim is one command, `python -m apps.evaluate claims NAME`: five seeds, or three where it says so,",
             "and, unless it says otherwise, as many parameters and bytes for every model compared, and the same sweep",
             "of learning rates; where the best rate is at its edge it goes on. A rate is chosen with another seed;",
             "where the text or the task is fixed, on the same held-out part that is then reported. Numbers are means",
             "± half of the 95% interval; all of them, and the sweep, are in the file beside the picture.",
             "*Paper* is what its text says; the front page has one perplexity (Tables 2, 6), SWDE (Table 3), the mean",
             "over tasks (Table 4), that over the languages asked, of longer words (Table 5), and a single needle at",
             "16K (Table 1). *Holds?* judges what is asked here, by the differences within a seed; that is not always",
             "the same question. No verdict is corrected for how many there are: where nothing holds, one of forty",
             "says *yes* by chance, and one *no*.", "",
             "| claim | paper | here | holds? |", "|---|---|---|---|"]
    notes, asked, found = [], [], measured(folder)
    for name, claim in CLAIMS.items():
        asked.append(f"- *{name}*: {' '.join((claim.__doc__ or '').split())}")
        if not (kept := found.get(name)):
            lines.append(f"| {name} | {claim.PAPER} | | not measured |")
            continue
        lines.append(f"| [{name}]({name}.png) | {claim.PAPER} | {kept['here']} | {kept['holds']} |")
        for once, changed in kept.get("cause", {}).items():
            parts = [", ".join(f"{which} {said(tuple(k))}" for which, k in changed["kept"].items())
                     ] if "kept" in changed else []
            parts += [f"{what}: {it}" for what, it in changed.items() if what != "kept"]
            notes.append(f"- {name}, if {once}: {'; '.join(parts)}.")
        if hasattr(claim, "beside"):  # what its verdict leaves out, from the scores that were kept
            notes.append(f"- {name}: {claim.beside(kept['scores'])}")
        notes.append(f"- {name}: measured on {kept['date']}." if "date" in kept else
                     f"- {name}: measured before the initial states and rates of memories became what they are now.")
        if at := edges(kept["sweep"]):
            notes.append(f"- {name}: the best rate is at the edge of the sweep for {', '.join(at)}.")
    return "\n".join([*lines, "", "## What is asked", "", *asked, "", "## Beside the numbers", "", *notes]) + "\n"
