"""What of README.md and the pages in docs/ does code know better?  This writes those parts, each between its markers.

    python docs/readme.py             formulas, files and their lengths, settings, optimisers, claims, clocks
    python docs/readme.py runs/NAME   and what a finished run of `tiny` or `nano` took and reached, with its pictures,
                                      and how it read on, if apps.evaluate wrote that to a folder in it (--out)

What runs took and reached is kept in docs/runs.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import block  # noqa: E402
import index  # noqa: E402

import hope  # noqa: E402
from apps.claims import measured  # noqa: E402
from apps.claims.study import interval, verdict  # noqa: E402
from config import PRESETS, Config  # noqa: E402
from optimizers import OPTIMIZERS  # noqa: E402
from tools.command import typed  # noqa: E402
from tools.console import reason  # noqa: E402
from tools.folder import read_json, write_text  # noqa: E402
from tools.timetable import timetable  # noqa: E402

ORDER = ("config", "autograd", "functions", "kernels", "layers", "optimizers", "memory", "titans", "mixers", "cms",
         "state", "decode", "hope", "data", "shards", "train")
PICTURES = ("loss.png", "levels.png")  # of nano
LIMIT = 65536  # bytes that it reads on for docs/nano.md
FORMULAS: dict[str, dict[str, tuple[str, ...]]] = {  # what the block does: equations, and where each is computed
    "the memories are read": {"A 83": ("titans.py::SelfModifyingTitans.chunk",)},
    "and written at every token, each with a target of its own": {
        "A 88": ("titans.py::SelfModifyingTitans.write",), "A 84": ("titans.py::SelfModifyingTitans.target",)},
    "the levels are a chain": {"A 70": ("cms.py::CMS",)},
    "each on its own clock": {"A 71": ("optimizers.py::gather", "cms.py::move")},
}
LINES: dict[str, tuple[str, tuple[str, str], tuple[int, ...], int]] = {  # of a claim: the paper's numbers; what stands
    # beside what, at which points (none: what is kept is judged in words); −1 where less is better
    "modelling": ("14.4, 17.9", ("Hope", "Transformer"), (0,), -1),
    "clock": ("", ("Hope", "plain Titans"), (-1,), -1),
    "steps": ("", ("Hope", "gated delta"), (1,), -1),
    "recall": ("65.9, 60.8", ("Hope", "plain Titans"), (3,), 1),
    "mad": ("77.6, 76.5", ("Hope", "plain Titans"), (0, 1, 2, 3, 4), 1),
    "languages": ("100, 25", ("Hope", "attention"), (1, 3, 5, 7), 1),
    "ablation": ("12.2, 13.0", ("Hope", "without CMS"), (0,), -1),
    "two-languages": ("", ("3 additional levels", "ICL"), (), 1),
    "intents": ("", ("3 additional levels", "ICL"), (), 1),
    "periods": ("", ("1, 2, 4", "ICL"), (), 1),
    "needles": ("100, 79.8", ("Hope", "attention"), (2,), 1),
    "reading": ("", ("all levels", "off"), (0,), -1),
    "writes": ("", ("through writes", "stopped"), (0,), -1),
    "optimisers": ("", ("M3, f = 8", "Muon"), (0,), -1),
    "context": ("", ("Hope", "plain Titans"), (5,), 1),
    "variants": ("", ("sequential", "one level"), (0,), -1),
}


def table(head: str, rows: list[tuple[Any, ...]]) -> str:
    """A table in Markdown; a bar inside a cell is escaped."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    names = head.split(" · ")
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *cells])


def formulas() -> str:
    """The block in a few formulas of the paper, linked to the lines that compute them, as in PAPER.md."""
    code, rows = index.sources(), []
    by_number = {row.numbers.split(",")[0]: row for row in index.ROWS}
    for what, computed in FORMULAS.items():
        for number, places in computed.items():
            for place in set(places) - set(index.places(by_number[number], code)):
                raise SystemExit(f"{place} does not cite [{number}]; correct FORMULAS in {__file__}")
        formula = ";  ".join(re.sub(r", finding \d+", "", by_number[number].formula) for number in computed)
        links = "<br>".join(index.link(place, code) for places in computed.values() for place in places)
        numbers = ", ".join(f"[{number}](PAPER.md#{index.anchor(by_number[number])})" for number in computed)
        rows.append((what, formula, links, numbers))
    return table("what · formula · computed in · paper", rows)


def files() -> str:
    """The reading order: what each file asks, in the first sentence of its docstring; its length."""
    rows = []
    for name in ORDER:
        package = sorted((ROOT / name).rglob("*.py"))
        first = ROOT / name / "__init__.py" if package else ROOT / f"{name}.py"
        asked = first.read_text(encoding="utf-8").splitlines()[0].strip('"').split("  ")[0]
        length = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in package or [first])
        shown = f"{name}/" if package else f"{name}.py"
        rows.append((f"[{shown}]({shown})", asked, length))
    return table("file · what it asks · lines", rows)


def presets() -> str:
    """The size of every preset, counted without building it; those that only show that all works are left out."""
    rows = []
    for name, (config, training) in PRESETS.items():
        if name.endswith("-smoke"):
            continue
        tokens = training.steps * training.batch * training.accumulate * config.segment
        rows.append((f"`{name}`", config.width, config.layers, config.segment,
                     f"{hope.count(config):,}", f"{training.steps:,}", f"{tokens:,}"))
    return table("preset · width · layers · segment · parameters · steps · tokens", rows)


def ladder() -> str:
    """Every optimiser as its docstring has it: what changes, and the first update W ← … that it gives."""
    rows = []
    for name, rung in OPTIMIZERS.items():
        doc = " ".join(inspect.cleandoc(str(rung.__doc__)).split())
        first, source = re.match(r"(.+?)(?: \[([^\]]+)\])?[.](?: |$)", doc).groups()  # type: ignore[union-attr]
        changes, _, rule = first.partition(": ")
        if not rule:  # the docstring comes to it later
            rule = re.search(r"W ← .+?(?=,| over )", doc)[0]  # type: ignore[index]
        rows.append((f"`{name}`", changes, rule, source or ""))
    return table("`--optimizer` · what changes from the one above · equation · paper", rows)


def trained() -> str:
    """What docs/ladder.py measured: a small Hope with every optimiser at its best learning rate of a sweep."""
    found = json.loads((HERE / "optimizers-training.json").read_text(encoding="utf-8"))
    rows = [(f"`{row['rung']}`", f"{row['lr']:.1g}", f"{row['loss']:.3f}",
             f"{row['lowest']:.3f} – {row['highest']:.3f}", f"{row['ms_per_step']:.0f}")
            for row in sorted(found["rows"], key=lambda row: row["loss"])]
    rates = ", ".join(f"{rate:.1g}" for rate in found["rates"])
    scaled = ", ".join(f"{rung.defaults['adamw_lr_scale']:g} of it with {name}" for name, rung in OPTIMIZERS.items()
                       if rung.defaults["adamw_lr_scale"] != 1)
    return (f"{found['steps']} steps of {found['batch']} × {found['segment']} bytes, mean loss of the last 20 in nats "
            f"per byte over {found['seeds']} seeds;\neach at the best learning rate of {rates} for another seed.\n"
            "The rule takes the matrices; embedding, norms and the memories' initial states go by AdamW at that rate,\n"
            f"{scaled}.\n\n"
            + table("optimiser · learning rate · loss · lowest – highest · ms per step", rows))


def claims() -> str:
    """A line for each claim: the paper's two numbers, ours, and whether it holds; from docs/claims/."""
    found, rows = measured(HERE / "claims"), []
    for name, (paper, (one, other), points, sign) in LINES.items():
        if not (kept := found.get(name)):
            rows.append((name, paper, "", "not measured"))
            continue
        if points:
            seeds = {which: np.mean(np.array(kept["scores"][which])[:, points], axis=1) for which in (one, other)}
            here = {which: interval(scores) for which, scores in seeds.items()}
            holds = verdict(sign * (seeds[one] - seeds[other]))
        else:
            here, words = kept["kept"], re.search(f"{one} over {other}: (not shown|yes|no)", kept["holds"])
            assert words, f"{name} does not judge {one} over {other}"
            holds = words[1]
        ours = ", ".join(f"{which} {here[which][0]:.2f}±{here[which][1]:.2f}" for which in (one, other))
        rows.append((f"[{name}](docs/claims/{name}.png)", paper, ours, holds))
    return table("claim · paper · here · holds", rows)


def clocks() -> str:
    """The timetable of nano in training, by the paper's three scales of frequency."""
    config, training = PRESETS["nano"]
    rows = [(name, f"{chunk:,}", f"1/{chunk:,}", f"{frequency:,g}", f"{config.segment / chunk:g}", f"{back:,}")
            for name, chunk, frequency, back in timetable(
                config, training.batch * training.accumulate * config.segment)]
    return table(f"component · C, tokens · per token, 1/C · relative to the slowest, f = max C/C · per context of "
                 f"{config.segment} tokens, L/C · gradient carried back, tokens", rows)


# What a run took and reached ------------------------------------------------------------------------------------------


def reached(folder: Path) -> dict[str, Any]:
    """What is kept of a finished run, from its config.json, log.jsonl and sample.txt."""
    about = read_json(folder / "config.json")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, ends = [x for x in lines if "loss" in x], [x for x in lines if "seconds" in x]
    if not ends:
        raise SystemExit(f"{folder} is not finished; end it with python train.py --resume {folder}")
    config, training = Config.from_dict(about["config"]), about["training"]
    step = training["batch"] * training["accumulate"] * config.segment
    preset = {f: v for part in PRESETS[about["preset"]] for f, v in vars(part).items()}
    same = ("out", "quiet", "data", "options", "threads")  # these change nothing that is said here
    flags = "".join(f" --{name.replace('_', '-')} {typed(value)}"
                    for name, value in {**vars(config), **training}.items()
                    if name not in same and typed(value) != typed(preset[name]))
    shown = [x for x in steps if x["step"] in (1, 10, 30, 100, 300, 1000, 3000, 10000)] + steps[-1:]
    sample = (folder / "sample.txt").read_text(encoding="utf-8").strip().split("\n\nstep ")[-1]
    return {"command": f"python train.py --preset {about['preset']}{flags}", "machine": about["machine"],
            "versions": about["versions"], "seconds": round(ends[-1]["seconds"], 1),
            "seconds of the first step": round(step / steps[0]["tokens_per_second"], 1),
            "parameters": hope.count(config), "bytes read": steps[-1]["step"] * step,
            "losses": {str(x["step"]): [round(x["loss"], 3), round(x["bits_per_byte"], 3)] for x in shown},
            "validation bytes": ends[-1]["bytes"],
            "validation": {name: round(bits, 3) for name, bits in ends[-1]["validation_bits_per_byte"].items()},
            "moves": Counter(str(chunk) for x in steps for chunk in x["fired"]),
            "sample": "step " + sample.removeprefix("step "),
            "reading on": read_on(folder, config.segment)}


def read_on(folder: Path, segment: int) -> dict[str, dict[str, float]]:
    """Bits per byte, by position beyond the first segment and of all, for every way to learn that was measured."""
    return {learn: {p: round(bits, 3) for p, bits in found["by position"].items() if segment <= int(p) < LIMIT} | {
                "all": round(found["bits per byte"], 3)}
            for file in folder.glob("*/text.json") for learn, found in read_json(file)["results"].items()}


def kept(name: str) -> dict[str, Any]:
    return json.loads((HERE / "runs.json").read_text(encoding="utf-8"))[name]


def tiny() -> str:
    """The first run in a sentence."""
    run = kept("tiny")
    (first, (_, before)), *_, (last, (_, after)) = run["losses"].items()
    return (f"`{run['command']}` took **{run['seconds']:.0f} seconds** on {run['machine'].split(', ')[0]},\n"
            f"{run['seconds of the first step']:.0f} of them in the first step, in which kernels are compiled, once "
            f"and for all:\n{run['parameters']:,} parameters, {before:.2f} bits per byte at step {first}, "
            f"{after:.2f} at step {last}.")


def nano() -> str:
    """The second run in two sentences and in what it writes."""
    run = kept("nano")
    beside = ", ".join(f"{bits:.3f} for {name}" for name, bits in run["validation"].items() if name != "this run")
    machine, first = ", ".join(run["machine"].split(", ")[:2]), "\n".join(run["sample"].splitlines()[:7])
    measured = read_json(ROOT / "benchmarks" / "results.json")
    wide, narrow = (run["bytes read"] / 60 / max(rate for who, _, rate, *_ in measured[name]["tables"][0]["rows"]
                                                 if who == "ours") for name in ("hope", "hope, AVX2"))  # minutes
    return (f"`{run['command']}` took **{run['seconds'] / 60:.0f} minutes** on {machine}\n"
            f"(elsewhere {wide:.0f}, with AVX2 alone {narrow:.0f}): "
            f"{run['parameters']:,} parameters, {run['bytes read']:,} bytes read, then "
            f"{run['validation']['this run']:.3f} bits per byte on unseen text\n({beside}). It writes "
            f"(▶: the model goes on):\n\n```text\n{first}\n…\n```{learning(run)}")


def learning(run: dict[str, Any]) -> str:
    """What it gains when its levels go on learning, in a sentence; nothing where that was not asked."""
    read = run["reading on"]
    return (f"\n\nRead on, its levels learning, unseen text costs {read['all']['all']:.2f} bits per byte, without "
            f"{read['off']['all']:.2f}." if {"off", "all"} <= set(read) else "")


def reading() -> str:
    """Bits per byte by position: everything forgotten after a segment, memories carried on, levels learning, too."""
    read = {learn: kept("nano")["reading on"][learn] for learn in ("off", "memory", "all")}
    rows = [(p if p == "all" else f"{(int(p) + 1) // 2:,} to {int(p):,}", *(f"{bits[p]:.3f}" for bits in read.values()))
            for p in read["off"]]
    return table(" · ".join(["position", *(f"`--learn {learn}`" for learn in read)]), rows)


def run(name: str = "nano") -> str:
    """All that is kept of a run."""
    run = kept(name)
    with_versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    losses = table("step · loss (nats per byte) · bits per byte",
                   [(step, f"{nats:.3f}", f"{bits:.3f}") for step, (nats, bits) in run["losses"].items()])
    beside = ", ".join(f"{what} {bits:.3f}" for what, bits in sorted(run["validation"].items(), key=lambda x: x[1]))
    moved = ", ".join(f"with chunk size {chunk} moved {n:,} times"
                      for chunk, n in sorted(run["moves"].items(), key=lambda x: int(x[0])))
    return (f"`{run['command']}`\ntakes **{run['seconds']:.0f} seconds** on {run['machine']}\n({with_versions}):\n"
            f"{run['parameters']:,} parameters, {run['bytes read']:,} bytes read. The loss on the way:\n\n{losses}\n\n"
            f"On {run['validation bytes']:,} bytes of validation text, in bits per byte: {beside}.\n"
            f"The level {moved}.\n"
            f"What it writes then (▶ marks where the model goes on):\n\n```text\n{run['sample']}\n```")


# The pages ------------------------------------------------------------------------------------------------------------

PAGES: dict[str, dict[str, Callable[[], str]]] = {  # page → its parts
    "README.md": {"formulas": formulas, "tiny": tiny, "nano": nano, "files": files, "claims": claims},
    "docs/nano.md": {"run": run, "reading": reading},
    "docs/clocks.md": {"clocks": clocks},
    "docs/settings.md": {"presets": presets},
    "docs/ladder.md": {"ladder": ladder, "trained": trained},
}


def rewrite(text: str, name: str, made: str) -> str:
    """The text with what stands between the two markers of that name replaced."""
    begin, end = f"<!-- {name}: python docs/readme.py -->\n", f"\n<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"the page must hold {begin.strip()} and {end.strip()} once each")
    return text[:text.index(begin) + len(begin)] + made + text[text.index(end):]


def keep(folder: Path) -> None:
    """Keep what a finished run took and reached, under the name of its preset, and the pictures of nano."""
    found, file = reached(folder), HERE / "runs.json"
    name = found["command"].split()[3]
    if name not in ("tiny", "nano"):
        raise SystemExit(f"{folder} is a run of {name}; the pages show runs of tiny and nano")
    write_text(file, json.dumps(json.loads(file.read_text(encoding="utf-8")) | {name: found},
                                      indent=1, ensure_ascii=False) + "\n")
    for picture in PICTURES if name == "nano" else ():
        shutil.copy(folder / picture, HERE / picture)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs of tiny or nano")
    for folder in parser.parse_args(arguments).runs:
        try:
            keep(folder)
        except (ValueError, OSError) as error:
            raise SystemExit(f"docs/readme.py: error: {reason(error)}") from None
    for page, parts in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, made in parts.items():
            text = rewrite(text, name, made())
        write_text(ROOT / page, text)
    write_text(HERE / "block.svg", block.of("nano"))


if __name__ == "__main__":
    main(sys.argv[1:])
