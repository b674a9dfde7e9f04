"""What of README.md does code know better?  This writes those parts, each between two of its markers.

    python docs/readme.py             the tables: files and their lengths, presets, optimisers, claims
    python docs/readme.py runs/NAME   the numbers, sample and pictures of a finished run, too
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import hope  # noqa: E402
from apps.claims import CLAIMS, measured  # noqa: E402
from config import PRESETS, Config  # noqa: E402
from optimizers import OPTIMIZERS  # noqa: E402
from tools.command import typed  # noqa: E402
from tools.folder import write_text  # noqa: E402

README = ROOT / "README.md"
ORDER = ("config", "autograd", "functions", "kernels", "layers", "optimizers", "memory", "titans", "mixers", "cms",
         "hope", "data", "train")
PICTURES = ("loss.png", "levels.png")


def table(head: str, rows: list[tuple[Any, ...]]) -> str:
    """A table in Markdown; a bar inside a cell is escaped."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    names = head.split(" · ")
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *cells])


def files() -> str:
    """The reading order: what each file asks and answers, in the first line of its docstring; its length."""
    rows = []
    for name in ORDER:
        lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()
        asked = " ".join(lines[0].strip('"').split())
        rows.append((f"[{name}.py]({name}.py)", asked, len(lines)))
    return table("file · what it asks, and what it is · lines", rows)


def presets() -> str:
    """The size of every preset, counted without building it."""
    rows = []
    for name, (config, training) in PRESETS.items():
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
    """What `python -m apps.evaluate claims` found, as it lies in docs/claims/."""
    rows, found = [], measured(HERE / "claims")
    for name, (_, paper) in CLAIMS.items():
        row = (name, paper, "", "not measured")
        if kept := found.get(name):
            row = (f"[{name}](docs/claims/{name}.png)", paper, kept["here"], kept["holds"])
        rows.append(row)
    return table("claim · paper · here · holds?", rows)


def run(folder: Path) -> str:
    """What a finished run took and reached, from its config.json, log.jsonl and sample.txt."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, ends = [x for x in lines if "loss" in x], [x for x in lines if "seconds" in x]
    if not ends:
        raise SystemExit(f"{folder} is not finished; end it with python train.py --resume {folder}")
    config, training = Config.from_dict(about["config"]), about["training"]
    read = steps[-1]["step"] * training["batch"] * training["accumulate"] * config.segment
    preset = {f: v for part in PRESETS[about["preset"]] for f, v in vars(part).items()}
    same = ("out", "quiet", "data", "options", "threads")  # these change nothing that is said here
    flags = "".join(f" --{name.replace('_', '-')} {typed(value)}"
                    for name, value in {**vars(config), **training}.items()
                    if name not in same and typed(value) != typed(preset[name]))
    with_versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    shown = [x for x in steps if x["step"] in (1, 10, 30, 100, 300, 1000, 3000, 10000)] + steps[-1:]
    shown = list({x["step"]: x for x in shown}.values())
    losses = table("step · loss (nats per byte) · bits per byte",
                   [(x["step"], f"{x['loss']:.3f}", f"{x['bits_per_byte']:.3f}") for x in shown])
    found = ends[-1]["validation_bits_per_byte"]
    beside = ", ".join(f"{name} {bits:.3f}" for name, bits in sorted(found.items(), key=lambda item: item[1]))
    moves = Counter(chunk for x in steps for chunk in x["fired"])
    moved = ", ".join(f"with chunk size {chunk} moved {n:,} times" for chunk, n in sorted(moves.items()))
    sample = (folder / "sample.txt").read_text(encoding="utf-8").strip().split("\n\nstep ")[-1]
    return (f"`python train.py --preset {about['preset']}{flags}`\n"
            f"takes **{ends[-1]['seconds']:.0f} seconds** on {about['machine']}\n({with_versions}):\n"
            f"{hope.count(config):,} parameters, {read:,} bytes read. The loss on the way:\n\n{losses}\n\n"
            f"On {ends[-1]['bytes']:,} bytes of validation text, in bits per byte: {beside}.\n"
            f"The level {moved}.\n"
            f"What it writes then (▶ marks where the model goes on):\n\n"
            f"```text\nstep {sample.removeprefix('step ')}\n```")


def rewrite(text: str, name: str, made: str) -> str:
    """The text with what stands between the two markers of that name replaced."""
    begin, end = f"<!-- {name}: python docs/readme.py -->\n", f"\n<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{README} must hold {begin.strip()} and {end.strip()} once each")
    return text[:text.index(begin) + len(begin)] + made + text[text.index(end):]


def main(arguments: list[str]) -> None:
    text = README.read_text(encoding="utf-8")
    tables = {"files": files, "presets": presets, "ladder": ladder, "trained": trained, "claims": claims}
    for name, made in tables.items():
        text = rewrite(text, name, made())
    if arguments:
        text = rewrite(text, "run", run(Path(arguments[0])))
        for picture in PICTURES:
            shutil.copy(Path(arguments[0]) / picture, ROOT / "docs" / picture)
    write_text(README, text)


if __name__ == "__main__":
    main(sys.argv[1:])
