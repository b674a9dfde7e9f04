"""Which documents are left out?  Rules on length, characters, repetition and language, then duplicates.

The measures and their limits are those of Gopher (Rae et al. 2021, appendix A) and C4 (Raffel et al. 2020, §2.2); every
limit is an option. A document is counted at the first rule that it breaks. Near duplicates are documents whose sets of
word n-grams have a Jaccard similarity above a limit, as MinHash estimates it (`datasketch`); the first stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from corpora.lowest import Lowest
from corpora.mixture import Mixture
from corpora.pool import ordered, pieces
from corpora.sources import Document, documents, needed
from tools.folder import write_text

SAMPLE = 5  # removed documents kept of each rule
SHOWN = 400  # characters of each
HEAD = 4000  # characters by which a language is told
STOP = frozenset("the be to of and that have with".split())


@dataclass(frozen=True)
class Limits:
    """What a document must keep to; a limit of None is no limit."""

    languages: tuple[str, ...] = field(default=("en",), metadata={"note": "ISO 639-1, or none: any language"})
    confidence: float | None = field(default=0.5, metadata={"note": "least probability of the language"})
    min_words: int | None = field(default=50, metadata={"note": "words"})
    max_words: int | None = field(default=100_000, metadata={"note": "words"})
    min_word_length: float | None = field(default=3.0, metadata={"note": "mean letters in a word"})
    max_word_length: float | None = field(default=10.0, metadata={"note": "mean letters in a word"})
    max_symbols: float | None = field(default=0.1, metadata={"note": "# and … per word"})
    min_alphabetic: float | None = field(default=0.8, metadata={"note": "share of words with a letter"})
    max_bullets: float | None = field(default=0.9, metadata={"note": "share of lines that begin with a bullet"})
    max_ellipses: float | None = field(default=0.3, metadata={"note": "share of lines that end with …"})
    max_unprintable: float | None = field(default=0.01, metadata={"note": "share of characters that are none"})
    min_stop_words: int | None = field(default=2, metadata={"note": "of eight English words, in English alone"})
    max_repeated_lines: float | None = field(default=0.3, metadata={"note": "share of lines that came before"})
    max_repeated_paragraphs: float | None = field(default=0.3, metadata={"note": "share of paragraphs likewise"})
    max_repeated_line_text: float | None = field(default=0.2, metadata={"note": "share of characters in such lines"})
    max_top_2_gram: float | None = field(default=0.2, metadata={"note": "characters in the most frequent 2 words"})
    max_top_3_gram: float | None = field(default=0.18, metadata={"note": "characters in the most frequent 3 words"})
    max_top_4_gram: float | None = field(default=0.16, metadata={"note": "characters in the most frequent 4 words"})
    max_repeated_5_grams: float | None = field(default=0.15, metadata={"note": "characters in 5 words that recur"})
    max_repeated_10_grams: float | None = field(default=0.1, metadata={"note": "characters in 10 words that recur"})
    near: float | None = field(default=0.8, metadata={"note": "Jaccard similarity of near duplicates"})
    shingle: int = field(default=5, metadata={"note": "words in an n-gram that similarity is told by"})
    permutations: int = field(default=128, metadata={"note": "hashes in a MinHash"})

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{f.name} is {value}: at least 0 is needed")
        if self.near is not None and not 0 < self.near <= 1:
            raise ValueError(f"near is {self.near}: a similarity above 0 and up to 1 is needed")
        if self.shingle < 1 or self.permutations < 2:
            raise ValueError("shingle must be at least 1, permutations at least 2")
        known = set(identifier().labels) if self.languages else set()
        if wrong := sorted(set(self.languages) - known):
            raise ValueError(f"there is no language {wrong[0]!r}: known are {' '.join(sorted(known))}")


class Measured:
    """A text, and what rules ask of it, each computed once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    @cached_property
    def letters(self) -> int:
        """Characters within words."""
        return sum(map(len, self.words))

    @cached_property
    def language(self) -> tuple[str, float]:
        return tuple(identifier().classify(" ".join(self.text[:HEAD].split())))  # type: ignore[return-value]

    def share(self, count: int, whole: int) -> float:
        return count / max(whole, 1)

    def repeated(self, parts: Sequence[str]) -> float:
        return self.share(len(parts) - len(set(parts)), len(parts))

    def repeated_text(self, parts: Sequence[str]) -> float:
        counts = Counter(parts)
        return self.share(sum(len(p) * (n - 1) for p, n in counts.items()), sum(map(len, parts)))

    def grams(self, n: int) -> list[tuple[str, ...]]:
        return list(zip(*(self.words[i:] for i in range(n)), strict=False))

    def top(self, n: int) -> float:
        """Share of the characters of words that lie in the most frequent n-gram, if it recurs."""
        if not (counts := Counter(self.grams(n))):
            return 0.0
        gram, count = max(counts.items(), key=lambda item: (item[1], item[0]))
        return self.share(count * sum(map(len, gram)), self.letters) if count > 1 else 0.0

    def recurring(self, n: int) -> float:
        """Share of the characters of words that lie in any n-gram that stood before, each counted once."""
        seen, covered = set(), np.zeros(len(self.words), bool)
        for i, gram in enumerate(self.grams(n)):
            if gram in seen:
                covered[i : i + n] = True
            seen.add(gram)
        inside = sum(len(word) for word, twice in zip(self.words, covered, strict=True) if twice)
        return self.share(inside, self.letters)


# option: how it is measured; in the order in which they are tried
RULES: dict[str, Callable[[Measured], float]] = {
    "min_words": lambda m: len(m.words),
    "max_words": lambda m: len(m.words),
    "max_unprintable": lambda m: m.share(sum(n for c, n in Counter(m.text).items() if strange(c)), len(m.text)),
    "min_word_length": lambda m: m.share(m.letters, len(m.words)),
    "max_word_length": lambda m: m.share(m.letters, len(m.words)),
    "max_symbols": lambda m: m.share(sum(map(m.text.count, ("#", "…", "..."))), len(m.words)),
    "min_alphabetic": lambda m: m.share(sum(any(map(str.isalpha, word)) for word in m.words), len(m.words)),
    "max_bullets": lambda m: m.share(sum(line[0] in "•‣-*" for line in m.lines), len(m.lines)),
    "max_ellipses": lambda m: m.share(sum(line.endswith(("…", "...")) for line in m.lines), len(m.lines)),
    "max_repeated_lines": lambda m: m.repeated(m.lines),
    "max_repeated_paragraphs": lambda m: m.repeated(m.paragraphs),
    "max_repeated_line_text": lambda m: m.repeated_text(m.lines),
    "max_top_2_gram": lambda m: m.top(2),
    "max_top_3_gram": lambda m: m.top(3),
    "max_top_4_gram": lambda m: m.top(4),
    "max_repeated_5_grams": lambda m: m.recurring(5),
    "max_repeated_10_grams": lambda m: m.recurring(10),
    "min_stop_words": lambda m: len(STOP.intersection(map(str.lower, m.words))),
}
DUPLICATES = ("exact duplicate", "near duplicate")
ORDER = (*RULES, "language", *DUPLICATES)


def strange(character: str) -> bool:
    """Whether a character is none that is read."""
    return character == "\ufffd" or not (character.isprintable() or character.isspace())


@lru_cache(1)
def identifier() -> Any:
    """The language detector, which brings its model along."""
    needed("py3langid", "the rule on languages")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def broken(text: str, limits: Limits) -> tuple[str, Any] | None:
    """The first rule that a text breaks, and what was measured; None if it keeps to all."""
    measured = Measured(text)
    for option, measure in RULES.items():
        limit = getattr(limits, option)
        if limit is None or (option == "min_stop_words" and "en" not in limits.languages):
            continue
        value = measure(measured)
        if value < limit if option.startswith("min") else value > limit:
            if option != "min_stop_words" or measured.language[0] == "en":
                return option, round(value, 4)
    if limits.languages:
        language, sure = measured.language
        if language not in limits.languages or (limits.confidence is not None and sure < limits.confidence):
            return "language", f"{language} {sure:.2f}"
    return None


def judge(found: Sequence[Document], limits: Limits) -> list[tuple[tuple[str, Any] | None, bytes, Any]]:
    """Of each document: the rule it breaks, the hash of its words, and its MinHash."""
    return [judged(document.text.decode("utf-8", "replace"), limits) for document in found]


def judged(text: str, limits: Limits) -> tuple[tuple[str, Any] | None, bytes, Any]:
    words = text.casefold().split()
    key = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()
    why = broken(text, limits)
    if why or limits.near is None:
        return why, key, None
    from datasketch import LeanMinHash, MinHash

    made = MinHash(num_perm=limits.permutations, seed=1)
    n = min(limits.shingle, max(len(words), 1))
    made.update_batch({" ".join(words[i : i + n]).encode("utf-8", "surrogatepass") for i in range(len(words) - n + 1)})
    return None, key, LeanMinHash(made)


class Report:
    """What each rule removed: documents, bytes, and a sample, the same whichever process was first."""

    def __init__(self) -> None:
        self.kept, self.bytes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()  # by source and rule
        self.samples = {rule: Lowest[dict[str, Any]](SAMPLE) for rule in ORDER}

    def add(self, source: str, document: Document, rule: str, value: Any) -> None:
        self.kept[source, rule] += 1
        self.bytes[source, rule] += len(document.text)
        if rule:
            shown = document.text[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
            key = hashlib.sha256(document.name.encode("utf-8", "surrogatepass") + document.text).digest()
            self.samples[rule].add(key, 1, {"name": document.name, "measured": value, "text": shown})

    def total(self, counts: Counter[tuple[str, str]], rule: str) -> int:
        return sum(n for (_, broken), n in counts.items() if broken == rule)

    def result(self, mixture: Mixture) -> dict[str, Any]:
        """As JSON can hold it; every rule is there, whatever it removed."""
        def of(source: str, rule: str) -> dict[str, int]:
            return {"documents": self.kept[source, rule], "bytes": self.bytes[source, rule]}
        return {"kept": {"documents": self.total(self.kept, ""), "bytes": self.total(self.bytes, "")},
                "rules": {rule: {"removed": self.total(self.kept, rule), "bytes": self.total(self.bytes, rule),
                                 "sample": list(self.samples[rule])} for rule in ORDER},
                "sources": {source.name: {"kept": of(source.name, ""), "removed": {
                    rule: of(source.name, rule) for rule in ORDER if self.kept[source.name, rule]}}
                    for source in mixture.sources}}


def kept(mixture: Mixture, limits: Limits, processes: int, report: Report) -> Iterator[tuple[str, Document]]:
    """The documents that stay, with their source, in their order; `report` hears of all."""
    lsh = None
    if limits.near is not None:
        lsh = needed("datasketch", "the rule on near duplicates").MinHashLSH(limits.near, limits.permutations)
    seen, stayed = set[bytes](), list[tuple[str, Any]]()
    drawn: list[tuple[str, list[Document]]] = []

    def asked() -> Iterator[tuple[list[Document], Limits]]:
        for source in mixture.sources:
            for some in pieces(documents(source), lambda document: len(document.text)):
                drawn.append((source.name, some))
                yield some, limits

    for verdicts in ordered(judge, asked(), processes):
        name, found = drawn.pop(0)
        for document, (why, key, minhash) in zip(found, verdicts, strict=True):
            if not why and key in seen:
                why = DUPLICATES[0], key.hex()[:12]
            elif not why and lsh and (others := lsh.query(minhash)):
                similar, other = max((stayed[i][1].jaccard(minhash), -i) for i in others)
                if similar >= (limits.near or 0):
                    why = DUPLICATES[1], f"{similar:.2f} of {stayed[-other][0]}"
            report.add(name, document, *(why or ("", None)))
            if not why:
                seen.add(key)
                if lsh:
                    lsh.insert(len(stayed), minhash)
                    stayed.append((document.name, minhash))
                yield name, document


def write(folder: Path, mixture: Mixture, limits: Limits, processes: int = 1) -> dict[str, Any]:
    """Write what stays as NAME.jsonl.zst for every source, a mixture of them, and report.json; returns the report.

    The files get their names when all is done: what is broken off leaves nothing behind.
    """
    zstandard = needed("zstandard", folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is in use; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    report, parts, started = Report(), {}, time.perf_counter()
    try:
        with ExitStack() as stack:
            for source in mixture.sources:
                if "/" in source.name or source.name.startswith("."):
                    raise ValueError(f"the source {source.name!r} cannot be the name of a file: give it another")
                path = folder / f"{source.name}.jsonl.zst.part"
                parts[source.name] = path, stack.enter_context(zstandard.open(path, "wt", encoding="utf-8"))
            for name, document in kept(mixture, limits, processes, report):
                row = {"text": document.text.decode("utf-8", "replace"), "name": document.name}
                parts[name][1].write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n")
        found = report.result(mixture) | {"limits": asdict(limits), "seconds": round(time.perf_counter() - started, 2)}
        for path, _ in parts.values():
            os.replace(path, path.with_suffix(""))
        said = json.dumps(found, indent=1, ensure_ascii=False)  # a file's name may be no UTF-8
        write_text(folder / "report.json", said.encode("utf-8", "replace").decode())
        write_text(folder / "mixture.json", json.dumps({"validation": mixture.validation, "sources": {
            source.name: {"paths": f"{source.name}.jsonl.zst"} | ({"weight": source.weight} if source.weight else {})
            for source in mixture.sources}}, indent=1))
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        raise
    return found


def table(report: dict[str, Any]) -> Iterator[str]:
    """The report, as lines for a screen."""
    documents = report["kept"]["documents"] + sum(rule["removed"] for rule in report["rules"].values())
    yield f"{'rule':>24} {'removed':>10} {'bytes':>14}"
    for rule, found in report["rules"].items():
        yield f"{rule.replace('_', ' '):>24} {found['removed']:>10,} {found['bytes']:>14,}"
    yield f"{'kept':>24} {report['kept']['documents']:>10,} {report['kept']['bytes']:>14,}   of {documents:,} documents"
