"""What do people call a setting?  Flags of other programs, and key=value as they type it, in the names of config.py.

    --batch-size 8      --batch 8
    --config small      --preset small; a file of that name goes first
    train.steps=10      --steps 10
    optim.lr=1e-3       --lr 1e-3
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from config import PRESETS, Config, Training, nearest

KNOWN = {f.name: f for part in (Config, Training) for f in fields(part)}
COMMANDS = ("preset", "config", "resume", "from")  # what is asked for is no setting
ALIASES = {  # name elsewhere → name here
    **dict.fromkeys(("dim", "d_model", "hidden_size", "n_embd", "model_dim"), "width"),
    **dict.fromkeys(("num_layers", "n_layers", "n_layer", "depth"), "layers"),
    **dict.fromkeys(("num_heads", "n_heads", "n_head"), "heads"),
    **dict.fromkeys(("seq_len", "max_seq_len", "block_size", "context_length"), "segment"),
    "vocab_size": "vocabulary", "level_timescales": "chunks",
    **dict.fromkeys(("d_hidden", "hidden_dim"), "hidden"),
    **dict.fromkeys(("num_steps", "max_steps", "max_iters"), "steps"), "batch_size": "batch",
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulation"), "accumulate"),
    "learning_rate": "lr", **dict.fromkeys(("warmup_steps", "warmup_iters"), "warmup"),
    **dict.fromkeys(("grad_clip", "clip_grad_norm"), "clip"), **dict.fromkeys(("optim", "optim.type"), "optimizer"),
    **dict.fromkeys(("log_interval", "log_freq"), "log_every"),
    **dict.fromkeys(("save_interval", "save_every", "checkpoint.save_interval"), "checkpoint_every"),
    **dict.fromkeys(("output", "output_dir", "out_dir", "checkpoint.dir"), "out"),
    **dict.fromkeys(("shards_dir", "data_dir"), "data"), "logging.backend": "log",
    "config_name": "preset", "checkpoint.resume_path": "resume", "origin": "from"}
GROUPS = ("model", "data", "train", "training", "optim", "optimizer", "logging", "config")  # before a dot
BARE = {"--help", "-h", "--dry-run", "--doctor"} | {
    f"--{name.replace('_', '-')}" for name, field in KNOWN.items() if isinstance(field.default, bool)}
PAIR = re.compile(r"\+{0,2}([A-Za-z][\w.\[\]]*)=(.*)", re.DOTALL)


def ours(arguments: Sequence[str]) -> list[str]:
    """A command in the flags that `tools.command` knows; ValueError for a key=value whose key nobody knows.

    A word with = is left alone where it is the value of a flag, or a file.
    """
    found: list[str] = []
    flag = ""  # whose value may come next
    for word in arguments:
        pair = PAIR.fullmatch(word)
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            bare = name.lstrip("-").replace("-", "_")
            if name.startswith("--") and bare in ALIASES:
                name = "--" + ALIASES[bare].replace("_", "-")
            flag = "" if equals or name in BARE else name
            found += preset(name, value) if equals else [name]
        elif pair and flag in ("", "--data") and not Path(word).exists():
            name, value = typed(pair[1], pair[2])
            found += [name, *paths(value)] if name == "--data" else preset(name, value)
            flag = ""
        elif flag in ("--config", "--preset"):
            found[-1:] = preset(flag, word)
            flag = ""
        else:
            found.append(word)
            flag = flag if flag == "--data" else ""
    return found


def preset(flag: str, value: str) -> list[str]:
    """A flag and its value; a --config, or a preset with underscores, that names a preset is one."""
    name = value.replace("_", "-")
    if flag in ("--config", "--preset") and name in PRESETS and (flag == "--preset" or not Path(value).exists()):
        return ["--preset", name]
    return [flag, value] if flag in ("--config", "--preset") else [f"{flag}={value}"]


def paths(value: str) -> list[str]:
    """A path, or those of a list in brackets."""
    listed = re.fullmatch(r"\[(.*)\]", value)
    return [path.strip() for path in next(csv.reader([listed[1]], skipinitialspace=True), [])] if listed else [value]


def typed(key: str, value: str) -> tuple[str, str]:
    """The flag that a key means, and its value, of numbers without the brackets of a list; ValueError names the nearest
    key."""
    group, _, rest = key.partition(".")
    short = rest if rest and group in GROUPS else key
    name = ALIASES.get(key) or ALIASES.get(short) or short
    if group == "logging" and name not in ("log", "log_every"):
        raise ValueError(f"unknown key {key!r}: logging has a backend and a log_interval, and a run's log is log.jsonl "
                         "in its folder, --out")
    if name not in KNOWN and name not in COMMANDS:
        prefix, part = key[:len(key) - len(short)], Config if group == "model" else Training
        near = [prefix + one for one in (*(f.name for f in fields(part)), *ALIASES)] if prefix else [*KNOWN, *ALIASES]
        raise ValueError(f"unknown key {key!r}{nearest(key, near)}; see --help")
    value, listed = re.sub(r'^"(.*)"$', r"\1", value), re.fullmatch(r"\[(.*)\]", value)
    if listed and name != "data":  # a path may have spaces, numbers in a list need none
        value = listed[1].replace(" ", "")
    return "--" + name.replace("_", "-"), value
