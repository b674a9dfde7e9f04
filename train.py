"""How is a model trained?  Read a segment, feel the surprise, send it back through every write, move.

    python train.py                                     train the preset nano on the text of this very Python
    python train.py --preset tiny --data notes.txt      another preset, your own text; every setting is a flag
    python train.py --data SHARDS                       text that corpora/ made tokens; the vocabulary goes with the run
    python train.py --resume runs/nano-20260101-120000  go on where a run stopped
    python train.py --from runs/nano-… --data B.txt     go on learning from a trained run, on other text
    python train.py --preset paper-1.3b --dry-run       what it would take
    python train.py --doctor                            what this machine offers

A run lives in a folder: config.json, log.jsonl, checkpoint.npz, loss.png, levels.png, sample.txt. On one
machine and one number of threads, N + M steps are, to the last bit, N steps, a stop, and M steps.

Settings and presets are in config.py; the command line, the folder, pictures and the machine are in tools/.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read as NumPy is loaded: the work is dealt out by the kernels
os.environ.setdefault("MKL_NUM_THREADS", "1")
if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import importlib
import json
import math
import shlex
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import hope
import kernels
import optimizers
from autograd import Tensor, no_grad
from config import Config, Training
from data import Changed, Corpus, Document, Segments, Text, Vocabulary, compressed_bits_per_byte, fixed
from hope import Hope, State
from shards import Shards, is_shards
from tools import checkpoint, command, console, folder, loggers, machine, plots, stopping
from tools.alone import Alone


class Run:
    """A model in training, and the folder it lives in."""

    def __init__(self, where: Path, preset: str, config: Config, training: Training, corpus: Corpus,
                 words: Vocabulary | None = None, ranks: Alone | None = None):
        self.words, self.ranks = words or corpus.words, ranks or Alone()
        if config.vocabulary < self.words.size:
            raise ValueError(f"vocabulary is {config.vocabulary}, too small for the {self.words.size} "
                             f"{self.words.unit}s of the data")
        self.folder, self.preset, self.config, self.training, self.corpus = where, preset, config, training, corpus
        if training.threads:
            kernels.set_threads(training.threads)
        loggers.expect(training.log)
        self.text = corpus.split("validation").encoded(self.words)
        self.text.require(1, config.segment)
        measured = fixed(self.text, training.batch, config.segment, training.validation)
        if not any(self.words.count(tokens[:, 1:]) for tokens in measured):
            raise ValueError("the validation text spells nothing, so no bits per byte can be told: give other text")
        self.segments = Segments(corpus.split("train").encoded(self.words), training.batch, config.segment,
                                 training.order, training.seed)
        self.model = Hope(config, np.random.default_rng(training.seed))
        self.gpu, self.place = machine.choose(training.device, training.matmul)
        if self.gpu:
            self.gpu.set_matmul(training.matmul)
            self.gpu.to_device(self.model)  # whatever is made from here on is made where the weights are
        self.optimizer = optimizers.build(training.optimizer, self.model.groups(training.weight_decay),
                                          training.lr, **training.rung())
        self.state: State | None = None  # what is carried from segment to segment
        self.last = State.start(config)  # what the last segment left behind, carried or not
        self.step = self.saved = 0
        self.before: tuple[Any, ...] = ()  # what an unfinished step must not change, of the last one that was begun
        self.best = math.inf  # validation bits per byte of the best checkpoint that was kept
        self.judged = 0  # the step of the last one
        self.started = time.perf_counter()

    # the loop -----------------------------------------------------------------------------------------------

    def train(self, until: int) -> bool:
        """Take steps up to step `until`, unless time is up or the program is asked to stop; returns whether it was."""
        t, started, stopped, telemetry = self.training, time.monotonic(), False, self.ranks.telemetry(self.model)
        unwritten: dict[str, Any] = {}  # the newest line, as long as it is not in the log

        def write(line: dict[str, Any], stop: bool = False) -> None:
            unwritten.update(line)
            if self.step % t.log_every == 0 or self.step == until or stop:
                self.log(unwritten | telemetry.measure(self.last))
                unwritten.clear()
        bar = tqdm(total=until, initial=self.step, unit="step", disable=t.quiet, dynamic_ncols=True,
                   mininterval=0.1 if sys.stderr.isatty() else 30)
        # numbers that are not finite are looked for, not warned of
        with (bar, stopping.heeded(self.safe, self.complete) as asked, self.ranks.in_step(),
              np.errstate(all="ignore")):
            try:
                while self.step < until and not self.ranks.any(asked):
                    if t.keep and self.judged < self.step and self.step % t.checkpoint_every == 0:
                        self.judge(self.evaluate()[0])  # here, so that a run that stopped before it goes on with it
                    line = self.advance(write)
                    bar.set_postfix_str("{loss:.3f} nats, {bits_per_byte:.3f} bits/byte, {tokens_per_second:.0f} "
                                        "tokens/s, moved {fired}".format(**line), refresh=False)
                    bar.update()
                    if t.sample_every and self.step % t.sample_every == 0 and self.step < until:
                        sample = self.sample()
                        if not t.quiet and self.ranks.rank == 0:
                            bar.write(sample)
                    if self.step % t.checkpoint_every == 0:
                        self.save()
                    if t.minutes and self.ranks.any(time.monotonic() - started > 60 * t.minutes):
                        break
            except KeyboardInterrupt:
                stopped = True
                self.undo()
            with stopping.whole():
                if unwritten:
                    write(unwritten, stop=True)
                if self.saved < self.step:
                    self.save()
            return self.ranks.any(stopped or asked)

    def advance(self, write: Callable[[dict[str, Any]], None] = lambda line: None) -> dict[str, Any]:
        """One step: predict, send the error back, move every level whose clock is due.

        Gives the line of the log, and to `write` as part of the step: a stop comes before both or after both.
        """
        t, started, consecutive = self.training, time.perf_counter(), self.training.order == "consecutive"
        found: list[tuple[float, int]] = []  # of every batch: its loss, its bytes
        self.before = self.segments.state(), self.state, self.last, self.step
        self.optimizer.zero_grad()
        for tokens, share in self.ranks.deal((next(self.segments) for _ in range(t.accumulate)), rows=consecutive):
            past = None if self.segments.restarted else self.state
            loss, after = self.loss(tokens, past)
            found.append((share * loss.item(), self.words.count(tokens[:, 1:]) if share else 0))
            if not math.isfinite(found[-1][0]):
                raise self.diverged(self.model.first_non_finite(tokens[:, :-1], past) or "the loss")
            self.ranks.backward(loss * (share / t.accumulate))
            self.last = after.detach()
            # the state of attention without a window is the whole past: carried on, it would grow for ever
            grows = "attention" in self.model.blocks[0].mixer.clocks and not self.config.window
            carried = consecutive and not grows
            self.state = self.last if carried else None
        self.ranks.reduce()
        norm = optimizers.clip_grad_norm(self.optimizer.params, t.clip, self.ranks.add)
        if not math.isfinite(norm):
            broken = self.ranks.gather([p.name for p in self.optimizer.params
                                        if p.grad is not None and not np.all(np.isfinite(p.grad))])
            raise self.diverged(f"the gradient of {broken[0]}")
        self.optimizer.lr_scale = optimizers.schedule(t.schedule, self.step, t.steps, t.warmup, t.final)
        with stopping.whole():
            fired = self.ranks.step(self.optimizer)
            self.step += 1
            losses, sizes = zip(*self.ranks.gather(found), strict=True)
            mean, seconds = math.fsum(losses) / t.accumulate, time.perf_counter() - started
            tokens_read = t.accumulate * t.batch * self.config.segment
            each = tokens_read / max(sum(sizes), 1)  # tokens per byte
            line = {"step": self.step, "loss": mean, "bits_per_byte": mean / math.log(2) * each, "gradient_norm": norm,
                    "learning_rate": self.optimizer.lr, "fired": fired,
                    "tokens_per_second": tokens_read / seconds}
            write(line)
        return line

    def loss(self, tokens: np.ndarray, past: State | None) -> tuple[Tensor, State]:
        """What training lowers; where levels learn in the context, they move within the segment, too."""
        if self.config.in_context:
            return self.model.context_loss(tokens, past)
        return self.model.loss(tokens, past)

    def undo(self) -> None:
        """Forget a step that was begun and not finished: weights move at its end, so it is as if it had not been."""
        if self.before and self.step == self.before[-1]:
            place, self.state, self.last, _ = self.before
            self.segments.restore(place)

    def diverged(self, where: str) -> FloatingPointError:
        return FloatingPointError(f"step {self.step + 1}: {where} is not finite; try a smaller --lr than "
                                  f"{self.training.lr:g}")

    def expect_finite(self) -> None:
        if broken := [p.name for p in self.optimizer.params if not np.all(np.isfinite(p.data))]:
            raise self.diverged(f"the weight {broken[0]}")

    # beginning and going on ---------------------------------------------------------------------------------

    def begin(self, exact: bool = True) -> Run:
        """Make the folder, or one beside it, with a first checkpoint in it; ValueError if that cannot be done.

        From another run come the weights, and the levels' clocks go on; what its optimiser remembered stays there.
        """
        if self.training.origin:
            weights, self.optimizer.clock = checkpoint.inherited(self.training.origin, self.config)
            self.model.load_state_dict(weights)
        self.ranks.meet(self)
        with folder.made(self.folder, exact) if self.ranks.rank == 0 else nullcontext(self.folder) as made:
            self.folder = self.ranks.first(lambda: made)
            if self.ranks.rank == 0:
                folder.describe(self.folder, self.preset, self.config, self.training, self.corpus.manifest())
                if self.training.origin:
                    folder.hand_down(checkpoint.find(self.training.origin).parent, self.folder)
                elif self.corpus.folder:
                    folder.hand_down(self.corpus.folder, self.folder)
            self.ranks.join(self)
            self.save()
        return self

    def restore(self) -> Run:
        """Go on from checkpoint.npz; ValueError if it is missing, damaged or of another model."""
        weights, state, optimizer, progress = checkpoint.read(self.folder, self.config)
        if self.training.steps < progress["step"]:
            raise ValueError(f"{self.folder} has taken {progress['step']} steps, and --steps {self.training.steps} is "
                             "fewer: give more, or leave it out")
        self.state = self.gpu.to_device(state) if self.gpu and state else state
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        self.segments.restore(progress["data"])
        self.step = self.saved = progress["step"]
        self.ranks.meet(self)
        self.ranks.join(self)
        lines = self.ranks.first(lambda: folder.rewind(self.folder, self.step))
        measured = [line for line in lines if "validation" in line]
        self.best = min((line["validation"] for line in measured), default=math.inf)
        self.judged = max((line["step"] for line in measured), default=0)
        return self

    def save(self) -> None:
        """Write checkpoint.npz: weights, optimiser and clocks, running state, step and place in the data.

        That is all: what is random follows from the seed, the step and the place.
        """
        self.expect_finite()
        with stopping.whole():
            if kept := self.ranks.whole(self.model, self.state, self.optimizer):
                checkpoint.write(self.folder, *kept, {"step": self.step, "data": self.segments.state()})
            self.saved = self.step

    def judge(self, bits: float) -> None:
        """Keep the newest checkpoint beside the last ones, and as the best if none took fewer bits per byte."""
        if self.ranks.rank == 0:
            checkpoint.keep(self.folder, self.saved, self.training.keep, best=bits < self.best)
        self.best, self.judged = min(bits, self.best), self.saved
        self.log({"step": self.saved, "validation": bits})

    # what a run shows ---------------------------------------------------------------------------------------

    def log(self, line: dict[str, Any]) -> None:
        if self.ranks.rank == 0:
            folder.append(self.folder / "log.jsonl", json.dumps(line) + "\n")
            self.loggers.write(line)

    @cached_property
    def loggers(self) -> loggers.Loggers:
        """Where else a line goes."""
        settings = {"preset": self.preset, **asdict(self.config), **asdict(self.training)}
        names = self.training.log if self.ranks.rank == 0 else ()
        return loggers.Loggers(names, self.folder, settings, self.step, self.config.chunks)

    def sample(self) -> str:
        """Let the model go on from the beginning of the validation text; sample.txt keeps what it writes."""
        self.expect_finite()
        prompt = self.text.read(0, min(64, self.config.segment)).astype(np.int64)
        rng, room = np.random.default_rng([self.training.seed, self.step]), self.config.positions - len(prompt)
        length = min(self.training.sample_tokens, room) if self.config.positions else self.training.sample_tokens
        try:
            written = [token for token, _ in self.model.generate(
                prompt, length, temperature=0.8, top_p=0.95, seed=rng,
                stop=self.words.ends)]
        except ValueError:  # probabilities that are no numbers, of weights that are
            raise self.diverged("a prediction") from None
        text = f"step {self.step}: {readable(prompt, self.words)} ▶ {readable(written, self.words)}"
        if self.ranks.rank == 0:
            folder.append(self.folder / "sample.txt", text + "\n\n")
        return textwrap.indent(text, "  | ", lambda _: True)

    def evaluate(self) -> tuple[float, Text]:
        """Bits per byte on validation text, all levels standing still, and the bytes it was measured on."""
        found: list[tuple[float, bytes]] = []  # of every batch: its loss, summed, and its bytes
        t = self.training
        with no_grad():
            for tokens, share in self.ranks.deal(fixed(self.text, t.batch, self.config.segment, t.validation)):
                loss = self.model.loss(tokens)[0].item() * tokens[:, 1:].size
                found.append((share * loss, self.words.spell(tokens[:, 1:].reshape(-1).tolist()) if share else b""))
        losses, seen = zip(*self.ranks.gather(found), strict=True)
        read = b"".join(seen)
        bits = math.fsum(losses) / len(read) / math.log(2)
        if not math.isfinite(bits):
            raise self.diverged("the loss of validation text")
        return bits, Text([Document("measured", read, len(read))])

    def complete(self) -> bool:
        return self.saved == self.step

    def safe(self) -> str:
        """What is kept if the program ends now, and how to go on."""
        threads = f" --threads {self.training.threads}" if self.training.threads else ""
        return (f"step {self.saved} of {self.training.steps} is saved; to go on: python train.py --resume "
                f"{shlex.quote(str(self.folder))}{threads}")


def readable(tokens: Any, words: Vocabulary) -> str:
    return console.readable(words.spell(np.asarray(tokens).tolist()).decode("utf-8", "replace"))


# Beginning and end ------------------------------------------------------------------------------------------


def begin(preset: str, config: Config, training: Training, ranks: Alone | None = None) -> Run:
    """A new run in a folder of its own."""
    machine.expect_room(config, training.batch if not ranks else 1)
    where = Path(training.out or f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    words = folder.vocabulary(checkpoint.find(training.origin).parent) if training.origin else None
    training = ranks.spread(training) if ranks else training
    return Run(where, preset, config, training, corpus(training), words, ranks).begin(exact=bool(training.out))


def resume(where: Path, given: dict[str, Any], ranks: Alone | None = None) -> Run:
    """The run in a folder, as of its last checkpoint; what is given may change training, not the model."""
    saved = folder.read_json(where / "config.json")
    preset, config, training = command.resumed(where, saved, given)
    run = Run(where, preset, config, training, corpus(training), folder.vocabulary(where), ranks)
    folder.expect_data(where, saved, run.corpus.manifest(), by_default=not training.data)
    run.restore()
    if run.ranks.rank == 0:
        folder.describe(where, preset, config, training, saved["data"])
    return run


def corpus(training: Training) -> Corpus:
    found: Corpus
    if training.random_data:
        found = Corpus.random(training.seed)
    elif any(map(is_shards, training.data)):
        if len(training.data) > 1:
            raise ValueError("a folder of shards is read alone; leave out the other --data")
        found = Shards(training.data[0])
    else:
        found = Corpus.from_paths(training.data) if training.data else Corpus.default()
    if found.note:
        print(found.note)
    return found


def introduce(run: Run) -> None:
    """Say what is about to happen."""
    if run.training.quiet:
        return
    print(command.described([run.config, run.training]))
    print(f"{run.preset}: {hope.count(run.config):,} parameters, {len(run.segments.text):,} {run.words.unit}s of text "
          f"and {len(run.text):,} held out, steps {run.step} to {run.training.steps}; everything goes to {run.folder}")
    print(f"on {run.place}")


def finish(run: Run) -> bool:
    """Measure, compare, sample, say it all and draw; returns whether it was asked to stop meanwhile."""
    bits, text = run.evaluate()
    if run.training.keep:
        run.judge(bits)
    seconds, found = time.perf_counter() - run.started, {"this run": bits}
    if run.training.baseline and (other := baseline(run)):
        print(f"\nbaseline: a Transformer of {hope.count(other.config):,} parameters, same data, same steps")
        if other.train(run.step):
            return True
        found["transformer"] = other.evaluate()[0]
    found |= compressed_bits_per_byte(text)
    run.log({"step": run.step, "validation_bits_per_byte": found, "bytes": len(text), "seconds": seconds})
    print(f"\n{run.sample()}\n\nbits per byte of {len(text):,} bytes of validation text, step {run.step}:")
    for name, bits in sorted(found.items(), key=lambda item: item[1]):
        print(f"  {bits:6.3f}  {name}")
    if run.ranks.rank == 0:
        plots.tried(lambda: plots.draw_loss(run.folder, f"{run.preset}, {hope.count(run.config):,} parameters", found),
                    lambda: plots.draw_levels(run.folder))
    if not run.training.quiet:
        console.what_now(run.folder)
    return False


def baseline(run: Run) -> Run | None:
    """The run of a Transformer of as many parameters, begun or as of its last checkpoint; None where there can be none.
    """
    training = replace(run.training, minutes=0.0, baseline=False, keep=0, origin="", log=())
    place = run.folder / "baseline"
    try:
        other = Run(place, run.preset, hope.transformer(run.config), training, run.corpus, run.words, run.ranks)
        (other.restore if run.ranks.first((place / checkpoint.LAST).exists) else other.begin)()
    except ValueError as error:  # one that was cut short, or of another version: it costs nothing else
        print(f"no baseline: {error}; move {place} away, and resume", file=sys.stderr)
        return None
    if run.ranks.rank == 0:
        folder.hand_down(run.folder, other.folder)
    return other


def opened(arguments: Sequence[str], held: ExitStack, ranks: Alone | None = None) -> Run | None:
    """The run that a command asks for; None if it asked for something else, which is done."""
    if command.wanted_preset(arguments) == "stories":  # by name only: nothing of ours imports apps/
        importlib.import_module("apps.stories").main(arguments)
        return None
    wanted, given = command.parse(arguments, __doc__)
    if wanted.resume:
        if not ranks or ranks.rank == 0:
            held.enter_context(folder.locked(Path(wanted.resume)))
        return resume(Path(wanted.resume), given, ranks)
    if wanted.doctor:
        machine.doctor()
    elif wanted.dry_run:
        machine.dry_run(*command.asked(wanted, given))
    else:
        run = begin(*command.asked(wanted, given), ranks)
        if run.ranks.rank == 0:
            held.enter_context(folder.locked(run.folder))
        return run
    return None


def main(arguments: Sequence[str] | None = None, ranks: Alone | None = None) -> int:
    """The command line, of one process or of one of several `ranks`.

    Returns 0, 1 for a run that failed, 2 for bad input, 128 and the signal if it was stopped.
    """
    run, failed, full = None, "", False
    console.ready()
    with ExitStack() as held, stopping.heeded(lambda: run.safe() if run else "nothing had begun") as asked:
        try:
            if not (run := opened(list(sys.argv[1:] if arguments is None else arguments), held, ranks)):
                return 0
            held.callback(run.loggers.close)
            introduce(run)
            stopped = run.train(run.training.steps) or finish(run)
        except KeyboardInterrupt:
            stopped = True
        except Exception as error:  # what the step held is freed when this block is left
            full = isinstance(error, MemoryError) or bool(run and run.gpu and run.gpu.full(error))
            if not (full or isinstance(error, (OSError, FloatingPointError, Changed if run else ValueError))):
                raise
            failed, stopped = console.reason(error), False
        if full:
            failed = "out of memory while a model was made: choose a smaller one" if not run else (
                f"out of memory on {run.place}: {machine.fitting(run.config, run.training, run.gpu)}")
        if failed:
            kept = f"; {run.folder} keeps step {run.saved}" if run else ""
            print(f"train.py: error: {failed}{kept}", file=sys.stderr)
            return 1 if run or full else 2
        if not run or stopped or run.step < run.training.steps:
            print(f"\n{run.safe() if run else 'stopped; nothing had begun'}")
        return asked.code if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
