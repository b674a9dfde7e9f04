"""How is a model trained?  Read a segment, feel the surprise, send it back through every write, move.

    python train.py                                     train the preset nano on the text of this very Python
    python train.py --preset tiny --data notes.txt      another preset, your own text; every setting is a flag
    python train.py --resume runs/nano-20260101-120000  go on where a run stopped
    python train.py --preset paper-1.3b --dry-run       what it would take
    python train.py --doctor                            what this machine offers

A run lives in a folder: config.json, log.jsonl, checkpoint.npz, loss.png, levels.png, sample.txt. On one
machine and one number of threads, N + M steps are, to the last bit, N steps, a stop, and M steps.
"""

from __future__ import annotations

import itertools
import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read as NumPy is loaded: the work is dealt out by kernels.split
os.environ.setdefault("MKL_NUM_THREADS", "1")
if __name__ == "__main__":  # Numba reads this once, while it is imported
    words = itertools.chain(*(argument.split("=", 1) for argument in sys.argv))
    for word, n in itertools.pairwise(words):
        if word == "--threads" and n.isdigit() and int(n):
            os.environ["NUMBA_NUM_THREADS"] = n

import argparse
import importlib
import importlib.metadata
import inspect
import json
import math
import platform
import re
import signal
import textwrap
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

import hope
import kernels
import optimizers
from autograd import Tensor, cross_entropy, no_grad
from config import Config, nearest
from data import (
    IGNORE,
    VOCABULARY,
    Corpus,
    Document,
    Segments,
    Text,
    compressed_bits_per_byte,
    decode,
    fixed,
    next_words,
    read_stories,
)
from hope import Hope, State


@dataclass(frozen=True)
class Training:
    """Every choice about a run that is not about the model."""

    steps: int = 600            # steps of the optimiser
    minutes: float = 0.0        # stop and save after so many minutes, even if steps are left; 0 = no limit
    batch: int = 4              # B, segments read side by side
    accumulate: int = 1         # batches whose gradients make one step
    optimizer: str = "adamw"    # a rung of the ladder in optimizers.py
    options: tuple[str, ...] = ()  # the optimiser's own, such as slow_period=8,reading=sum
    lr: float = 2e-3            # learning rate after the warm-up
    warmup: int = 20            # steps in which it rises to that
    schedule: str = "cosine"    # how it falls from there: cosine, linear or constant
    final: float = 0.1          # the share of it that is left at the last step
    weight_decay: float = 0.1   # of matrices, in units of the learning rate
    clip: float = 1.0           # the gradient is shortened to this norm
    order: str = "shuffled"     # of segments; or consecutive, with the running state carried on
    data: tuple[str, ...] = ()  # files, folders, globs to read; none = the text of this Python
    random_data: bool = False   # read random bytes instead: nothing can be learned of them but their number
    seed: int = 0               # of the weights, the order and the samples
    device: str = "auto"        # cpu; cuda, an NVIDIA card (see gpu/); or auto, a card if one can be used
    matmul: str = "float32"     # products of matrices on a card: float32, tf32 or bfloat16, added up in float32
    threads: int = 0            # 0 = as many as there are cores
    baseline: bool = False      # train a Transformer of as many parameters too, for comparison
    validation: int = 128       # batches of validation text to measure on, at most
    out: str = ""               # the run's folder; none = runs/PRESET-DATE-TIME
    log_every: int = 1          # steps between two lines of log.jsonl
    sample_every: int = 100     # steps between two samples; 0 = only one, at the end
    sample_tokens: int = 300    # length of a sample
    checkpoint_every: int = 100  # steps between two checkpoints
    quiet: bool = False         # show neither settings nor progress nor samples on the way

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}{nearest(getattr(self, name), allowed)}; "
                                 f"choose from {', '.join(allowed)}")
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        whole = [os.path.abspath(os.path.expanduser(path)) for path in self.data]  # to resume from anywhere
        object.__setattr__(self, "data", tuple(whole))
        object.__setattr__(self, "options", tuple(self.options))


CHOICES = {"optimizer": list(optimizers.OPTIMIZERS), "schedule": ["cosine", "linear", "constant"],
           "order": ["shuffled", "consecutive"], "device": ["auto", "cpu", "cuda"],
           "matmul": ["float32", "tf32", "bfloat16"]}
LEAST = {"steps": 1, "batch": 1, "accumulate": 1, "validation": 1, "log_every": 1, "checkpoint_every": 1,
         "minutes": 0, "warmup": 0, "final": 0, "weight_decay": 0, "seed": 0, "threads": 0, "sample_every": 0,
         "sample_tokens": 0}

PRESETS = {
    "tiny": (Config(width=32, layers=2, heads=2, segment=64, hidden=32, memory_chunk=32, projection_chunk=32),
             Training(steps=20, warmup=2, validation=4, sample_every=10, sample_tokens=40,
                      checkpoint_every=10)),
    "nano": (Config(objective="dot", eta_max=0.05, eta_start=0.01, memory_hidden=32),
             Training(steps=500, optimizer="muon", lr=0.05, options=("accumulate=gradients",), validation=32)),
    "balanced": (Config(layers=12), Training(steps=5000, warmup=200, batch=8)),
    "deep": (Config(width=384, layers=32, heads=6, segment=768, hidden=768),
             Training(steps=20000, warmup=1000, batch=8, lr=1e-3)),
    "paper-760m": (Config(width=1536, layers=24, heads=16, segment=4096, hidden=2048),  # 30 billion tokens
                   Training(steps=57000, warmup=2000, batch=1, accumulate=128, lr=1.25e-3)),
    "paper-1.3b": (Config(width=2048, layers=24, heads=16, segment=4096, hidden=2560),  # 100 billion tokens
                   Training(steps=190000, warmup=2000, batch=1, accumulate=128, lr=7e-4)),
}
DEFAULTS = {f.name: f.default for part in (Config, Training) for f in fields(part)}

# The command line -------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are for `main` to print, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> Parser:
    """A flag for every field of Config and Training, explained by the comment beside the field."""
    made = Parser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                  allow_abbrev=False)
    made.add_argument("--preset",
                      help=f"start from: {', '.join(PRESETS)} [nano]; stories: flags of its own")
    made.add_argument("--config", metavar="FILE", help="settings in JSON, or a run's config.json; flags win")
    made.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    made.add_argument("--dry-run", action="store_true", help="say what a run would take, and end")
    made.add_argument("--doctor", action="store_true", help="say what this machine offers, and end")
    for part in (Config, Training):
        group = made.add_argument_group(part.__name__, str(part.__doc__).splitlines()[0])
        notes = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(part), re.MULTILINE))
        for f in fields(part):
            explained = f"{notes[f.name]} [{typed(f.default)}]".replace("%", "%%")
            group.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=explained,
                               **reading(f.name, f.default))
    return made


def reading(name: str, default: Any) -> dict[str, Any]:
    """How argparse reads a field with this default."""
    def comma_list(text: str) -> tuple[Any, ...]:
        return tuple((type(default[0]) if default else str)(item) for item in text.split(",") if text)

    def true_or_false(text: str) -> bool:
        return ("false", "true").index(text.lower()) == 1
    if name == "data":
        return {"nargs": "+", "metavar": "PATH"}
    if isinstance(default, bool):
        return {"type": true_or_false, "nargs": "?", "const": True, "metavar": "true|false"}
    return {"type": comma_list if isinstance(default, tuple) else type(default), "metavar": name.upper()}


def typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(typed, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command that was given, and the settings that were given; ValueError for anything else."""
    made = parser()
    found, rest = made.parse_known_args(arguments)
    if rest:
        known = [flag for action in made._actions for flag in action.option_strings]
        raise ValueError(f"unknown argument {rest[0]!r}{nearest(rest[0].split('=')[0], known)}; see --help")
    given = {name: value for name, value in vars(found).items() if name in DEFAULTS}
    return found, given


def settings(preset: str, given: dict[str, Any]) -> tuple[Config, Training]:
    """A preset with what was given in its place; ValueError for unknown names and values of another kind."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}{nearest(preset, list(PRESETS))}; "
                         f"choose from {', '.join(PRESETS)}")
    for name, value in given.items():
        if name not in DEFAULTS:
            raise ValueError(f"unknown setting {name!r}{nearest(name, list(DEFAULTS))}")
        if not alike(value, DEFAULTS[name]):
            raise ValueError(f"{name} is {value!r}; it must be of the kind of {DEFAULTS[name]!r}")
    config, training = PRESETS[preset]
    return (replace(config, **{f.name: given[f.name] for f in fields(Config) if f.name in given}),
            replace(training, **{f.name: given[f.name] for f in fields(Training) if f.name in given}))


def alike(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a default (JSON has lists for tuples, and 1 for 1.0)."""
    if isinstance(default, tuple):
        one = default[0] if default else ""
        return isinstance(value, (list, tuple)) and all(alike(item, one) for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'{path} holds a {type(found).__name__}, not settings such as {{"width": 64}}')
    return found


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """The settings in a file: its keys, those that a run wrote into its config.json, or those of SECTIONS."""
    if {"config", "training"} <= set(found):
        return {**found["config"], **found["training"], "out": ""}
    return from_sections(found) if any(isinstance(value, dict) for value in found.values()) else found


# Another system's layout of settings: section → key → (its default, our name, or "": see `from_sections`).
SECTIONS: dict[str, dict[str, tuple[Any, str]]] = {
    "model": {"hidden_size": (384, "width"), "vocab_size": (512, "vocabulary"), "seq_len": (256, "segment"),
              "num_levels": (3, ""), "level_timescales": ([1, 4, 16], "chunks")},
    "continuum_mem": {"enabled": (True, ""), "ultra_short_span": (2, ""), "short_span": (8, ""),
                      "mid_span": (32, ""), "long_span": (128, ""), "episodic_span": (512, "")},
    "self_modify": {"enabled": (True, ""), "meta_lr": (1e-5, "generator_rate"),
                    "update_frequency": (8, "generator_chunk"), "weight_mod_dim": (128, "generator_hidden")},
    "deep_optimizer": {"enabled": (True, ""), "fast_lr_scale": (1.0, ""), "slow_lr_scale": (0.1, ""),
                       "fast_ema": (0.9, ""), "slow_ema": (0.99, ""), "sync_interval": (64, "sync"),
                       "gradient_compression_dim": (256, "rank")},
    "training": {"batch_size": (4, "batch"), "learning_rate": (1e-4, "lr"), "num_steps": (1000, "steps"),
                 "log_every": (10, "log_every"), "use_random_data": (True, "random_data")},
}


def from_sections(found: dict[str, Any]) -> dict[str, Any]:
    """Our settings from those of SECTIONS; the other sections may stand within `model`.

    Attention is joined by the banks of `continuum_mem` and the weight generator of `self_modify` where these
    are enabled; the deep optimiser is `multi_timescale`, AdamW without it. ValueError names what is unknown.
    """
    model = dict(found.get("model", {}))
    given = {name: model.pop(name) for name in list(model) if name in SECTIONS} | found | {"model": model}
    for section, keys in given.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            raise ValueError(f"unknown section {section!r}{nearest(section, list(SECTIONS))}; "
                             f"there are {', '.join(SECTIONS)}")
        for key, value in keys.items():
            known = SECTIONS[section]
            if key not in known:
                raise ValueError(f"unknown key {key!r} in {section!r}{nearest(key, list(known))}; "
                                 f"it has {', '.join(known)}")
            if not alike(value, known[key][0]):
                raise ValueError(f"{section}.{key} is {value!r}; it must be of the kind of {known[key][0]!r}")
    values: dict[str, dict[str, Any]] = {}
    ours: dict[str, Any] = {}
    for section, known in SECTIONS.items():
        values[section] = {key: default for key, (default, _) in known.items()} | given.get(section, {})
        ours |= {name: values[section][key] for key, (_, name) in known.items()
                 if name and section != "deep_optimizer"}
    timescales, levels = values["model"]["level_timescales"], values["model"]["num_levels"]
    if levels != len(timescales):
        raise ValueError(f"num_levels is {levels}, but level_timescales {timescales} has {len(timescales)}")
    enabled = {name: section.pop("enabled") for name, section in values.items() if "enabled" in section}
    joined = [name for section, name in (("continuum_mem", "banks"), ("self_modify", "generated"))
              if enabled[section]]
    ours |= {"mixer": "+".join(["attention", *joined]), "spans": tuple(values["continuum_mem"].values())}
    ours |= {"optimizer": "adamw", "options": ()}
    if enabled["deep_optimizer"]:
        chosen = (f"{SECTIONS['deep_optimizer'][key][1] or key}={value}"
                  for key, value in values["deep_optimizer"].items())
        ours |= {"optimizer": "multi_timescale", "options": tuple(chosen)}
    return ours


# A run ------------------------------------------------------------------------------------------------------


class Run:
    """A model in training, and the folder it lives in."""

    def __init__(self, folder: Path, preset: str, config: Config, training: Training, corpus: Corpus):
        if config.vocabulary < VOCABULARY:
            raise ValueError(f"vocabulary is {config.vocabulary}; tokens are bytes: it must be at least "
                             f"{VOCABULARY}")
        self.folder, self.preset, self.config, self.training = folder, preset, config, training
        self.corpus = corpus
        self.text = corpus.split("validation")
        self.text.require(1, config.segment)
        self.segments = Segments(corpus.split("train"), training.batch, config.segment, training.order,
                                 training.seed)
        self.model = Hope(config, np.random.default_rng(training.seed))
        self.card, self.place = choose(training.device, training.matmul)
        if self.card:
            self.card.set_matmul(training.matmul)
            self.card.to_device(self.model)  # whatever is made from here on is made where the weights are
        self.optimizer = optimizers.build(training.optimizer, self.model.groups(training.weight_decay),
                                          training.lr, **options(training))
        self.levels: dict[int, list[Any]] = {}  # chunk size → parameters
        for block in self.model.blocks:
            for level in block.cms.levels:
                self.levels.setdefault(level.chunk, []).extend(level.parameters())
        self.state: State | None = None  # what is carried from segment to segment
        self.last = State.start(config)  # what the last segment left behind, carried or not
        self.step = self.saved = 0
        self.started = time.perf_counter()
        self.logged = self.level_weights()

    # files --------------------------------------------------------------------------------------------------

    def begin(self) -> Run:
        """Make the folder, with a first checkpoint in it; ValueError if it is in use or cannot be made."""
        try:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ValueError(f"{self.folder} is in use; choose another --out, or --resume {self.folder}")
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be made ({error.strerror}); choose another "
                             "--out") from None
        self.describe()
        self.save()
        return self

    def describe(self) -> None:
        """Write config.json: all that is needed to do the same again."""
        found = {"preset": self.preset, "config": asdict(self.config), "training": asdict(self.training),
                 "data": self.corpus.manifest(), "versions": versions(), "machine": machine()}
        write_text(self.folder / "config.json", json.dumps(found, indent=1))

    def save(self) -> None:
        """Write checkpoint.npz: weights, optimiser and clocks, running state, step and place in the data.

        That is all: what is random follows from the seed, the step and the place.
        """
        if broken := [p.name for p in self.optimizer.params if not np.all(np.isfinite(p.data))]:
            raise self.diverged(f"the weight {broken[0]}")
        progress = {"step": self.step, "data": self.segments.state()}
        kept = {f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()}
        hope.save(self.folder / "checkpoint.npz", self.model, self.state,
                  progress=np.array(json.dumps(progress)), **kept)
        self.saved = self.step

    def restore(self) -> Run:
        """Go on from checkpoint.npz; ValueError if it is missing, damaged or of another model."""
        path = self.folder / "checkpoint.npz"
        try:
            model, self.state, arrays = hope.load(path)
        except FileNotFoundError:
            raise ValueError(f"there is no checkpoint in {self.folder}; start this run again") from None
        if others := [n for n, value in asdict(model.config).items() if value != getattr(self.config, n)]:
            raise ValueError(f"{path} and config.json are of two models: they differ in {', '.join(others)}")
        if "progress" not in arrays:
            raise ValueError(f"{path} holds a model, but no run to go on with")
        progress = json.loads(str(arrays["progress"]))
        if self.card and self.state:
            self.state = self.card.to_device(self.state)
        self.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict({name.removeprefix("optimizer."): value
                                        for name, value in arrays.items() if name.startswith("optimizer.")})
        self.segments.restore(progress["data"])
        self.step = self.saved = progress["step"]
        self.logged = self.level_weights()
        lines = [json.dumps(line) + "\n" for line in read_log(self.folder) if line["step"] <= self.step]
        write_text(self.folder / "log.jsonl", "".join(lines))
        return self

    # steps --------------------------------------------------------------------------------------------------

    def train(self, until: int) -> bool:
        """Take steps up to step `until`, unless time is up or Ctrl+C is pressed; returns whether that was pressed."""
        t, started = self.training, time.monotonic()
        bar = tqdm(total=until, initial=self.step, unit="step", disable=t.quiet, dynamic_ncols=True,
                   mininterval=0.1 if sys.stderr.isatty() else 30)
        with bar, one_more_step() as asked, np.errstate(all="ignore"):  # what is not finite is looked for
            while self.step < until and not asked:
                line = self.advance()
                bar.set_postfix_str("{loss:.3f} nats, {bits_per_byte:.3f} bits/byte, {tokens_per_second:.0f} "
                                    "tokens/s, moved {fired}".format(**line), refresh=False)
                bar.update()
                if self.step % t.log_every == 0 or self.step == until:
                    append(self.folder / "log.jsonl", json.dumps(line | self.measure()) + "\n")
                if t.sample_every and self.step % t.sample_every == 0 and self.step < until:
                    sample = self.sample()
                    if not t.quiet:
                        bar.write(sample)
                if self.step % t.checkpoint_every == 0:
                    self.save()
                if t.minutes and time.monotonic() - started > 60 * t.minutes:
                    break
        if self.saved < self.step:
            self.save()
        return bool(asked)

    def advance(self) -> dict[str, Any]:
        """One step: predict, send the error back, move every level whose clock is due."""
        t, started, losses = self.training, time.perf_counter(), []
        self.optimizer.zero_grad()
        for _ in range(t.accumulate):
            tokens = next(self.segments)
            past = None if self.segments.restarted else self.state
            loss, after = self.loss(tokens, past)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise self.diverged(self.model.first_non_finite(tokens[:, :-1], past) or "the loss")
            (loss * (1 / t.accumulate)).backward()
            self.last = after.detach()
            # the state of attention is the whole past: carried on, it would grow for ever
            carried = t.order == "consecutive" and "attention" not in self.config.mixer.split("+")
            self.state = self.last if carried else None
        norm = optimizers.clip_grad_norm(self.optimizer.params, t.clip)
        if not math.isfinite(norm):
            broken = [p.name for p in self.optimizer.params
                      if p.grad is not None and not np.all(np.isfinite(p.grad))]
            raise self.diverged(f"the gradient of {broken[0]}")
        self.optimizer.lr_scale = optimizers.schedule(t.schedule, self.step, t.steps, t.warmup, t.final)
        fired = self.optimizer.step()
        self.step += 1
        mean, seconds = math.fsum(losses) / t.accumulate, time.perf_counter() - started
        return {"step": self.step, "loss": mean, "bits_per_byte": mean / math.log(2), "gradient_norm": norm,
                "learning_rate": self.optimizer.lr, "fired": fired,
                "tokens_per_second": t.accumulate * tokens[:, 1:].size / seconds}

    def loss(self, tokens: np.ndarray, past: State | None) -> tuple[Tensor, State]:
        """What training lowers; in the nested variant the levels move within the segment, too."""
        if self.config.cms == "nested":
            return self.model.context_loss(tokens, past)
        return self.model.loss(tokens, past)

    def diverged(self, where: str) -> FloatingPointError:
        return FloatingPointError(f"step {self.step + 1}: {where} is not finite; try a smaller --lr than "
                                  f"{self.training.lr:g}")

    # what a run shows ---------------------------------------------------------------------------------------

    def level_weights(self) -> dict[int, list[np.ndarray]]:
        """A copy of the weights of all levels, by chunk size."""
        return {chunk: [p.data.copy() for p in weights] for chunk, weights in self.levels.items()}

    def measure(self) -> dict[str, dict[str, float]]:
        """How far each level has moved since the last line of the log, and how much was written."""
        before, self.logged = self.logged, self.level_weights()
        moved = {str(chunk): norm([a - b for a, b in zip(self.logged[chunk], before[chunk], strict=True)])
                 / norm(before[chunk]) for chunk in before}
        return {"level_change": moved, "memory_writes": self.writes()}

    def writes(self) -> dict[str, float]:
        """Root mean square of what each kind of memory holds beyond its initial state after a segment."""
        found: dict[str, list[np.ndarray]] = {}
        for block, state in zip(self.model.blocks, self.last.blocks, strict=True):
            for name, pairs in (block.mixer.drift(state.mixer) if state.mixer else {}).items():
                found.setdefault(name, []).extend(change for change, _ in pairs)
        return {name: norm(arrays) / sum(a.size for a in arrays) ** 0.5 for name, arrays in found.items()}

    def sample(self) -> str:
        """Let the model go on from the beginning of the validation text; sample.txt keeps what it writes."""
        prompt = self.text.read(0, min(64, self.config.segment)).astype(np.int64)
        rng = np.random.default_rng([self.training.seed, self.step])
        written = self.model.generate(prompt, self.training.sample_tokens, temperature=0.8, top_p=0.95,
                                      seed=rng, stop=(0,))
        text = f"step {self.step}: {readable(prompt)} ▶ {readable([token for token, _ in written])}"
        append(self.folder / "sample.txt", text + "\n\n")
        return textwrap.indent(text, "  | ", lambda _: True)

    def evaluate(self) -> tuple[float, Text]:
        """Bits per byte on validation text, all levels standing still, and the bytes it was measured on."""
        losses, seen, t = [], [], self.training
        with no_grad():
            for tokens in fixed(self.text, t.batch, self.config.segment, t.validation):
                losses.append(self.model.loss(tokens)[0].item() * tokens[:, 1:].size)
                seen.append(tokens[:, 1:].astype(np.uint8).tobytes())
        read = b"".join(seen)
        return math.fsum(losses) / len(read) / math.log(2), Text([Document("measured", read, len(read))])


def options(training: Training) -> dict[str, Any]:
    """The optimiser's own options: numbers, true, false as in JSON; anything else is a word."""
    found = {}
    for option in training.options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"the optimiser's option {option!r} has no value; write name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@contextmanager
def one_more_step() -> Iterator[list[bool]]:
    """Ctrl+C once leaves a note in the list, to be seen after the step; twice, it is what it always is."""
    asked: list[bool] = []

    def note(*_: Any) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def norm(arrays: Sequence[np.ndarray]) -> float:
    return math.sqrt(float(sum(np.sum(np.square(a, dtype=np.float64)) for a in arrays)))


def readable(tokens: Any) -> str:
    """Text, what cannot be printed written as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in decode(tokens))


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def write_text(path: Path, text: str) -> None:
    """Write a file that is at every moment either the old one or the new one, whole."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The steps in log.jsonl, up to a line that a full disk or a power cut left unfinished."""
    lines = []
    with suppress(ValueError, FileNotFoundError):
        for text in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(text))
    return [line for line in lines if "loss" in line]


# Beginning and end ------------------------------------------------------------------------------------------


def begin(preset: str, config: Config, training: Training) -> Run:
    """A new run in a folder of its own."""
    least, here = 16 * hope.count(config), machine_memory()
    if least > here:
        raise ValueError(f"weights, gradients and two moments alone take {amount(least)}, this machine has "
                         f"{amount(here)}; --dry-run says what a run would take")
    folder = Path(training.out or f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    return Run(folder, preset, config, training, corpus(training)).begin()


def resume(folder: Path, given: dict[str, Any]) -> Run:
    """The run in a folder, as of its last checkpoint; what is given may change training, not the model."""
    saved = read_json(folder / "config.json")
    if not {"preset", "config", "training", "data"} <= set(saved):
        raise ValueError(f"{folder / 'config.json'} was not written by a run")
    for name in given:
        if name in {f.name for f in fields(Config)} | {"out"}:
            raise ValueError(f"{name} is one of the things a resumed run keeps; start a new run to change it")
    config, training = settings(saved["preset"], flat(saved) | given)
    run = Run(folder, saved["preset"], config, training, corpus(training))
    if run.corpus.manifest() != saved["data"]:
        raise ValueError("the data is not what this run began with; its hash differs")
    run.restore().describe()
    return run


def choose(device: str, matmul: str = "float32") -> tuple[Any, str]:
    """gpu/ if a card is to be used, else None; and the choice in words. ValueError says why there is no card.

    The root knows of no card: this name is all it has of gpu/, and only to hand it to Python when a run begins.
    """
    place = "the CPU"
    if device != "cpu":
        try:
            card = importlib.import_module("gpu")
            if not (why := card.problem()):
                return card, card.describe()
        except ModuleNotFoundError as error:
            why = f"there is no {error.name}: this checkout is not whole"
        if device == "cuda":
            raise ValueError(f"device cuda: {why}")
        place = f"the CPU ({why})"
    if matmul != "float32":
        raise ValueError(f"matmul {matmul} is for a card, and this run is on {place}; --matmul float32")
    return None, place


def corpus(training: Training) -> Corpus:
    if training.random_data:
        found = Corpus.random(training.seed)
    else:
        found = Corpus.from_paths(training.data) if training.data else Corpus.default()
    if found.note:
        print(found.note)
    return found


def introduce(run: Run) -> None:
    """Say what is about to happen."""
    for part in (run.config, run.training):
        values = "  ".join(f"{name}={typed(value)}" for name, value in asdict(part).items())
        print(textwrap.fill(values, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    print(f"{run.preset}: {hope.count(run.config):,} parameters, {len(run.segments.text):,} bytes of text, "
          f"steps {run.step} to {run.training.steps}; everything goes to {run.folder}")
    print(f"on {run.place}")


def finish(run: Run) -> bool:
    """Measure, compare, draw, sample, and say it all; returns whether Ctrl+C was pressed meanwhile."""
    bits, text = run.evaluate()
    seconds, found = time.perf_counter() - run.started, {"this run": bits}
    if run.training.baseline:
        other = Run(run.folder / "baseline", run.preset, hope.transformer(run.config),
                    replace(run.training, minutes=0.0, baseline=False), run.corpus)
        (other.restore if (other.folder / "checkpoint.npz").exists() else other.begin)()
        print(f"\nbaseline: a Transformer of {hope.count(other.config):,} parameters, same data, same steps")
        if other.train(run.step):
            return True
        found["transformer"] = other.evaluate()[0]
    found |= compressed_bits_per_byte(text)
    line = {"step": run.step, "validation_bits_per_byte": found, "bytes": len(text), "seconds": seconds}
    append(run.folder / "log.jsonl", json.dumps(line) + "\n")
    draw_loss(run, found)
    draw_levels(run)
    print(f"\n{run.sample()}\n\nbits per byte of {len(text):,} bytes of validation text, step {run.step}:")
    for name, bits in sorted(found.items(), key=lambda item: item[1]):
        print(f"  {bits:6.3f}  {name}")
    return False


# Pictures ---------------------------------------------------------------------------------------------------

COLOURS = ("#1f5fa8", "#d1731f", "#2f8f4e", "#8a4fa3", "#7a7a7a")


def canvas(title: str, *heights: float) -> tuple[Any, Any]:
    """A figure with panels of these heights, one above the other; it needs no display."""
    from matplotlib.figure import Figure  # here, for it takes as long as the rest of the start
    from matplotlib.ticker import MaxNLocator

    figure = Figure((8, 4.5), dpi=140, layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    figure.suptitle(title, x=0.01, ha="left", size=11)
    return figure, panels


def draw_loss(run: Run, found: dict[str, float]) -> None:
    """loss.png: bits per byte of every step, and on validation text."""
    figure, (panel,) = canvas(f"Bits per byte while training, and on validation text (dashed): {run.preset}, "
                              f"{hope.count(run.config):,} parameters", 1)
    colours = dict(zip(("this run", "transformer"), COLOURS, strict=False))
    for name, folder in (("this run", run.folder), ("transformer", run.folder / "baseline")):
        if name in found:
            lines = read_log(folder)
            steps, bits = [line["step"] for line in lines], [line["bits_per_byte"] for line in lines]
            panel.plot(steps, bits, color=colours[name], alpha=0.3, linewidth=0.8)
            panel.plot(steps, smooth(bits), color=colours[name], linewidth=2)
    low, high = min(panel.get_ylim()[0], *found.values()) - 0.1, max(panel.get_ylim()[1], *found.values())
    place = low
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        colour, place = colours.get(name, "0.45"), max(value, place + 0.045 * (high - low))  # labels apart
        panel.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        panel.annotate(f"{name} {value:.2f}", (1.01, place), xycoords=panel.get_yaxis_transform(),
                       color=colour, va="center", size=9)
    panel.set(xlabel="step", xlim=(0, run.step), ylim=(low, high))
    figure.savefig(run.folder / "loss.png")


def smooth(values: Sequence[float]) -> list[float]:
    """A centred mean over a thirtieth of the values, over fewer near the ends."""
    reach = [min(len(values) // 60, i) for i in range(len(values))]
    return [float(np.mean(values[i - r:i + r + 1])) for i, r in enumerate(reach)]


def draw_levels(run: Run, close: int = 64) -> None:
    """levels.png: which level moved at which of the last steps, and how far at every step."""
    figure, (raster, path) = canvas("Which level moved when, and how far", 1, 1.7)
    lines = read_log(run.folder)
    steps = np.array([line["step"] for line in lines])
    for row, chunk in enumerate(run.levels):
        colour = COLOURS[row % len(COLOURS)]
        moves = np.array([line["level_change"][str(chunk)] for line in lines])
        raster.barh(row, 0.9, left=steps[-close:][moves[-close:] > 0] - 0.45, height=0.8, color=colour)
        path.semilogy(steps[moves > 0], moves[moves > 0], ".", markersize=4, color=colour)
    raster.set(yticks=range(len(run.levels)), yticklabels=[f"chunk size {chunk}" for chunk in run.levels],
               ylim=(len(run.levels) - 0.5, -0.5), xlim=(max(run.step - close, 0) + 0.5, run.step + 0.5))
    raster.set_xlabel(f"step, the last {min(close, run.step)}")
    for row, label in enumerate(raster.get_yticklabels()):
        label.set_color(COLOURS[row % len(COLOURS)])
    path.set(xlabel="step", ylabel="change of weights ‖Δθ‖/‖θ‖", xlim=(0, run.step + 0.5))
    figure.savefig(run.folder / "levels.png")


# The travel stories -----------------------------------------------------------------------------------------
#
# Small stories in plain words, learned one after the other: what does each model keep of the first?

TELLERS = {"transformer": "attention", "rnn": "rnn", "cell": "cell", "banks": "banks", "hope": "titans"}


def stories_parser() -> Parser:
    """The flags of `--preset stories`: some for all, some for each model."""
    made = Parser(prog="train.py --preset stories", allow_abbrev=False,
                  description="Stories learned one after the other, and what each model keeps of the first.")
    for name, default, meaning in (
            ("stories", ("train", "flight"), "which, in the order they are learned"),
            ("file", str(Path(__file__).with_name("stories.txt")), "where they are written"),
            ("models", tuple(name for name in TELLERS if name != "banks"), "which learn them"),
            ("steps", 60, "for each story"),
            ("width", 32, "of every model"), ("seeds", 3, "runs of every model"),
            ("out", "", "the folder; none = runs/stories-DATE-TIME")):
        made.add_argument(f"--{name}", default=default, help=f"{meaning} [{typed(default)}]",
                          **reading(name, default))
    for model in TELLERS:
        own = {"lr": 1e-2, "optimizer": "adamw", "chunks": (1, 4, 16) if model == "hope" else (1,)}
        for flag, value in own.items():
            made.add_argument(f"--{model}-{flag}", default=value, help=f"[{typed(value)}]", **reading(flag, value))
    return made


def stories(arguments: Sequence[str]) -> int:
    """Let every model learn the stories one after the other; print, write and draw what it keeps."""
    given = stories_parser().parse_args(arguments)
    found = read_stories(given.file)
    for what, asked, known in (("story", given.stories, found), ("model", given.models, TELLERS)):
        if wrong := [name for name in asked if name not in known]:
            raise ValueError(f"there is no {what} {wrong[0]!r}{nearest(wrong[0], list(known))}; choose from "
                             f"{', '.join(known)}")
    if len(given.stories) < 2 or min(given.seeds, given.steps) < 1:
        raise ValueError("give two stories or more, at least one seed, at least one step")
    vocabulary = sorted({word for name in given.stories for words in found[name] for word in words})
    tasks = [next_words(found[name], vocabulary) for name in given.stories]
    folder = Path(given.out or f"runs/stories-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    with tqdm(total=len(given.models) * given.seeds * len(tasks) * given.steps, unit="step") as bar:
        for name in given.models:
            own = {key: getattr(given, f"{name}_{key}") for key in ("lr", "optimizer", "chunks")}
            config = Config(width=given.width, layers=1, heads=2, segment=max(t.shape[1] for t, _ in tasks),
                            vocabulary=len(vocabulary), mixer=TELLERS[name], chunks=own["chunks"],
                            hidden=max(1, 2 * given.width // len(own["chunks"])), memory_chunk=4,
                            projection_chunk=4)
            paths[name] = np.array([tell(config, own["optimizer"], own["lr"], tasks, given.steps, seed, bar)
                                    for seed in range(given.seeds)])  # (seeds,stories·steps+1,stories)
    lines = [f"{'next words right, mean of ' + str(given.seeds) + ' seeds':36}"
             + "".join(f"{'after ' + name:>18}" for name in given.stories)]
    for name, path in paths.items():
        for i, story in enumerate(given.stories):
            after = path[:, given.steps::given.steps, i].mean(axis=0)
            lines.append(f"{name + ', ' + story:36}" + "".join(f"{share:18.3f}" for share in after))
    print("\n".join(lines))
    write_text(folder / "stories.json", json.dumps(
        {"settings": vars(given), "accuracy": {name: path.tolist() for name, path in paths.items()}}))
    draw_stories(paths, given.stories, given.steps, folder)
    print(f"written to {folder}")
    return 0


def tell(config: Config, optimizer: str, lr: float, tasks: Sequence[Any], steps: int, seed: int, bar: Any
         ) -> list[list[float]]:
    """One model, story after story: the share of next words right in each, before and after every step."""
    model = Hope(config, np.random.default_rng(seed))
    rung = optimizers.build(optimizer, model.groups(), lr)

    def right() -> list[float]:
        with no_grad():
            guesses = [np.argmax(model(tokens)[0].data, axis=-1) for tokens, _ in tasks]
        return [float(np.mean((guess == targets)[targets != IGNORE]))
                for guess, (_, targets) in zip(guesses, tasks, strict=True)]
    path = [right()]
    for tokens, targets in tasks:
        for _ in range(steps):
            rung.zero_grad()
            cross_entropy(model(tokens)[0], targets, ignore_index=IGNORE).backward()
            optimizers.clip_grad_norm(rung.params, 1.0)
            rung.step()
            path.append(right())
            bar.update()
    return path


def draw_stories(paths: dict[str, np.ndarray], names: Sequence[str], steps: int, folder: Path) -> None:
    """stories.png: how much of the first story each model knows while it learns the others."""
    figure, (panel,) = canvas(f"What is kept of the story {names[0]!r} while others are learned", 1)
    for colour, (name, path) in zip(COLOURS, paths.items(), strict=False):
        panel.plot(path[:, :, 0].mean(axis=0), color=colour, linewidth=2, label=name)
        panel.plot(path[:, :, 0].T, color=colour, linewidth=0.6, alpha=0.4)
    for i, name in enumerate(names):
        panel.axvline(i * steps, color="0.7", linewidth=0.8)
        panel.annotate(f" learning {name}", (i * steps, 1.04), size=8, annotation_clip=False)
    panel.legend(frameon=False)
    panel.set(xlabel="step", ylabel="next words right", ylim=(0, 1.02), xlim=(0, len(names) * steps))
    figure.savefig(folder / "stories.png")


# Without training -------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of Python and of what is installed for it."""
    found = {"python": platform.python_version()}
    for package in ("numpy", "numba", "tqdm", "matplotlib"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> str:
    """The processor, its cores and the memory, in words."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux only
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {cores()}, {amount(machine_memory())} of memory"


def cores() -> str:
    """How many of them this process may use."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{n} core{'s' * (n != 1)}"


def doctor() -> int:
    """Print what this machine offers."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    limit, root = os.environ.get("NUMBA_NUM_THREADS"), Path(__file__).resolve().parent
    cache = Path(os.environ.get("NUMBA_CACHE_DIR", root / "__pycache__"))
    writable = os.access(cache if cache.exists() else cache.parent, os.W_OK)
    card, place = choose("auto")
    seconds = one_layer(PRESETS["tiny"][0], 4)[1]  # compiles whatever is not in the cache
    report({
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "machine": f"{machine()}, {platform.platform()}",
        "BLAS": f"{blas['name']} {blas['version']}",
        "threads": f"{cores()}, " + (f"limited to {limit}" if limit else "no limit (--threads sets one)"),
        "kernels": f"compiled: {', '.join(kernels.compiled()) or 'none, plain NumPy runs, slower'}",
        "cache": f"{cache} is {'writable' if writable else 'read-only: every start may compile again'}",
        "GPU": f"usable: {place}" if card else f"not usable: {place.removeprefix('the CPU (')[:-1]}",
        "speed": f"{1 / seconds:,.0f} tokens/s through one layer of the preset tiny, there and back",
    })
    return 0


def dry_run(preset: str, config: Config, training: Training) -> int:
    """Print what a run would take: from shapes, and from one layer that is measured."""
    model, tokens = Hope(config, None), training.batch * config.segment
    weights, flops = 4 * hope.count(config), hope.flops_per_token(config)
    kept, (memories, levels) = optimizer_bytes(model, training), state_bytes(model)
    remembered, seconds = one_layer(config, training.batch)
    graph, total = remembered * config.layers * tokens, tokens * training.accumulate * training.steps
    print(f"{preset}, without training it:")
    report({
        "parameters": f"{hope.count(config):,}, {amount(weights)}",
        "state": f"{amount(memories)} per sequence; learning while reading adds {amount(levels)}",
        "FLOPs": f"{flops:,} per token to read, {3 * flops:,} to train",
        "memory": f"about {amount(2 * weights + kept + graph)}: weights and gradients {amount(2 * weights)}, "
                  f"{training.optimizer} {amount(kept)}, one step's way back {amount(graph)} (estimate)",
        "data": f"{total:,} tokens in {training.steps:,} steps of {tokens * training.accumulate:,}",
        "duration": f"about {duration(total * seconds * config.layers)} here (estimate: one layer, timed)",
    })
    return 0


def report(lines: dict[str, str]) -> None:
    for name, text in lines.items():
        print(f"{name:>11}  {text}")


def one_layer(config: Config, batch: int) -> tuple[float, float]:
    """Bytes kept for the way back, and seconds there and back, per token and layer: measured on one layer."""
    model, length = Hope(replace(config, layers=1), np.random.default_rng(0)), min(config.segment, 512)
    rows = max(1, min(batch, 2**19 // (config.width * length)))
    tokens = np.zeros((rows, length + 1), dtype=np.int64)
    tracemalloc.start()
    held = model.loss(tokens)
    remembered, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held[0].backward()
    del held
    started = time.perf_counter()  # only now is everything compiled
    model.loss(tokens)[0].backward()
    return remembered / tokens[:, 1:].size, (time.perf_counter() - started) / tokens[:, 1:].size


def fitting(run: Run) -> str:
    """What would fit, for a run that did not: one sequence through one layer is measured, where the run was."""
    config, small = run.config, "not even one sequence would fit; choose a smaller --segment, --width or --layers"
    try:
        if run.card:
            model, tokens = Hope(replace(config, layers=1), np.random.default_rng(0)), (1, config.segment + 1)
            each = run.card.held(run.card.to_device(model), np.zeros(tokens, dtype=np.int64))
        else:
            each = one_layer(config, 1)[0] * config.segment
    except MemoryError:
        return small
    weights, kept = 4 * hope.count(config), optimizer_bytes(Hope(config, None), run.training)
    room = (run.card.memory() if run.card else machine_memory()) - 2 * weights - kept
    batch = min(int(0.7 * room / (each * config.layers)), run.training.batch // 2)  # the way back needs room, too
    return f"--batch {batch} would fit (estimate)" if batch > 0 else small


def state_bytes(model: Hope) -> tuple[int, int]:
    """Running state of a sequence after a segment: its memories, and what its levels add when they learn."""
    memories = sum(block.mixer.cost(model.config.segment).numbers for block in model.blocks)
    levels = sum(p.size * (1 + (level.chunk > 1))  # the drift, and what is gathered until the level is due
                 for block in model.blocks for level in block.cms.levels for p in level.parameters())
    return 4 * memories, 4 * levels


def optimizer_bytes(model: Hope, training: Training) -> int:
    """What the optimiser keeps: found by one step on a small stand-in for every group, and scaled up."""
    total = 0.0
    for group in model.groups(training.weight_decay):
        shape = (64, 64)[:group["params"][0].ndim]
        toy = SimpleNamespace(data=np.ones(shape, np.float32), grad=np.ones(shape, np.float32), tap=None)
        optimizer = optimizers.build(training.optimizer, [group | {"params": [toy]}], training.lr,
                                     **options(training))
        optimizer.step()
        kept = sum(np.asarray(value).nbytes for value in optimizer.state[0].values())
        total += kept / toy.data.size * sum(p.size for p in group["params"])
    return round(total)


def machine_memory() -> float:
    """Bytes of memory in this machine; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def amount(n: float) -> str:
    """Bytes in words."""
    return scaled(n, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1})


def duration(seconds: float) -> str:
    """Seconds in words."""
    return scaled(seconds, {"years": 3.156e7, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1})


def scaled(n: float, units: dict[str, float]) -> str:
    name = next((name for name, unit in units.items() if n >= unit), list(units)[-1])
    return f"{n / units[name]:.3g} {name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 for a run that failed, 2 for bad input, 130 after Ctrl+C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        first = Parser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset")
        chosen, others = first.parse_known_args(arguments)
        if chosen.preset == "stories":
            return stories(others)
        command, given = parse(arguments)
        if command.doctor:
            return doctor()
        preset = command.preset or "nano"
        if command.config:
            read = read_json(Path(command.config))
            given = flat(read) | given
            if not command.preset and read.get("preset") in PRESETS:
                preset = read["preset"]
        if command.dry_run:
            return dry_run(preset, *settings(preset, given))
        if command.resume and command.preset:
            raise ValueError("a resumed run keeps its preset; leave out --preset")
        run = (resume(Path(command.resume), given) if command.resume else
               begin(preset, *settings(preset, given)))
        if run.training.threads:
            kernels.set_threads(run.training.threads)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except MemoryError as error:
        return fail(MemoryError(f"out of memory while a model was made: {error or 'choose a smaller one'}"), 1)
    if not run.training.quiet:
        introduce(run)
    try:
        interrupted, exhausted = run.train(run.training.steps) or finish(run), False
    except KeyboardInterrupt:
        interrupted, exhausted = True, False
    except (OSError, FloatingPointError) as error:
        return fail(error, 1, f"; {run.folder} keeps step {run.saved}")
    except Exception as error:  # what the step held is freed when this block is left
        if not (isinstance(error, MemoryError) or (run.card and run.card.full(error))):
            raise
        interrupted = exhausted = True
    if exhausted:
        short = MemoryError(f"out of memory on {run.place}: {fitting(run)}")
        return fail(short, 1, f"; {run.folder} keeps step {run.saved}")
    if interrupted or run.step < run.training.steps:
        threads = f" --threads {run.training.threads}" if run.training.threads else ""
        print(f"\nstep {run.saved} of {run.training.steps} is saved; to go on:\n"
              f"    python train.py --resume {run.folder}{threads}")
    return 130 if interrupted else 0


def fail(error: Exception, code: int, more: str = "") -> int:
    """Say in one line what went wrong."""
    text = str(error)
    if isinstance(error, OSError):
        text = str(error.strerror or error) + (f": {error.filename}" if error.filename else "")
    print(f"train.py: error: {text}{more}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
