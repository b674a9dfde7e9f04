"""What do the tokens of an adopted model stand for?  Its own tokenizer and chat template, told in two files of its run.

    tokenizer.json   as it was found; the package `tokenizers` computes with it
    adopted.json     the other texts of its folder: config.json, where a text ends, how a conversation is written
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import Tokens, Vocabulary
from tools.folder import read_json, write_text

TOKENIZER, ABOUT = "tokenizer.json", "adopted.json"
TEXTS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")


class Words(Vocabulary):
    """The vocabulary of an adopted model."""

    unit = "token"

    def __init__(self, folder: Path):
        about = read_json(folder / ABOUT)
        if not {"files", "config"} <= about.keys():
            raise ValueError(f"{folder / ABOUT} was not written by apps.adopt")
        texts, config = about["files"], about["config"]
        said, spoken = (self.read(name, texts) for name in (TEXTS[0], TEXTS[2]))
        self.tokenizer = made = tokenizer(folder / TOKENIZER)
        self.pieces = pieces(made)
        self.size, self.lengths = len(self.pieces), np.array([len(piece) for piece in self.pieces])
        begins = made.encode("", add_special_tokens=True).ids
        self.start = begins[0] if begins else None
        self.marks = {name: token["content"] if isinstance(token := said.get(name), dict) else token or ""
                      for name in ("bos_token", "eos_token")}
        ends = spoken.get("eos_token_id", config.get("eos_token_id"))
        found = [*(ends if isinstance(ends, list) else [ends]), made.token_to_id(self.marks["eos_token"])]
        self.ends = tuple(dict.fromkeys(end for end in found if end is not None))
        if not self.ends:
            raise ValueError(f"{folder} does not say with which token a text ends (eos_token)")
        template = said.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((one["template"] for one in template if one.get("name") == "default"), None)
        self.template: str | None = texts.get("chat_template.jinja", template)
        self.taught = bool(self.template)

    @staticmethod
    def read(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
        """What is in a JSON file of theirs; nothing if it is not there."""
        try:
            found = json.loads(texts.get(name, "{}"))
        except ValueError as error:
            raise ValueError(f"{name} of the adopted model is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{name} of the adopted model holds a {type(found).__name__}, not settings")
        return found

    def encode(self, text: bytes) -> Tokens:
        """Tokens of a text, which may spell special ones; what begins a text is not added."""
        ids = self.tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
        return np.array(ids, np.int64)

    def spell(self, tokens: Sequence[int]) -> bytes:
        """The bytes that tokens stand for; special ones, and those that the tokenizer lacks, for none."""
        return b"".join(self.pieces[token] for token in tokens if token < len(self.pieces))

    def sizes(self, tokens: Any) -> Tokens:
        found = np.asarray(tokens, np.int64)
        return np.where(found < self.size, self.lengths[np.minimum(found, self.size - 1)], 0)

    def conversation(self, messages: Sequence[tuple[str, str]], answer: bool = True) -> str | None:
        if not self.template:
            return None
        said = [{"role": role, "content": content} for role, content in messages]
        return rendered(self.template, messages=said, add_generation_prompt=answer, **self.marks)


def tokenizer(path: Path) -> Any:
    """What is in tokenizer.json; ValueError if that cannot be read."""
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"{path} needs the package tokenizers: pip install -r apps/adopt/requirements.txt") from None
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # it raises nothing more special
        raise ValueError(f"{path} is no tokenizer: {error}") from None


def rendered(template: str, **values: Any) -> str:
    """A chat template with values in its places; ValueError if it refuses them. It may compute, and do nothing else."""
    try:
        import jinja2.sandbox
    except ImportError:
        raise ValueError("the model's chat template needs the package jinja2: pip install -r "
                         "apps/adopt/requirements.txt") from None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(**values)
    except jinja2.TemplateError as error:
        raise ValueError(f"the model's chat template cannot write this conversation: {error}") from None


def pieces(made: Any) -> list[bytes]:
    """The bytes that each token stands for, by its id; none for special ones."""
    description = json.loads(made.to_str())
    by_bytes = '"ByteLevel"' in json.dumps(description["decoder"])
    letter = {character: byte for byte, character in enumerate(byte_letters())}
    special = {token["id"]: b"" if token["special"] else token["content"].encode()
               for token in description["added_tokens"]}
    found = []
    for i in range(max(made.get_vocab().values()) + 1):
        token = made.id_to_token(i)
        if token is None or i in special:
            found.append(special.get(i, b""))
        elif by_bytes:
            found.append(bytes(letter[c] for c in token) if all(c in letter for c in token) else token.encode())
        elif len(token) == 6 and token.startswith("<0x"):
            found.append(bytes([int(token[3:5], 16)]))
        else:
            found.append(token.replace("▁", " ").encode())
    return found


def byte_letters() -> list[str]:
    """The letters in which byte-level tokenizers write bytes: themselves if printable, else those from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def check(source: Path, config: Mapping[str, Any]) -> None:
    """ValueError unless the tokenizer in a folder of theirs fits the model."""
    highest, size = max(tokenizer(source / TOKENIZER).get_vocab().values()), config.get("vocab_size")
    if isinstance(size, int) and highest >= size:  # what else is wrong with it, whoever reads the model says
        raise ValueError(f"{source / TOKENIZER} has tokens up to {highest}, and the model a vocabulary of {size}: "
                         "they do not belong together")


def adopt(source: Path, run: Path, config: Mapping[str, Any]) -> None:
    """Write both files of a run from a folder of theirs."""
    shutil.copyfile(source / TOKENIZER, run / TOKENIZER)
    texts = {name: (source / name).read_text(encoding="utf-8") for name in TEXTS if (source / name).exists()}
    write_text(run / ABOUT, json.dumps({"config": config, "files": texts}, indent=1))


def give_back(run: Path, folder: Path) -> None:
    """Write what `adopt` has read into a folder of theirs."""
    shutil.copyfile(run / TOKENIZER, folder / TOKENIZER)
    texts = read_json(run / ABOUT)["files"]
    for name in TEXTS:  # and no other, whatever somebody else's run may name
        if name in texts:
            write_text(folder / name, texts[name])
