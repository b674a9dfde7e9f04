"""What does each model keep of one story while it learns the next?

    python train.py --preset stories                                  two travel stories, four small models
    python train.py --preset stories --stories train,flight,bus --seeds 5

Small stories in plain words, learned one after the other, each by several models; what they know of the first is
asked after every step. Tokens are words here. stories.txt holds the stories; add your own.

Legend: B sentences of a story, T words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import optimizers
from autograd import no_grad
from config import Config, nearest
from data import IGNORE, Tokens
from hope import Hope
from layers import cross_entropy
from tools.command import Help, Parser, reading, typed
from tools.folder import made, write_text
from tools.plots import COLOURS, canvas, tried

TELLERS = {"transformer": "attention", "rnn": "rnn", "cell": "cell", "banks": "banks", "hope": "titans"}


def parser() -> Parser:
    """The flags of `--preset stories`: some for all, some for each model."""
    built = Parser(prog="train.py", allow_abbrev=False, formatter_class=Help,
                   description=__doc__)
    built.add_argument("--preset", choices=["stories"])
    for name, default, meaning in (
            ("stories", ("train", "flight"), "which, in the order they are learned"),
            ("file", str(Path(__file__).with_name("stories.txt")), "where they are written"),
            ("models", tuple(name for name in TELLERS if name != "banks"), "which learn them"),
            ("steps", 60, "for each story"),
            ("width", 32, "of every model"), ("seeds", 3, "runs of every model"),
            ("out", "", "the folder; none = runs/stories-DATE-TIME")):
        built.add_argument(f"--{name}", default=default, help=f"{meaning} [{typed(default)}]".replace("%", "%%"),
                           **reading(name, default))
    for model in TELLERS:
        own = {"lr": 1e-2, "optimizer": "adamw", "chunks": (1, 4, 16) if model == "hope" else (1,)}
        for flag, value in own.items():
            built.add_argument(f"--{model}-{flag}", default=value, help=f"[{typed(value)}]", **reading(flag, value))
    return built


def main(arguments: Sequence[str]) -> None:
    """Let every model learn the stories one after the other; print, write and draw what it keeps."""
    given = parser().parse_args(arguments)
    found = read_stories(given.file)
    rungs = [getattr(given, f"{name}_optimizer") for name in given.models if name in TELLERS]
    for what, asked, known in (("story", given.stories, found), ("model", given.models, TELLERS),
                               ("optimizer", rungs, optimizers.OPTIMIZERS)):
        if wrong := [name for name in asked if name not in known]:
            raise ValueError(f"there is no {what} {wrong[0]!r}{nearest(wrong[0], list(known))}; choose from "
                             f"{', '.join(known)}")
    if len(given.stories) < 2 or min(given.seeds, given.steps) < 1:
        raise ValueError("give two stories or more, at least one seed, at least one step")
    if short := [name for name in given.stories if max(map(len, found[name])) < 2]:
        raise ValueError(f"the story {short[0]!r} has sentences of one word only: nothing follows")
    vocabulary = sorted({word for name in given.stories for words in found[name] for word in words})
    tasks = [next_words(found[name], vocabulary) for name in given.stories]
    configs = {name: Config(width=given.width, layers=1, heads=2, segment=max(t.shape[1] for t, _ in tasks),
                            vocabulary=len(vocabulary), mixer=TELLERS[name], chunks=chunks,
                            hidden=max(1, 2 * given.width // max(len(chunks), 1)), memory_chunk=4, projection_chunk=4)
               for name in given.models for chunks in [getattr(given, f"{name}_chunks")]}
    paths = {}
    with (made(Path(given.out or f"runs/stories-{time.strftime('%Y%m%d-%H%M%S')}"), bool(given.out)) as folder,
          tqdm(total=len(given.models) * given.seeds * len(tasks) * given.steps, unit="step") as bar):
        for name, config in configs.items():
            optimizer, lr = getattr(given, f"{name}_optimizer"), getattr(given, f"{name}_lr")
            paths[name] = np.array([tell(config, optimizer, lr, tasks, given.steps, seed, bar)
                                    for seed in range(given.seeds)])  # (seeds,stories·steps+1,stories)
        write_text(folder / "config.json", json.dumps({"preset": "stories", "settings": vars(given)}, indent=1))
        write_text(folder / "stories.json", json.dumps({name: path.tolist() for name, path in paths.items()}))
    lines = [f"{'next words right, mean of ' + str(given.seeds) + ' seeds':36}"
             + "".join(f"{'after ' + name:>18}" for name in given.stories)]
    for name, path in paths.items():
        for i, story in enumerate(given.stories):
            after = path[:, given.steps::given.steps, i].mean(axis=0)
            lines.append(f"{name + ', ' + story:36}" + "".join(f"{share:18.3f}" for share in after))
    print("\n".join(lines))
    tried(lambda: draw(paths, given.stories, given.steps, folder))
    print(f"written to {folder}")


def read_stories(path: str | Path) -> dict[str, list[list[str]]]:
    """The stories of a plain text file: name → sentences, each a list of words.

    A line "# name" names the story of the sentences below it, one a line; a name without sentences is a note.
    ValueError for a file without stories.
    """
    found: dict[str, list[list[str]]] = {}
    name = ""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    for line in text.splitlines():
        if line.startswith("#"):
            name = line[1:].strip()
        elif words := line.split():
            found.setdefault(name, []).append(words)
    if not found or "" in found:
        raise ValueError(f"{path} holds no story: a line '# name', then one sentence a line")
    return found


def next_words(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> tuple[Tokens, Tokens]:
    """Sentences as tokens, the places of words in the vocabulary, and as targets, the words that follow."""
    number, length = {word: i for i, word in enumerate(vocabulary)}, max(map(len, sentences)) - 1
    tokens = np.zeros((len(sentences), length), np.int64)
    targets = np.full_like(tokens, IGNORE)
    for row, words in enumerate(sentences):
        numbers = [number[word] for word in words]
        tokens[row, : len(words) - 1], targets[row, : len(words) - 1] = numbers[:-1], numbers[1:]
    return tokens, targets


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


def draw(paths: dict[str, np.ndarray], names: Sequence[str], steps: int, folder: Path) -> None:
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
