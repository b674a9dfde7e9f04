"""Shards are read where they lie, by weight, to the bit; what is damaged is named; runs in their tokens do it all."""

import json
import math
import os
import shutil
import sys
import tracemalloc
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_shards import END, MERGED, TOKENS, lines, make, sha, tokenizer, tokens_of

import shards
import train
from apps import chat, demonstration, evaluate
from apps.runs import Run
from data import Changed, Document, Segments, Text, Vocabulary, fixed
from shards import Shards, Words, is_shards
from tools.folder import read_json, read_log

few = settings(max_examples=30, deadline=None)
SMALL = ("--preset", "tiny", "--layers", "1", "--segment", "32", "--width", "16", "--hidden", "16", "--batch", "2",
         "--sample-tokens", "4", "--quiet")
LESSON = ("5 and the 5 are 10é\n", "7 and the 7 are 14é\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources of which the smaller is wanted three times as often."""
    return make(tmp_path_factory.mktemp("data") / "shards", {"large": (1, lines(0, 60), lines(1, 8)),
                                                            "small": (3, lines(2, 20), lines(3, 4))})


class Plain(Vocabulary):
    """Numbers that stand for nothing."""

    unit = "token"


def of(*tokens: list[int], weights=None):
    """A train text with a source for each of these lists of tokens."""
    documents = [Document(str(i), np.array(its), len(its)) for i, its in enumerate(tokens)]
    text = shards.ShardedText(documents, "train", Plain())
    about = [{"source": str(i), "tokens": len(its)} for i, its in enumerate(tokens)]
    text.parts = shards.parts(about, dict(zip("0123456789", weights or [1] * len(tokens), strict=False)), shards.Path())
    return text


def begun(capsys, *arguments):
    """What train.py says, and how it ends."""
    code = train.main([*SMALL, *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def arrays(run):
    with np.load(run / "checkpoint.npz", allow_pickle=False) as found:
        return {name: (found[name].dtype, found[name].tobytes()) for name in found.files}


# reading ----------------------------------------------------------------------------------------------------

def test_shards_are_read_as_their_tokens_one_after_another(folder):
    corpus = Shards(folder)
    for side, seeds in (("train", (0, 60, 2, 20)), ("validation", (1, 8, 3, 4))):
        documents = [*lines(*seeds[:2]), *lines(*seeds[2:])]
        tokens = [token for text in documents for token in (*tokens_of(text), END)]
        text = corpus.split(side)
        assert len(text) == len(tokens) and len(text.documents) > 1
        rng = np.random.default_rng(0)
        for start, stop in [(0, len(text)), (0, 0), *np.sort(rng.integers(len(text) + 1, size=(40, 2)))]:
            assert text.read(int(start), int(stop)).tolist() == tokens[start:stop]
        assert corpus.words.spell(text.read(0, len(text))).decode() == "".join(documents)
        assert corpus.words.count(text.read(0, len(text))) == len("".join(documents).encode())
    every = [text for seeds in ((0, 60), (1, 8), (2, 20), (3, 4)) for text in lines(*seeds)]
    assert corpus.size == len("".join(every).encode())


def test_shards_are_mapped_and_a_few_of_many_are_open(tmp_path):
    rng = np.random.default_rng(0)
    made = make(tmp_path, {"a": (1, ["x" * 40] * (2 * shards.MAPPED), ["y" * 40])}, size=10)
    corpus = Shards(made)
    text = corpus.split("train")
    assert len(text.documents) == 2 * shards.MAPPED
    for start in rng.permutation(len(text) - 40).tolist():
        text.read(start, start + 40)
    if os.path.isdir("/dev/fd"):
        assert len(os.listdir("/dev/fd")) < shards.MAPPED + 60
    big = tmp_path / "big"
    make(big, {"a": (1, ["x"], ["y"])})
    np.save(big / "train-00000.npy", rng.integers(256, size=1 << 24).astype("<u2"))  # 32 MB
    index = read_json(big / "index.json")
    index["shards"][0] |= {"tokens": 1 << 24, "sha256": sha(big / "train-00000.npy")}
    (big / "index.json").write_text(json.dumps(index), encoding="utf-8")
    tracemalloc.start()
    text = Shards(big).split("train")
    read = list(islice(Segments(text, 4, 64), 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read) == 20 and peak < 5e6


@given(st.lists(st.tuples(st.integers(6, 90), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 99),
       st.integers(1, 3))
@few
def test_a_mixture_keeps_its_shares_at_every_moment_and_repeats_nothing_within_a_pass(sources, seed, batch):
    at = np.cumsum([0, *(size for size, _ in sources)])
    text = of(*(list(range(a, b)) for a, b in pairwise(at)), weights=[weight for _, weight in sources])
    segments, total = Segments(text, batch, 5, seed=seed), sum(weight for _, weight in sources)
    drawn, seen = np.zeros(len(sources)), {}
    for _ in range(30):
        for row in next(segments):
            assert np.array_equal(row, np.arange(row[0], row[0] + 6))  # never across two sources
            source = int(np.searchsorted(at, row[0], "right")) - 1
            assert row[-1] < at[source + 1]
            drawn[source] += 1
            seen.setdefault(source, []).append(int(row[0]))
        wanted = np.array([weight for _, weight in sources]) / total * drawn.sum()
        assert np.all(drawn - wanted < 1 + 1e-9)
    for source, starts in seen.items():
        size = sources[source][0]
        first = starts[:max(1, (size - 1) // 5 - 1)]  # of an epoch whatever its phase
        assert len(set(first)) == len(first) and all(abs(a - b) >= 5 for a in first for b in first if a != b)


def test_a_single_source_is_read_in_the_order_of_a_text():
    tokens = list(range(200))
    plain = Text([Document("a", np.array(tokens), 200)], "train", Plain())
    for order in ("shuffled", "consecutive"):
        one, other = (Segments(text, 2, 7, order, 3) for text in (plain, of(tokens)))
        for a, b in islice(zip(one, other, strict=True), 60):
            assert np.array_equal(a, b)


@given(st.integers(0, 99), st.integers(0, 40), st.sampled_from(["shuffled", "consecutive"]))
@few
def test_a_mixture_goes_on_bit_for_bit_at_any_point(seed, steps, order):
    text = of(list(range(50)), list(range(50, 80)), list(range(80, 200)), weights=[5, 2, 1])
    segments = Segments(text, 2, 6, order, seed)
    for _ in islice(segments, steps):
        pass
    state = json.loads(json.dumps(segments.state()))
    rest = [next(segments) for _ in range(30)]
    again = Segments(text, 2, 6, order, seed)
    again.restore(state)
    assert again.state() == state
    for tokens in rest:
        assert np.array_equal(next(again), tokens)
    assert again.state() == segments.state()


def test_a_source_that_is_shorter_than_a_segment_is_named():
    with pytest.raises(ValueError, match=r"the 1 text has 20 tokens, but 31 are needed \(1 × segment 30 \+ 1\)"):
        Segments(of(list(range(99)), list(range(20))), 2, 30)
    one = next(Segments(of(list(range(99)), list(range(20))), 1, 30, order="consecutive"))  # across all sources
    assert one.tolist() == [list(range(31))]


# what cannot be read ----------------------------------------------------------------------------------------

def rewritten(name, change):
    def damage(folder):
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8"))
        change(found)
        path.write_text(json.dumps(found), encoding="utf-8")
    return damage


def flip(folder):
    data = bytearray((folder / "train-00001.npy").read_bytes())
    data[-2] ^= 1
    (folder / "train-00001.npy").write_bytes(data)


def other_kind(folder):
    np.save(folder / "train-00001.npy", np.zeros((4, 5), np.int32))
    rewritten("index.json", lambda index: index["shards"][1].update(sha256=sha(folder / "train-00001.npy")))(folder)


@pytest.mark.parametrize(("damage", "words"), [
    (flip, "train-00001.npy is damaged, or another's: its sha256 is"),
    (other_kind, "train-00001.npy holds int32 (4, 5), and index.json says"),
    (lambda f: (f / "train-00001.npy").unlink(), "there is no file"),
    (lambda f: (f / "train-00001.npy").write_bytes(b""), "train-00001.npy is damaged"),
    (lambda f: (f / "index.json").write_text("{"), "index.json is damaged"),
    (lambda f: (f / "index.json").unlink(), "index.json"),
    (lambda f: (f / "vocabulary.json").unlink(), "vocabulary.json"),
    (rewritten("vocabulary.json", lambda v: v["tokens"].append("x")), "vocabulary.json is not the one"),
    (rewritten("vocabulary.json", lambda v: v.update(end=9999)), "vocabulary.json is no vocabulary"),
    (rewritten("vocabulary.json", lambda v: v["tokens"].append("€")), "are no bytes in Latin-1"),
    (rewritten("index.json", lambda i: i.update(version=2)), "version 2"),
    (rewritten("index.json", lambda i: i.update(dtype="int32")), "dtype 'int32'"),
    (rewritten("index.json", lambda i: i["shards"][0].pop("sha256")), "shard 0 has no sha256"),
    (rewritten("index.json", lambda i: i["shards"][0].update(file="../train.npy")), "not in this folder"),
    (rewritten("index.json", lambda i: i["shards"][0].update(source="nobody")), "of no source"),
    (rewritten("index.json", lambda i: i["sources"]["small"].update(weight=0)), "the source small the weight 0"),
    (rewritten("index.json", lambda i: i["sources"]["small"].pop("weight")), "the source small has no weight"),
    (rewritten("index.json", lambda i: i["sources"].update(small=3)), "the source small has no weight"),
    (rewritten("index.json", lambda i: i.update(shards=[s for s in i["shards"] if s["split"] == "train"])),
     "no shard of the split validation"),
    (lambda f: ((f / "tokenizer.json").write_text("{}") and rewritten("vocabulary.json", lambda v: v.update(
        tokenizer={"file": "tokenizer.json", "sha256": "0"}))(f)) or rewritten("index.json", lambda i: i[
            "vocabulary"].update(sha256=sha(f / "vocabulary.json")))(f), "tokenizer.json is not the one"),
])
def test_what_is_damaged_or_of_others_is_one_line_that_names_it(tmp_path, capsys, damage, words):
    folder = make(tmp_path / "shards", {"large": (1, lines(0, 30), lines(1, 4)),
                                        "small": (3, lines(2, 20), lines(3, 4))})
    damage(folder)
    assert is_shards(folder)
    code, _, err = begun(capsys, "--data", folder, "--out", tmp_path / "run")
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_shards_are_told_from_text_and_read_alone(folder, tmp_path, capsys):
    (tmp_path / "index.json").write_text('{"some": "other"}' * 99, encoding="utf-8")
    assert is_shards(folder) and not is_shards(tmp_path) and not is_shards(folder / "index.json")
    code, _, err = begun(capsys, "--data", folder, tmp_path)
    assert code == 2 and "a folder of shards is read alone" in err


def test_a_shard_that_shrinks_while_in_use_is_named_and_no_bus_error(tmp_path):
    made = make(tmp_path, {"a": (1, lines(0, 40), lines(1, 4))}, size=10**6)
    segments = Segments(Shards(made).split("train"), 2, 8)
    next(segments)
    with open(made / "train-00000.npy", "r+b") as file:
        file.truncate(200)
    with pytest.raises(Changed, match=r"train-00000.npy shrank from \d+ to 200 bytes"):
        for _ in range(50):
            next(segments)
    (made / "train-00000.npy").unlink()
    with pytest.raises(Changed, match="cannot be read any more"):
        next(segments)


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b"no array" * 9999),
                                   lambda path: np.save(path, np.zeros((9999, 2), np.float64))], ids=["text", "array"])
def test_a_shard_that_is_another_file_while_in_use_is_named(tmp_path, write):
    made = make(tmp_path, {"a": (1, lines(0, 40), lines(1, 4))}, size=10**6)
    segments = Segments(Shards(made).split("train"), 2, 8)
    write(made / "train-00000.npy")
    with pytest.raises(Changed, match=r"train-00000.npy is another file than at the start"):
        next(segments)


# the vocabulary ---------------------------------------------------------------------------------------------

def test_tokens_spell_bytes_and_are_counted_without_a_library(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    words = Words(folder)
    assert (words.size, words.ends, words.start, words.unit, words.taught) == (len(TOKENS), (END,), END, "token", False)
    tokens = np.array([[TOKENS.index("the"), END], [TOKENS.index("\xc3\xa9"), len(TOKENS) + 5]])
    assert words.spell(tokens.reshape(-1).tolist()) == "theé".encode()
    assert words.sizes(tokens).tolist() == [[3, 0], [2, 0]] and words.count(tokens) == 5
    assert words.spell([-1]) == words.spell([-100]) == b"" and words.sizes([-1, -100]).tolist() == [0, 0]
    assert words.spell(TOKENS.index("the")) == b"the"
    with pytest.raises(ValueError, match=r"there is no tokenizer.json and no tokenizer.model in"):
        words.encode(b"the")


def test_where_the_library_is_missing_or_the_tokenizer_is_broken_one_line_says_so(tmp_path, monkeypatch):
    make(tmp_path, {"a": (1, ["x"], ["y"])})
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ValueError, match=r"tokenizer.json needs the package tokenizers: pip install tokenizers"):
            Words(tmp_path).encode(b"the")
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer: "):
        Words(tmp_path).encode(b"the")


def test_new_text_is_encoded_exactly_as_the_library_does_and_bytes_that_are_no_text_by_themselves(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    make(tmp_path, {"a": (1, ["x"], ["y"])})
    tokenizer(tmp_path)
    words, made = Words(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("there is an area in the éther and 1000 ßs", "", "\n\n  the", "日本", "the\0and"):
        assert words.encode(text.encode()).tolist() == made.encode(text, add_special_tokens=False).ids
        assert words.spell(words.encode(text.encode())) == text.encode()
    assert words.encode(b"the")[0] == TOKENS.index("the") and len(MERGED) == len(TOKENS) - 257
    for strange in (b"the\xff\xfethe", b"\xc3", b"\xe6\x97"):
        assert words.spell(words.encode(strange)) == strange
    assert END not in words.encode(b"<end>") and words.spell(words.encode(b"<end>")) == b"<end>"


# a run ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Shards with the tokenizer beside them."""
    pytest.importorskip("tokenizers")
    made = make(tmp_path_factory.mktemp("known") / "shards", {"a": (1, lines(0, 80), lines(1, 8))})
    tokenizer(made)
    return made


@pytest.fixture(scope="module")
def run(known, tmp_path_factory):
    """A run that has learned a little."""
    where = tmp_path_factory.mktemp("runs") / "learned"
    assert train.main([*SMALL, "--data", str(known), "--out", str(where), "--steps", "200", "--lr", "0.01",
                       "--sample-every", "100"]) == 0
    return where


def test_a_run_on_shards_keeps_the_tokenizer_and_needs_no_library(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, out, err = begun(capsys, "--data", folder, "--out", tmp_path / "run", "--steps", 4, "--baseline")
    assert code == 0, err
    about = read_json(tmp_path / "run" / "config.json")
    assert about["config"]["vocabulary"] == len(TOKENS)
    assert about["data"]["tokenizer"] == {"name": "bytes and a few words", "size": len(TOKENS),
                                          "sha256": sha(folder / "vocabulary.json")}
    for where in (tmp_path / "run", tmp_path / "run" / "baseline"):
        assert (where / "vocabulary.json").read_bytes() == (folder / "vocabulary.json").read_bytes()
    assert "transformer" in out and "gzip" in out
    prompt = (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8")
    assert f"{lines(1, 8)[0][:40]}" in prompt


def test_bits_per_byte_are_nats_per_token_over_bytes_per_token(run):
    its = train.resume(run, {})
    bits, measured = its.evaluate()
    nats, size = 0.0, 0
    for tokens in fixed(its.text, its.training.batch, its.config.segment, its.training.validation):
        nats += its.model.loss(tokens)[0].item() * tokens[:, 1:].size
        size += sum(len(TOKENS[token]) for token in tokens[:, 1:].reshape(-1))
    assert size == len(measured) and bits == pytest.approx(nats / size / math.log(2)) and 0 < bits < 8
    its.segments.restore(its.segments.state() | {"epoch": 0, "position": 0})
    first, found = next(its.segments)[:, 1:], read_log(run)[0]
    each = first.size / sum(len(TOKENS[token]) for token in first.reshape(-1))
    assert each < 1 and found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) * each)


def test_validation_text_that_spells_nothing_is_refused_before_a_folder_is_made(tmp_path, capsys):
    where = make(tmp_path / "shards", {"a": (1, lines(0, 60), [""] * 100)})  # end after end
    code, _, err = begun(capsys, "--data", where, "--out", tmp_path / "run", "--steps", 2)
    assert code == 2 and err.count("\n") == 1 and "the validation text spells nothing" in err
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_mixture_goes_on_to_the_same_bits_and_from_there(folder, tmp_path, capsys):
    common = ("--data", folder, "--batch", 3)
    assert begun(capsys, *common, "--out", tmp_path / "whole", "--steps", 6)[0] == 0
    half = train.begin(*train.command.asked(*train.command.parse(
        [*SMALL, *map(str, common), "--out", str(tmp_path / "half"), "--steps", "6"])))
    assert not half.train(3)
    assert train.main(["--resume", str(tmp_path / "half")]) == 0
    assert arrays(tmp_path / "whole") == arrays(tmp_path / "half")
    assert train.main(["--from", str(tmp_path / "half"), "--out", str(tmp_path / "next"), "--steps", "2"]) == 0
    assert (tmp_path / "next" / "vocabulary.json").exists()
    index = read_json(folder / "index.json")
    index["sources"]["small"]["weight"] = 4
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "index.json").write_text(json.dumps(index), encoding="utf-8")
    capsys.readouterr()
    assert train.main(["--resume", str(tmp_path / "half"), "--steps", "8", "--data", str(moved)]) == 2
    assert "the data is not what this run began with" in capsys.readouterr().err


def test_a_run_in_other_tokens_does_not_start_on_shards(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a text of bytes, " * 200, encoding="utf-8")
    assert begun(capsys, "--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--steps", 2)[0] == 0
    assert train.main(["--from", str(tmp_path / "run"), "--data", str(folder), "--steps", "2"]) == 2
    err = capsys.readouterr().err
    assert "the shards are in tokens of the vocabulary bytes and a few words (268), and the model reads" in err


def test_a_run_on_shards_goes_on_learning_from_plain_text(run, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(LESSON) * 200, encoding="utf-8")
    assert train.main(["--from", str(run), "--data", str(tmp_path / "text.txt"), "--steps", "2", "--quiet",
                       "--out", str(tmp_path / "next")]) == 0
    assert Run.open(tmp_path / "next").words.pieces == Words(run).pieces


# programs ---------------------------------------------------------------------------------------------------

def test_chat_writes_and_learns_in_tokens(run):
    its = Run.open(run)
    talk = chat.Chat(its, chat.parser().parse_args(["", "--complete", "--max-tokens", "8", "--temperature", "0"]),
                     colours=False)
    said = "".join(talk.say(b"5 and the"))
    assert said and "\ufffd" not in said
    talk.command("/learn on")
    "".join(talk.say(LESSON[1].encode()))
    assert talk.session.learned >= len(LESSON[1].encode())
    assert "bits per byte of" in talk.command("/surprise")


def test_evaluation_measures_per_byte_and_lists_what_can_be_asked(run, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(LESSON) * 20, encoding="utf-8")
    asked = {"context": "5 and the 5 are", "choices": [" 10é", "@#$%"], "answer": 0}
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked), encoding="utf-8")
    common = ["--run", str(run), "--out", str(tmp_path / "out"), "--quiet"]
    assert evaluate.main(["text", *common, "--files", str(tmp_path / "text.txt"), "--learn", "all"]) == 0
    found = read_json(tmp_path / "out" / "text.json")["results"]
    assert 0 < found["all"]["bits per byte"] < found["off"]["bits per byte"] < 8
    assert evaluate.main(["multiple-choice", *common, "--questions", str(tmp_path / "questions.jsonl")]) == 0
    assert read_json(tmp_path / "out" / "multiple-choice.json")["results"]["per byte"] == 1
    assert evaluate.main(["--list", "--run", str(run)]) == 0
    assert "languages " not in capsys.readouterr().out
    assert evaluate.main(["languages", *common]) == 2 and "tokens of its own" in capsys.readouterr().err


def test_a_run_in_tokens_can_be_shipped(run, tmp_path, monkeypatch):
    written = "".join(lines(9, 20)).encode()
    text = Text([Document("a", written, len(written))], "validation")
    monkeypatch.setattr(demonstration.Corpus, "default", lambda: SimpleNamespace(split=lambda side: text))
    said = demonstration.keep(run, tmp_path / "shipped")
    assert "bits per byte in half precision" in said
    assert Run.open(tmp_path / "shipped").words.pieces == Words(run).pieces


def test_the_server_answers_reads_and_learns_in_tokens(run, tmp_path):
    for package in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(package)
    from test_serve import Running

    with Running(Run.open(run), tmp_path, longest=100) as server:
        text = LESSON[0]
        tokens = server.ok("/tokenize", prompt=text)["tokens"]
        assert tokens == Words(run).encode(text.encode()).tolist() and len(tokens) < len(text.encode())
        assert server.ok("/detokenize", tokens=tokens)["prompt"] == text
        read = server.ok("/v1/read", text=text, user="me", learn=True)
        assert read["bytes"] == len(text.encode()) and 0 < read["bits_per_byte"] < 8
        seen = [byte for piece in read["pieces"] for byte in piece["bytes"]]
        assert bytes(seen).decode() == text
        bits = [bit for piece in read["pieces"] for bit in piece["bits"]]
        assert sum(bits) / len(bits) == pytest.approx(read["bits_per_byte"])
        answer = server.ok("/v1/chat/completions", messages=[{"role": "user", "content": "5 and the 5"}], max_tokens=8,
                           logprobs=True, top_logprobs=2)
        assert len(answer["choices"][0]["logprobs"]["content"]) == answer["usage"]["completion_tokens"] <= 8
        about = server.client.get("/v1/models").json()["data"][0]["hope"]
        assert about["unit"] == "token" and not about["taught"]
        assert server.client.get("/tokenizer_info").json()["vocab_size"] == len(TOKENS)
