"""What was asked for?  Flags, files of settings and presets become a `Config` and a `Training`, or one line of error.

Flags win over a file, a file over the run that is started from, and that over the preset. The flags themselves are
made of config.py: one for every field, under the heading above it, explained by the comment beside it.
"""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from config import CHOICES, MIXERS, PRESETS, RATES, Config, Training, item, nearest, setting
from data import VOCABULARY
from optimizers import OPTIMIZERS, Optimizer
from shards import Words, is_shards
from tools.aliases import ours
from tools.checkpoint import find
from tools.console import columns
from tools.folder import read_json
from tools.sections import from_sections

DEFAULTS = {f.name: f.default for part in (Config, Training) for f in fields(part)}
FLAGS = {name: "--from" if name == "origin" else "--" + name.replace("_", "-") for name in DEFAULTS}


class Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written where there is room, else prose filled anew, and what a command does below it.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if max(map(len, text.splitlines()), default=0) <= width:
            return super()._fill_text(text, width, indent)
        lines: list[str] = []
        for paragraph in re.split(r"\n(?=\s*\n| {1,4}\S)", text.strip()):  # an indented line is one, too
            start = " " * (len(paragraph.strip("\n")) - len(paragraph.strip("\n").lstrip()))
            command, _, meaning = paragraph.strip().partition("  ") if start else ("", "", paragraph)
            if not paragraph or paragraph.startswith("\n"):
                lines.append("")
            if command:
                lines.append(start + command)
            if meaning.strip():
                deeper = start + "    " if start else ""
                lines.append(textwrap.fill(" ".join(meaning.split()), width, initial_indent=deeper,
                                           subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False))
        return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are for `main` to print, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser(about: str | None = None, preset: str = "nano") -> Parser:
    """A flag for every field of Config and Training; the defaults shown are those of the preset that would run."""
    values = {name: value for part in PRESETS.get(preset, PRESETS["nano"]) for name, value in vars(part).items()}
    built = Parser(prog="train.py", usage="python train.py [flags] [key=value …]", description=about, epilog=rungs(),
                   formatter_class=Help, allow_abbrev=False, add_help=False)
    what = built.add_argument_group("what to do")
    what.add_argument("-h", "--help", action="help", help="show this, and end")
    what.add_argument("--preset", help=f"start from the settings of: {', '.join(PRESETS)} [{preset}]; stories: flags "
                                       "of its own, see --preset stories --help")
    what.add_argument("--config", metavar="FILE", help="settings in JSON, or a run's config.json; flags win; also the "
                                                      "name of a preset")
    what.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    what.add_argument("--dry-run", action="store_true", help="say what a run would take, and end")
    what.add_argument("--doctor", action="store_true", help="say what this machine offers, and end")
    for part in (Config, Training):
        for heading, notes in headings(part):
            group = built.add_argument_group(f"{'model' if part is Config else 'training'}, {heading}")
            for name, note in notes.items():
                choices = MIXERS if name == "mixer" else CHOICES.get(name, ())
                one_of = f" ({', '.join(choices)})" if choices else ""
                shown = f"{note}{one_of} [{typed(values[name])}]".replace("%", "%%")
                group.add_argument(FLAGS[name], dest=name, default=argparse.SUPPRESS, help=shown,
                                   **reading(name, DEFAULTS[name]))
    return built


def headings(part: type) -> Iterator[tuple[str, dict[str, str]]]:
    """The groups of a dataclass's fields: what is written above each, and the comment beside every field."""
    found: dict[str, dict[str, str]] = {}
    lines = re.compile(r"^    (?:# (.+)|(\w+): .*?  # (.+))$", re.MULTILINE)
    for heading, name, note in lines.findall(inspect.getsource(part)):
        if heading:
            found[heading] = {}
        else:
            list(found.values())[-1][name] = note
    yield from found.items()


def rungs() -> str:
    """The options of every optimiser with their defaults, and the learning rate it gets if it replaces a preset's."""
    width, shared = columns() - 2, Optimizer.defaults
    lines = [("all", {name: value for name, value in shared.items() if name == "accumulate"})]
    lines += [(name, {"lr": RATES[name]} | {key: value for key, value in rung.defaults.items() if key not in shared})
              for name, rung in OPTIMIZERS.items()]
    text = ["options of each --optimizer, as --options name=value,name=value (of words the first is the default; lr is "
            "its --lr where it takes the place of a preset's own):"]
    text += [f"  {name}: " + ("  ".join(f"{key}={'|'.join(value) if isinstance(value, tuple) else typed(value)}"
                                        for key, value in its.items())) for name, its in lines]
    return "\n".join(textwrap.fill(line, width, subsequent_indent="      ", break_on_hyphens=False,
                                   break_long_words=False) for line in text)


def reading(name: str, default: Any) -> dict[str, Any]:
    """How argparse reads a field with this default."""
    def comma_list(text: str) -> tuple[Any, ...]:
        kind = type(item(name, default))
        try:
            return tuple(kind(word) for word in text.split(",") if text)
        except ValueError:
            what = {int: "whole numbers", float: "numbers"}[kind]
            raise argparse.ArgumentTypeError(f"{text!r} is no list of {what} with commas between") from None

    def true_or_false(text: str) -> bool:
        if text.lower() not in ("false", "true"):
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    if name == "data":
        return {"nargs": "+", "metavar": "PATH"}
    if isinstance(default, bool):
        return {"type": true_or_false, "nargs": "?", "const": True, "metavar": "true|false"}
    if isinstance(default, tuple):
        return {"type": comma_list, "metavar": "LIST"}
    words = {"origin": "RUN", "out": "FOLDER", "file": "FILE"}
    return {"type": type(default), "metavar": words.get(name) or {int: "N", float: "X", str: "NAME"}[type(default)]}


def typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(typed, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def described(parts: Sequence[Config | Training]) -> str:
    """All settings, a line or more per heading."""
    width, lines = columns(110) - 1, []
    for part in parts:
        for heading, notes in headings(type(part)):
            values = "  ".join(f"{FLAGS[name][2:]}={typed(getattr(part, name))}" for name in notes)
            lines.append(textwrap.fill(f"{heading}: {values}", max(width, 30), initial_indent="  ",
                                       subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(lines)


def parse(arguments: Sequence[str], about: str | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command that was given, and the settings that were given; ValueError for anything else."""
    arguments = ours(arguments)
    made = parser(about, preset_in(arguments))
    found, rest = made.parse_known_args(arguments)
    if rest:
        known = [flag for action in made._actions for flag in action.option_strings]
        raise ValueError(f"unknown argument {rest[0]!r}{nearest(rest[0].split('=')[0], known)}; see --help")
    for name in ("resume", "preset", "config", "data", "origin", "out"):
        if getattr(found, name, None) in ("", [""]):
            raise ValueError(f"{FLAGS.get(name, '--' + name)} is empty; give it something, or leave it out")
    for other in ("preset", "config"):
        if found.resume and getattr(found, other):
            raise ValueError(f"a resumed run keeps its {other}; leave out --{other}")
    for other in ("dry-run", "doctor"):
        if found.resume and getattr(found, other.replace("-", "_")):
            raise ValueError(f"--{other} trains nothing, and --resume goes on with a run; leave out one of them")
    return found, {name: value for name, value in vars(found).items() if name in DEFAULTS}


def wanted_preset(arguments: Sequence[str]) -> str:
    """The preset that a command names, by default nano."""
    return preset_in(ours(arguments))


def preset_in(flags: Sequence[str]) -> str:
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="nano")
    return str(first.parse_known_args(flags)[0].preset)


def asked(command: argparse.Namespace, given: dict[str, Any]) -> tuple[str, Config, Training]:
    """The preset and all settings of a new run, from everything that the command names."""
    preset, layers = command.preset or "nano", [given]
    if command.config:
        if command.config == "stories":
            raise ValueError("stories are several runs, and no settings of one: --preset stories")
        if not Path(command.config).exists():
            raise ValueError(f"there is no file {command.config}, and no such preset{nearest(command.config, PRESETS)}")
        read = read_json(Path(command.config))
        layers.insert(0, flat(read))
        if not command.preset:
            preset = known(read, preset)
    if given.get("origin"):
        if command.preset:
            raise ValueError("a run that starts from another keeps its settings; leave out --preset")
        read = read_json(find(given["origin"]).with_name("config.json"))
        layers.insert(0, flat(read))
        preset = known(read, preset)
    config, training = settings(preset, *layers)
    if not any("vocabulary" in layer for layer in layers) and not (command.dry_run and not training.data):
        config = replace(config, vocabulary=size_of(training.data))
    return preset, config, training


def known(saved: dict[str, Any], other: str) -> str:
    """The preset that a file names, if there is such a one."""
    return next((name for name in PRESETS if name == saved.get("preset")), other)


def size_of(data: Sequence[str]) -> int:
    """How many tokens the vocabulary of a text has."""
    return Words(Path(data[0])).size if data and is_shards(data[0]) else VOCABULARY


def resumed(run: Path, saved: dict[str, Any], given: dict[str, Any]) -> tuple[str, Config, Training]:
    """The preset and the settings of a run that goes on; what is given may change its training, not its model."""
    kinds = {"preset": str, "config": dict, "training": dict, "data": dict}
    if not all(isinstance(saved.get(name), kind) for name, kind in kinds.items()) or "sha256" not in saved["data"]:
        raise ValueError(f"{run / 'config.json'} was not written by a run")
    for name in given:
        if name in {f.name for f in fields(Config)} | {"out", "origin"}:
            raise ValueError(f"{name} is one of the things a resumed run keeps; start a new run to change it")
    base = PRESETS.get(saved["preset"], (Config(), Training()))  # one of another version: what it set is in the file
    return saved["preset"], *settled(base, flat(saved), given)


def settings(preset: str, *layers: dict[str, Any]) -> tuple[Config, Training]:
    """A preset with layer after layer of what was given in its place; ValueError for what is unknown or does not fit.

    An optimiser that takes the place of another comes with a learning rate of its own, unless one is given.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}{nearest(preset, list(PRESETS))}; "
                         f"choose from {', '.join([*PRESETS, 'stories'])}")
    return settled(PRESETS[preset], *layers)


def settled(base: tuple[Config, Training], *layers: dict[str, Any]) -> tuple[Config, Training]:
    """What `settings` says, of what a preset holds."""
    values = {name: value for part in base for name, value in vars(part).items()}
    for layer in layers:
        for name, value in layer.items():
            if name not in DEFAULTS:
                raise ValueError(f"unknown setting {name!r}{nearest(name, list(DEFAULTS))}")
            setting(name, value, DEFAULTS[name])
        if layer.get("optimizer", values["optimizer"]) != values["optimizer"]:
            values["lr"] = RATES.get(layer["optimizer"], values["lr"])
        values |= layer
    config, training = base
    return (replace(config, **{f.name: values[f.name] for f in fields(Config)}),
            replace(training, **{f.name: values[f.name] for f in fields(Training)}))


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """The settings in a file: its keys, those that a run wrote into its config.json, or those of SECTIONS."""
    if all(isinstance(found.get(name), dict) for name in ("config", "training")):
        return {**found["config"], **found["training"], "out": ""}
    return from_sections(found) if any(isinstance(value, dict) for value in found.values()) else found
