"""What data.py promises: every byte once, the same order after a restart, constant memory, right answers."""

import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import time
import tracemalloc
from hashlib import sha256
from itertools import islice, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import data
from data import IGNORE, Corpus, Document, Segments, Text

few = settings(max_examples=60, deadline=None)
contents = st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


def document(name: str, source: bytes) -> Document:
    return Document(name, source, len(source))


def text_of(*sources: bytes) -> Text:
    return Text([document(str(i), source) for i, source in enumerate(sources)])


def random_corpus(seed: int, count: int) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [document(f"{i:04}", rng.bytes(int(rng.integers(50, 100)))) for i in range(count)]


def write(folder, **files: bytes) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


# --- tokens, documents, texts -------------------------------------------------------------------------------


@given(st.text(max_size=20))
def test_encoding_and_decoding_undo_each_other(text):
    tokens = data.encode(text)
    assert tokens.dtype == np.int64 and list(tokens) == list(text.encode("utf-8"))
    assert data.decode(tokens) == text


def test_a_character_cut_in_half_is_decoded_as_a_replacement_character():
    assert data.decode(data.encode("aé")[:-1]) == "a\ufffd"


@given(contents)
@few
def test_read_equals_naive_concatenation_for_every_range(sources):
    text, naive = text_of(*sources), b"\0".join(sources)
    assert len(text) == len(naive)
    for start, stop in product(range(len(naive) + 1), repeat=2):
        if start <= stop:
            read = text.read(start, stop)
            assert read.dtype == np.uint8 and read.tobytes() == naive[start:stop]


@pytest.mark.parametrize("start, stop", [(-1, 2), (2, 1), (0, 8), (8, 8)])
def test_reading_outside_a_text_is_an_error(start, stop):
    with pytest.raises(ValueError, match="text of 7 bytes"):
        text_of(b"abc", b"def").read(start, stop)


def test_a_read_looks_at_few_of_many_documents():
    class Watched(list):
        looked = 0

        def __getitem__(self, key):
            Watched.looked += 1
            return super().__getitem__(key)

    text = text_of(*[b"ab"] * 100_000)
    text._starts, text.documents = Watched(text._starts), Watched(text.documents)
    text.read(200_000, 200_004)
    assert 0 < Watched.looked < 40  # 17 are the bisection's


def test_files_and_memory_hold_the_same_text(tmp_path):
    sources = {f"f{i}.txt": bytes([65 + i]) * (i + 1) for i in range(20)}
    write(tmp_path, **sources)
    mapped = Corpus.from_paths([tmp_path])
    held = Corpus([document((tmp_path / name).as_posix(), sources[name]) for name in sorted(sources)])
    assert mapped.manifest() == held.manifest()
    for side in ("train", "validation"):
        texts = [corpus.split(side) for corpus in (mapped, held)]
        assert [d.name for d in texts[0].documents] == [d.name for d in texts[1].documents]
        np.testing.assert_array_equal(*[text.read(0, len(text)) for text in texts])


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="open files cannot be counted here")
def test_many_files_keep_few_open(tmp_path):
    for i in range(3 * data.OPEN_MAPS):
        (tmp_path / str(i)).write_text(str(i), encoding="utf-8")
    before = len(os.listdir("/dev/fd"))
    text = Corpus.from_paths(tmp_path).split("train")
    read = text.read(0, len(text)).tobytes()
    assert read.split(b"\0") == [d.name.rsplit("/")[-1].encode() for d in text.documents]
    assert len(os.listdir("/dev/fd")) <= before + data.OPEN_MAPS


def test_a_file_that_shrinks_while_in_use_is_named(tmp_path):
    write(tmp_path, book=b"x" * 1000)
    text = Corpus.from_paths(tmp_path / "book").split("train")
    write(tmp_path, book=b"x" * 10)
    with pytest.raises(ValueError, match=r"book shrank from 900 to 10 bytes"):
        text.read(0, 900)


def test_two_gigabytes_are_read_in_constant_memory(tmp_path):
    size, path = 2 << 30, tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(1_500_000_000)
        file.write(b"needle")
    started = time.perf_counter()
    tracemalloc.start()
    try:
        corpus = Corpus.from_paths(path)
        text = corpus.split("train")
        for order in ("shuffled", "consecutive"):
            for batch in islice(Segments(text, 4, 512, order), 20):
                assert batch.shape == (4, 513)
        assert sum(len(batch) for batch in data.fixed(corpus.split("validation"), 4, 512, 5)) == 20
        assert text.read(1_499_999_999, 1_500_000_007).tobytes() == b"\0needle\0"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(text) + len(corpus.split("validation")) == size
    assert peak < 1 << 20
    assert time.perf_counter() - started < 5


def test_hashing_and_compressing_take_constant_memory(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(24 << 20)
    large = Corpus.from_paths(tmp_path / "large").documents[0]
    peaks = []
    for work in (
        lambda: large.digest,
        lambda: data.compressed_bits_per_byte(Text([large]), 4 << 20),
        lambda: data.compressed_bits_per_byte(Text([large]), 24 << 20),
    ):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert large.digest == sha256(bytes(24 << 20)).hexdigest()
    assert peaks[0] < data.PIECE and peaks[2] - peaks[1] < data.PIECE and peaks[2] < 105_000_000


# --- the corpus ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return Corpus.default()


def test_the_default_corpus_is_the_same_twice(default):
    assert Corpus.default().manifest() == default.manifest()


def test_the_default_corpus_is_real_text_of_some_size(default):
    names = [d.name for d in default.documents]
    assert default.size > 5_000_000 and len(names) > 300
    assert {"topics/lambda", "stdlib/argparse.py", "stdlib/json/decoder.py"} <= set(names)
    assert names == sorted(names, key=lambda name: (not name.startswith("topics/"), name.split("/")))
    for d in default.documents:
        assert b"\0" not in d.source and d.source.decode("utf-8")


def test_the_default_corpus_holds_no_tests_and_no_installed_packages(default):
    for d in default.documents:
        assert not {"site-packages", "test", "tests", "idle_test", "pydoc_data"} & set(d.name.split("/"))


def test_what_is_not_utf8_is_no_part_of_the_default_corpus(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    write(tmp_path, **{"old.py": "ä".encode("latin-1"), "new.py": "ä".encode(), "notes.txt": b"text"})
    write(tmp_path / "test", **{"some.py": b"test"})
    monkeypatch.setattr(data.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [d.name for d in Corpus.default().documents if d.name.startswith("stdlib/")] == ["stdlib/new.py"]


def test_a_python_without_library_source_asks_for_files(tmp_path, monkeypatch):
    monkeypatch.setattr(data.sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"no library source is in .*python\.zip: give text files"):
        Corpus.default()


def test_the_default_corpus_holds_out_about_a_twentieth(default):
    train, validation = default.split("train"), default.split("validation")
    assert 0.02 < len(validation) / (len(train) + len(validation)) < 0.1
    assert not default.note


def test_a_manifest_survives_json_and_names_what_was_read(tmp_path):
    write(tmp_path, a=b"one", b=b"three")
    manifest = Corpus.from_paths(tmp_path).manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["documents"] == {(tmp_path / "a").as_posix(): 3, (tmp_path / "b").as_posix(): 5}
    assert manifest["bytes"] == 8


def test_a_manifest_changes_with_any_name_and_any_byte():
    variants = [("a", b"12"), ("b", b"12"), ("a", b"13"), ("a", b"123")]
    hashes = {Corpus([document(*v), document("z", b"z")]).manifest()["sha256"] for v in variants}
    assert len(hashes) == len(variants)


def test_folders_are_read_in_depth_in_order_and_without_hidden_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path, c=b"c", a=b"a", empty=b"", **{".hidden": b"no"})
    write(tmp_path / "b", y=b"y", x=b"x", copy_of_x=b"x")
    write(tmp_path / ".git", index=b"no")
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    names = [os.path.relpath(d.name, tmp_path) for d in Corpus.from_paths(tmp_path).documents]
    assert names == ["a", os.path.join("b", "copy_of_x"), os.path.join("b", "y"), "c"]


def test_files_folders_and_globs_can_be_mixed_and_named_twice(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(tmp_path, **{"a.txt": b"a", "b.txt": b"b", "c.md": b"c"})
    write(tmp_path / "sub", **{"d.txt": b"d"})
    monkeypatch.chdir(tmp_path)
    assert [d.name for d in Corpus.from_paths(["c.md", "*.txt", "a.txt", "sub"]).documents] == [
        "c.md", "a.txt", "b.txt", "sub/d.txt"]  # fmt: skip
    assert [d.name for d in Corpus.from_paths("**/*.txt").documents] == ["a.txt", "b.txt", "sub/d.txt"]


def test_a_name_with_brackets_is_a_name_before_it_is_a_glob(tmp_path):
    write(tmp_path, **{"a[1]": b"brackets", "a1": b"plain"})
    assert [d.size for d in Corpus.from_paths(tmp_path / "a[1]").documents] == [8]


@pytest.mark.parametrize(
    "paths, message",
    [
        (["missing.txt"], "nothing matches 'missing.txt' in .*: name files, folders, globs"),
        (["book", "*.tex"], r"nothing matches '\*\.tex'"),
        (["folder"], "'folder' holds no files: name a file or a folder with text in it"),
        (["nothing", "empty"], "all 2 files are empty: give at least one with text in it"),
        ([], "no paths given: name at least one file, folder or glob"),
    ],
)
def test_what_cannot_be_a_corpus_gets_one_clear_line(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write(tmp_path, book=b"text", nothing=b"", empty=b"")
    with pytest.raises(ValueError, match=message) as raised:
        Corpus.from_paths(paths)
    assert "\n" not in str(raised.value)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, secret=b"text")
    monkeypatch.setattr(data, "open", refuse, raising=False)  # permissions do not stop the superuser
    with pytest.raises(ValueError, match=r"cannot read .*secret \(Permission denied\): name what"):
        Corpus.from_paths(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_is_no_file_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="holds no files"):
        Corpus.from_paths(tmp_path / "pipe")


# --- the split ----------------------------------------------------------------------------------------------


@given(contents, st.randoms(use_true_random=False))
@few
def test_the_split_is_by_document_and_neither_side_is_empty(sources, random):
    corpus = Corpus([document(str(i), source) for i, source in enumerate(sources)])
    assume(len(corpus.documents) > 1)
    sides = [set(corpus.split(side).documents) for side in ("train", "validation")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(corpus.documents)
    shuffled = random.sample(corpus.documents, len(corpus.documents))
    assert set(Corpus(shuffled).split("validation").documents) == sides[1]


@given(seeds, st.integers(40, 120), st.binary(min_size=1, max_size=90))
@few
def test_a_new_document_moves_no_other(seed, count, added):
    documents = random_corpus(seed, count)
    sure = next(s for i in range(10_000) if sha256(s := b"%090d" % i).digest()[0] < 12)  # below 5 %
    documents.append(document("sure", sure))
    assume(added not in {d.source for d in documents})
    before = Corpus(documents)
    after = Corpus([document("new", added), *documents])
    for side in ("train", "validation"):
        kept = [d.name for d in after.split(side).documents if d.name != "new"]
        assert kept == [d.name for d in before.split(side).documents]


def test_about_a_twentieth_of_many_documents_is_held_out():
    corpus = Corpus(random_corpus(0, 4000))
    assert 0.04 < len(corpus.split("validation")) / corpus.size < 0.06


def test_a_large_document_is_never_held_out_beside_small_ones():
    for i in range(60):
        large = document("large", b"%d" % i + b"." * 5000)
        corpus = Corpus([large, document("small", b"s" * 300), document("tiny", b"t")])
        assert [d.name for d in corpus.split("validation").documents] == ["small"] and not corpus.note


def test_the_larger_of_two_documents_is_never_held_out():
    corpus = Corpus([document("large", b"." * 5000), document("tiny", b"tt")])
    assert [d.name for d in corpus.split("validation").documents] == ["tiny"]


def test_two_like_documents_are_split_between_the_sides_and_the_note_says_so():
    corpus = Corpus([document("a", b"a" * 100), document("b", b"b" * 100)])
    assert [len(corpus.split(side)) for side in ("train", "validation")] == [100, 100]
    assert corpus.note == "few documents: the validation text takes 50% of the bytes"


@given(st.binary(min_size=2, max_size=50))
@few
def test_a_single_document_is_split_by_position_and_the_note_says_so(source):
    corpus = Corpus([document("book", source), document("again", source)])
    train, validation = (corpus.split(s) for s in ("train", "validation"))
    assert train.read(0, len(train)).tobytes() + validation.read(0, len(validation)).tobytes() == source
    assert len(validation) == max(len(source) // 10, 1) and len(train) >= 1
    assert corpus.note == "book is the only document: its last tenth is the validation text"


def test_an_unknown_side_is_an_error_that_names_the_two():
    with pytest.raises(ValueError, match="no 'test' text: choose 'train' or 'validation'"):
        Corpus([document("a", b"abc")]).split("test")


# --- the order of reading -----------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.lists(st.integers(1, 2**61 - 2), min_size=1, max_size=6))
@few
def test_the_stateless_permutation_is_a_bijection(size, keys):
    assert sorted(data.permuted(i, size, keys) for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 5, 17])
def test_the_stateless_permutation_sends_everything_everywhere_equally_often(size):
    rng, times = np.random.default_rng(0), 300 * size
    counts = np.zeros((size, size))
    for _ in range(times):
        keys = rng.integers(1, 2**61 - 1, 6).tolist()
        counts[range(size), [data.permuted(i, size, keys) for i in range(size)]] += 1
    assert np.abs(counts - 300).max() < 6 * np.sqrt(300)


def place(text: Text, row: np.ndarray) -> int:
    whole, part = text.read(0, len(text)).tobytes(), row.astype(np.uint8).tobytes()
    assert whole.count(part) == 1
    return whole.index(part)


@given(seeds, st.integers(1, 40), st.integers(1, 60), st.integers(5, 12))
@few
def test_an_epoch_reads_every_byte_once_but_for_the_rests_at_both_ends(seed, extra, batch, segment):
    text = text_of(np.random.default_rng(1).bytes(segment * 5 + extra))
    segments, epochs = Segments(text, batch, segment, seed=seed), {0: [], 1: [], 2: []}
    single = Segments(text, 1, segment, seed=seed)
    rows = [row for b in islice(segments, 40 // batch + 1) for row in b]
    for row in rows:  # rows, in whatever batches, are the same stream
        epoch = single.epoch
        np.testing.assert_array_equal(row, next(single)[0])
        epochs.setdefault(epoch, []).append(place(text, row))
    for starts in list(epochs.values())[: single.epoch]:
        seen = np.zeros(len(text), int)
        for start in starts:
            seen[start : start + segment] += 1
        first, last = min(starts), max(starts) + segment
        assert (seen[first:last] == 1).all() and seen.sum() == last - first
        assert first < segment and len(text) - last <= segment


def test_epochs_differ_in_phase_and_order_and_seeds_differ():
    text = text_of(np.random.default_rng(0).bytes(2000))
    streams = [Segments(text, 99, 20, seed=seed) for seed in (0, 1)]
    first, other = ([place(text, row) for row in next(stream)] for stream in streams)
    second = [place(text, row) for row in next(streams[0])]
    assert first != other and first != second
    assert len({starts[10] % 20 for starts in (first, other, second)}) > 1
    for starts in (first, other, second):
        assert abs(np.corrcoef(np.arange(99), starts)[0, 1]) < 0.5
        assert len(set(np.diff(starts))) > 45  # a stride or a lattice has few different steps


@given(st.integers(1, 5), st.integers(5, 12), st.integers(0, 60))
@few
def test_consecutive_lanes_go_on_exactly_where_they_ended(batch, segment, extra):
    text = text_of(np.random.default_rng(2).bytes(batch * segment + 1 + extra))
    lane = (len(text) - 1) // batch
    steps = lane // segment
    segments = Segments(text, batch, segment, "consecutive")
    for epoch in range(2):
        batches = []
        for step in range(steps):
            assert segments.epoch == epoch
            batches.append(next(segments))
            assert segments.restarted == (step == 0)
        for row, inputs in enumerate(np.concatenate([b[:, :-1] for b in batches], axis=1)):
            whole = text.read(row * lane, row * lane + steps * segment + 1)
            np.testing.assert_array_equal(inputs, whole[:-1])
            np.testing.assert_array_equal(np.concatenate([b[row, 1:] for b in batches]), whole[1:])
        assert lane - steps * segment < segment


def test_shuffled_batches_never_carry_a_state():
    segments = Segments(text_of(b"x" * 100), 2, 5)
    assert all(segments.restarted for _ in islice(segments, 50))


@given(
    st.sampled_from(["shuffled", "consecutive"]), seeds, st.integers(1, 5), st.integers(1, 9),
    st.integers(0, 100), st.integers(0, 40),
)  # fmt: skip
@few
def test_reading_resumes_bit_for_bit_at_any_point(order, seed, batch, segment, extra, steps):
    text = text_of(np.random.default_rng(3).bytes(batch * segment + 1 + extra))
    segments = Segments(text, batch, segment, order, seed)
    for _ in islice(segments, steps):
        pass
    state = json.loads(json.dumps(segments.state()))
    rest = [(next(segments), segments.restarted, segments.epoch) for _ in range(10)]
    resumed = Segments(text, batch, segment, order, seed)
    resumed.restore(state)
    assert resumed.state() == state
    for tokens, restarted, epoch in rest:
        np.testing.assert_array_equal(next(resumed), tokens)
        assert (resumed.restarted, resumed.epoch) == (restarted, epoch)


@pytest.mark.parametrize(
    "name, change",
    [("batch", 3), ("segment", 6), ("seed", 1), ("order", "consecutive")],
)
def test_a_position_from_other_settings_is_refused_by_name(name, change):
    text, settings = text_of(b"x" * 100), {"batch": 2, "segment": 5, "order": "shuffled", "seed": 0}
    state = Segments(text, **settings).state()
    with pytest.raises(ValueError, match=f"is for {name} {settings[name]}, but here it is {change}"):
        Segments(text, **(settings | {name: change})).restore(state)
    with pytest.raises(ValueError, match="saved position is for bytes 100, but here it is 99"):
        Segments(text_of(b"x" * 99), **settings).restore(state)


@pytest.mark.parametrize("order, batch, need", [("shuffled", 7, 11), ("consecutive", 7, 71)])
def test_a_text_shorter_than_a_segment_is_refused_with_both_numbers(order, batch, need):
    with pytest.raises(ValueError, match=rf"text has {need - 1} bytes, but {need} are needed .*segment 10 "):
        Segments(text_of(b"x" * (need - 1)), batch, 10, order)
    assert next(Segments(text_of(b"x" * need), batch, 10, order)).shape == (batch, 11)


def test_sizes_below_one_and_unknown_orders_are_refused():
    text = text_of(b"x" * 100)
    for batch, segment in [(0, 5), (5, 0), (-1, 5)]:
        with pytest.raises(ValueError, match=f"batch is {batch} and segment is {segment}: both must"):
            Segments(text, batch, segment)
    with pytest.raises(ValueError, match="no order 'random': choose 'shuffled' or 'consecutive'"):
        Segments(text, 1, 5, "random")


@given(st.integers(1, 4), st.integers(5, 9), st.integers(1, 6), st.integers(0, 200))
@few
def test_the_evaluation_set_is_the_same_every_time_and_evenly_spread(batch, segment, count, extra):
    text = text_of(np.random.default_rng(4).bytes(segment + 1 + extra))
    batches = list(data.fixed(text, batch, segment, count))
    for a, b in zip(batches, data.fixed(text, batch, segment, count), strict=True):
        np.testing.assert_array_equal(a, b)
    starts = [place(text, row) for b in batches for row in b]
    assert len(starts) == min(batch * count, (len(text) - 1) // segment)
    assert all(len(b) == batch for b in batches[:-1]) and len(batches) <= count
    gaps = np.diff(starts)
    assert starts[0] == 0
    if len(gaps):
        assert gaps.min() >= segment and gaps.max() - gaps.min() <= 1
        assert starts[-1] == len(text) - 1 - segment


def test_the_evaluation_set_needs_a_segment_and_a_byte():
    with pytest.raises(ValueError, match="text has 10 bytes, but 11 are needed"):
        data.fixed(text_of(b"x" * 10), 2, 10, 3)


def test_compression_agrees_with_gzip_and_xz(default):
    text = default.split("validation")
    limit = data.PIECE // 4
    for size in (1, 1000, limit):
        bits, source = data.compressed_bits_per_byte(text, size), text.read(0, size).tobytes()
        assert bits["gzip"] == pytest.approx(8 * len(gzip.compress(source, 9)) / size)
        assert bits["xz"] == pytest.approx(8 * len(lzma.compress(source, preset=6)) / size)
    assert 1 < bits["xz"] < bits["gzip"] < 4


# --- synthetic tasks ----------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 4), st.data())
@few
def test_associative_recall_asks_for_what_was_shown(seed, batch, draw):
    keys = draw.draw(st.integers(1, 9))
    pairs = draw.draw(st.integers(1, keys))
    queries = draw.draw(st.integers(1, pairs))
    rng = np.random.default_rng(seed)
    tokens, targets = data.associative_recall(rng, batch, pairs, queries, keys, values=5)
    assert tokens.shape == targets.shape == (batch, 2 * pairs + queries)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        shown = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(shown) == pairs and len(set(row[2 * pairs :])) == queries
        assert all(0 <= key < keys <= value < keys + 5 for key, value in shown.items())
        assert answers == [IGNORE] * 2 * pairs + [shown[key] for key in row[2 * pairs :]]


def test_associative_recall_refuses_more_queries_than_pairs_and_more_pairs_than_keys():
    for pairs, queries, keys, rewritten in [(3, 4, 9, 0), (5, 2, 4, 0), (3, 2, 4, 4)]:
        with pytest.raises(ValueError, match=f"{queries} queries, {rewritten} rewritten, {pairs} pairs, {keys} keys"):
            data.associative_recall(np.random.default_rng(0), 1, pairs, queries, keys, 5, rewritten)


@given(seeds, st.integers(1, 9), st.data())
@few
def test_the_last_value_of_a_key_is_asked(seed, pairs, draw):
    rewritten = draw.draw(st.integers(0, pairs))
    shown = 2 * (pairs + rewritten)
    tokens, targets = data.associative_recall(np.random.default_rng(seed), 3, pairs, pairs, 9, 5, rewritten)
    assert tokens.shape == targets.shape == (3, shown + pairs)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        last = dict(zip(row[:shown:2], row[1:shown:2], strict=True))  # of a key that comes twice, the second
        assert len(last) == pairs and len(set(row[2 * pairs : shown : 2])) == rewritten
        assert answers == [IGNORE] * shown + [last[key] for key in row[shown:]]


@given(seeds, st.integers(1, 4), st.integers(1, 9))
@few
def test_copy_asks_for_the_word_after_the_marker(seed, batch, length):
    tokens, targets = data.copy(np.random.default_rng(seed), batch, length, symbols=7)
    assert tokens.shape == targets.shape == (batch, 2 * length)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        word = row[:length]
        assert all(1 <= symbol <= 7 for symbol in word)
        assert [*row[length:], word[-1]] == [0, *word] and answers == [IGNORE] * length + word


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 20))
@few
def test_needle_asks_for_the_key_behind_the_first_marker(seed, batch, width, room):
    tokens, targets = data.needle(np.random.default_rng(seed), batch, 2 * width + room, width, symbols=7)
    assert tokens.shape == targets.shape == (batch, 2 * width + room)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        first, second = (i for i, token in enumerate(row) if token == 0)
        key = row[first + 1 : first + 1 + width]
        assert first + width < second == len(row) - width and len(key) == width and 0 < min(key)
        assert answers == [IGNORE] * (len(row) - width) + key and row[second + 1 :] == key[:-1]


def test_needle_hides_the_key_everywhere_and_refuses_one_that_does_not_fit():
    tokens, _ = data.needle(np.random.default_rng(0), 400, 12, 3, 7)
    assert set((tokens == 0).argmax(axis=1)) == set(range(6))
    with pytest.raises(ValueError, match="a key of 3 does not fit in 6 tokens"):
        data.needle(np.random.default_rng(0), 1, 6, 3, 7)


def balanced(word: str) -> bool:
    for opening, closing in ("13", "24"):
        depth = np.cumsum([(c == opening) - (c == closing) for c in word] or [0])
        if depth.min() < 0 or depth[-1]:
            return False
    return True


LANGUAGES = {  # name: symbols, membership of a whole word, lengths to enumerate, longest prefix to check
    "parity": ("12", lambda w: w.count("2") % 2 == 0, 8, 5),
    "aa": ("1", lambda w: re.fullmatch("(11)*", w), 12, 9),
    "abab": ("12", lambda w: re.fullmatch("(1212)*", w), 12, 7),
    "anbn": ("12", lambda w: w and w == "1" * (len(w) // 2) + "2" * (len(w) // 2), 12, 6),
    "anbncn": ("123", lambda w: w and w == "".join(c * (len(w) // 3) for c in "123"), 9, 6),
    "shuffle-dyck": ("1234", balanced, 8, 4),
}


@pytest.fixture(scope="module")
def words():
    """Every word of every language, up to a length, found by trying all strings."""
    found = {}
    for name, (symbols, member, longest, _) in LANGUAGES.items():
        strings = ("".join(s) for n in range(longest + 1) for s in product(symbols, repeat=n))
        found[name] = {word for word in strings if member(word)}
    return found


@pytest.mark.parametrize("name", LANGUAGES)
def test_targets_of_a_language_are_the_symbols_that_some_word_goes_on_with(words, name):
    longest = LANGUAGES[name][3]
    following: dict[str, set[int]] = {}
    for word in words[name]:
        for i in range(len(word) + 1):
            following.setdefault(word[:i], set()).add(int(word[i]) if i < len(word) else 0)
    checked = set()
    for length in range(len(LANGUAGES[name][0]), longest + 1):
        tokens, targets = data.formal_language(name, np.random.default_rng(length), 40, length)
        assert tokens.shape == targets.shape == (40, length)
        assert tokens.dtype == targets.dtype == np.int64
        for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
            word = "".join(map(str, row)).rstrip("0")
            assert "0" not in word and answers[len(word) :] == [IGNORE] * (length - len(word))
            for i in range(len(word)):
                legal = following[word[: i + 1]]
                assert answers[i] == sum(1 << symbol for symbol in legal), (word[: i + 1], legal)
                checked.add(word[: i + 1])
    assert len(checked) >= longest


@pytest.mark.parametrize("name", ["anbn", "anbncn", "shuffle-dyck"])
def test_rows_of_the_counting_languages_are_whole_words_of_many_kinds(name):
    tokens, _ = data.formal_language(name, np.random.default_rng(0), 60, 25)
    rows = ["".join(map(str, row)).rstrip("0") for row in tokens.tolist()]
    assert all(LANGUAGES[name][1](word) for word in rows)
    assert len(set(rows)) >= 25 // len(LANGUAGES[name][0])
    if name == "shuffle-dyck":
        assert {len(word) for word in rows} == {24} and any(re.search("1[^3]*2[^4]*3", word) for word in rows)


def test_an_unknown_language_or_a_length_without_a_word_is_an_error():
    for name, length in [("dyck", 9), ("anbncn", 2)]:
        with pytest.raises(ValueError, match=f"no language '{name}' with words up to {length} symbols"):
            data.formal_language(name, np.random.default_rng(0), 1, length)


# --- the trace ----------------------------------------------------------------------------------------------


def test_the_trace_names_documents_sides_hash_and_a_sample(default):
    ran = subprocess.run(
        [sys.executable, data.__file__], capture_output=True, encoding="utf-8", check=True, timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert f"{len(default.documents):,} documents, {default.size:,} bytes" in ran.stdout
    assert default.manifest()["sha256"] in ran.stdout
    assert re.search(r"validation: [\d,]+ bytes", ran.stdout) and "one shuffled segment" in ran.stdout
