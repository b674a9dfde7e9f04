"""What data.py promises: every byte once, the same order after a restart, constant memory, right answers."""

import bz2
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
import hope
from data import Corpus, Document, Segments, Text
from shards import is_shards

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
    assert data.decode([65, -100, 300]) == "A\ufffd\ufffd" and data.decode(65) == "A"


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
    held = Corpus([document(name, sources[name]) for name in sorted(sources)])
    assert mapped.manifest() == held.manifest()
    for side in ("train", "validation"):
        texts = [corpus.split(side) for corpus in (mapped, held)]
        assert [d.name for d in texts[0].documents] == [d.name for d in texts[1].documents]
        np.testing.assert_array_equal(*[text.read(0, len(text)) for text in texts])


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="open files cannot be counted here")
def test_many_files_keep_none_open(tmp_path):
    for i in range(300):
        (tmp_path / str(i)).write_text(str(i), encoding="utf-8")
    before = len(os.listdir("/dev/fd"))
    text = Corpus.from_paths(tmp_path).split("train")
    read = text.read(0, len(text)).tobytes()
    assert read.split(b"\0") == [d.name.encode() for d in text.documents]
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_that_shrinks_while_in_use_is_named(tmp_path):
    write(tmp_path, book=b"x" * 1000)
    text = Corpus.from_paths(tmp_path / "book").split("train")
    write(tmp_path, book=b"x" * 10)
    with pytest.raises(data.Changed, match=r"book shrank from 900 to 10 bytes"):
        text.read(0, 900)
    assert len(text.read(0, 10)) == 10  # no more is asked than that
    (tmp_path / "book").unlink()
    with pytest.raises(data.Changed, match=r"book cannot be read any more \(No such file or directory\)"):
        text.read(0, 10)


def test_a_file_cut_short_between_two_batches_is_one_line_and_no_bus_error(tmp_path):
    write(tmp_path, book=b"x" * 100_000)
    segments = Segments(Corpus.from_paths(tmp_path / "book").split("train"), 4, 64)
    next(segments)
    os.truncate(tmp_path / "book", 0)
    with pytest.raises(data.Changed, match="book shrank from 90000 to 0 bytes"):
        next(segments)


def test_two_gigabytes_are_read_in_constant_memory(tmp_path):
    size, path = 2 << 30, tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(1_500_000_000)
        file.write(b"needle")
    started = time.process_time()
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
    assert time.process_time() - started < 5


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
    assert peaks[0] < 2.1 * data.PART and peaks[2] - peaks[1] < 2.1 * data.PART and peaks[2] < 105_000_000


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
    assert manifest["documents"] == {"a": 3, "b": 5}
    assert manifest["bytes"] == 8


def test_a_manifest_changes_with_any_byte_and_the_order_and_with_no_name():
    variants = [(b"12", b"z"), (b"13", b"z"), (b"123", b"z"), (b"z", b"12")]
    hashes = {Corpus([document("a", a), document("b", b)]).manifest()["sha256"] for a, b in variants}
    assert len(hashes) == len(variants)
    assert Corpus([document("other", b"12"), document("b", b"z")]).manifest()["sha256"] in hashes


def test_the_same_files_elsewhere_make_the_same_manifest(tmp_path):
    for folder in ("here", "there/and/deeper"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        write(tmp_path / folder, a=b"a", c=b"c")
        write(tmp_path / folder / "sub", b=b"b")
    here, there = (Corpus.from_paths(tmp_path / folder).manifest() for folder in ("here", "there/and/deeper"))
    assert here == there and list(here["documents"]) == ["a", "c", "sub/b"]
    (tmp_path / "here" / "a").rename(tmp_path / "book.txt")
    moved = Corpus.from_paths(tmp_path / "book.txt").manifest()
    assert moved["documents"] == {"book.txt": 1}
    assert moved["sha256"] == Corpus.from_paths(tmp_path / "there/and/deeper/a").manifest()["sha256"]


def test_folders_are_read_in_depth_in_order_and_without_hidden_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path, c=b"c", a=b"a", empty=b"", **{".hidden": b"no"})
    write(tmp_path / "b", y=b"y", x=b"x", copy_of_x=b"x")
    write(tmp_path / ".git", index=b"no")
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    assert [d.name for d in Corpus.from_paths(tmp_path).documents] == ["a", "b/copy_of_x", "b/y", "c"]


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
        (["empty"], "the file is empty: give at least one with text in it"),
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


@pytest.fixture
def closed(tmp_path):
    """A folder with a file in it, both of which the test may not open, be it the superuser's."""
    (tmp_path / "closed").mkdir()
    write(tmp_path / "closed", text=b"text")
    (tmp_path / "closed").chmod(0)
    if superuser := hasattr(os, "geteuid") and os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield tmp_path / "closed"
    finally:
        if superuser:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no permissions in this system")
@pytest.mark.parametrize("name", ["", "text"])
def test_a_folder_that_one_may_not_open_is_named_and_what_lies_in_it_too(closed, name):
    path = closed / name
    assert not is_shards(path)
    with pytest.raises(ValueError, match=f"^cannot read {re.escape(str(path))} .Permission denied.: name what you may"):
        Corpus.from_paths(path)
    with pytest.raises(PermissionError):
        hope.load(path / "checkpoint.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_is_no_file_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="holds no files"):
        Corpus.from_paths(tmp_path / "pipe")


# --- what is no text ----------------------------------------------------------------------------------------


def names_in(*paths):
    corpus = Corpus.from_paths(list(paths))
    return [d.name for d in corpus.documents], corpus.note


def test_runs_caches_and_what_is_no_text_are_left_out_of_a_folder_and_said(tmp_path, monkeypatch):
    for folder in ("src", "runs/tiny-1", "runs/stories-1", "mine/sessions", "__pycache__", "cache", "venv/lib"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path, **{"notes.txt": b"notes", "old.txt": "ä".encode("latin-1"), "picture.png": b"\x89PNG\r\n\x1a\n\0"})
    write(tmp_path / "src", **{"code.py": b"x = 1"})
    write(tmp_path / "runs" / "tiny-1", **{"config.json": b"{}", "checkpoint.npz": b"PK\0", "log.jsonl": b"{}"})
    write(tmp_path / "runs" / "stories-1", **{"config.json": b"{}", "stories.json": b"{}"})
    write(tmp_path / "mine", **{"config.json": b"{}", "checkpoint.npz": b"PK\0", "sample.txt": b"step 1"})
    write(tmp_path / "mine" / "sessions", **{"chat.json": b"{}"})
    write(tmp_path / "__pycache__", **{"code.txt": b"cached"})
    write(tmp_path / "cache", **{"CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55", "made.txt": b"made"})
    write(tmp_path / "venv", **{"pyvenv.cfg": b"home = /usr"})
    write(tmp_path / "venv" / "lib", **{"library.py": b"y = 2"})
    expected = ["notes.txt", "old.txt", "src/code.py"]
    names, note = names_in(tmp_path)
    assert names == expected
    assert "left out, as they are runs: 3 (mine, stories-1, tiny-1)" in note
    assert "left out, as they are caches: 3 (__pycache__, cache, venv)" in note
    assert "left out, as they are no text: 1 (picture.png)" in note
    monkeypatch.chdir(tmp_path)
    assert names_in(".")[0] == names_in("**")[0] == expected
    assert names_in("mine")[0] == ["config.json", "sample.txt"]  # named, it is read (b"{}" once)


def test_a_file_that_is_named_is_read_whatever_it_is_and_said(tmp_path):
    write(tmp_path, music=b"\1\2\0\3" * 9)
    names, note = names_in(tmp_path / "music")
    assert names == ["music"] and "read, but hardly text: 1 (music)" in note
    with pytest.raises(ValueError, match=r"holds no files \(left out, as they are no text: 1 \(music\)\)"):
        Corpus.from_paths(tmp_path)


WIDE = ("utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("folder", [False, True])
def test_text_in_other_widths_is_read_as_text(tmp_path, encoding, folder):
    text = "Ein Wort, größer als Æ, und noch ein Satz.\n" * 400
    (tmp_path / "wide.txt").write_bytes(text.encode(encoding))
    (read,) = Corpus.from_paths(tmp_path if folder else tmp_path / "wide.txt").documents
    assert read.read(0, read.size).tobytes().decode("utf-8") == text


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)])
def test_packed_text_is_read_and_a_broken_pack_is_named(tmp_path, ending, pack):
    text = b"packed text\n" * 1000
    (tmp_path / f"book.txt{ending}").write_bytes(pack(text))
    (tmp_path / f"wide.txt{ending}").write_bytes(pack("wide".encode("utf-16")))
    (book, wide), _ = Corpus.from_paths(tmp_path).documents, None
    assert book.name == f"book.txt{ending}" and book.read(0, book.size).tobytes() == text
    assert wide.read(0, wide.size).tobytes() == b"wide"
    (tmp_path / f"book.txt{ending}").write_bytes(pack(text)[:-9])
    with pytest.raises(ValueError, match=rf"book\.txt\{ending} cannot be unpacked \(.+\): unpack it yourself"):
        Corpus.from_paths(tmp_path / f"book.txt{ending}")
    assert names_in(tmp_path)[0] == [f"wide.txt{ending}"]


def test_what_nothing_here_can_unpack_is_refused_with_what_would(tmp_path, monkeypatch):
    for module in ("compression", "compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    write(tmp_path, **{"book.zst": b"(\xb5/\xfd"})
    with pytest.raises(ValueError, match=r"book\.zst is packed, and there is no zstandard .* install zstandard"):
        Corpus.from_paths(tmp_path / "book.zst")


def test_what_can_be_unpacked_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compression", None)
    monkeypatch.setitem(sys.modules, "zstandard", gzip)  # whatever has an `open`
    (tmp_path / "book.zst").write_bytes(gzip.compress(b"text"))
    (read,) = Corpus.from_paths(tmp_path / "book.zst").documents
    assert read.read(0, 4).tobytes() == b"text"


def test_linked_folders_are_read_once_and_said(tmp_path):
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "data", a=b"a")
    write(tmp_path / "elsewhere", b=b"b")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    names, note = names_in(tmp_path / "data")
    assert names == ["a", "again/b"] and "linked folders, read once: 1 (again)" in note


def test_a_glob_through_two_circles_of_links_ends(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("one", "two"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    write(tmp_path / "a", **{"x.txt": b"x", "y.md": b"y"})
    write(tmp_path, **{"z.txt": b"z"})
    assert names_in(tmp_path / "**" / "*.txt")[0] == ["a/x.txt", "z.txt"]
    assert names_in(tmp_path / "**")[0] == ["a/x.txt", "a/y.md", "z.txt"]
    assert names_in(tmp_path / "**" / "a" / "*")[0] == ["x.txt", "y.md"]
    assert names_in(tmp_path / "**" / "a")[0] == ["x.txt", "y.md"]


@pytest.mark.parametrize(("path", "pattern", "matches"), [
    ("a/b/c", "a/**/c", True), ("a/c", "a/**/c", True), ("c", "**/c", True), ("a/b", "**/c", False),
    ("a/b/c", "**", True), ("a/b", "a/*/**", True), ("a/b", "*", False), ("a/b/c/d", "**/b/**/d", True),
])
def test_two_stars_stand_for_any_number_of_folders(path, pattern, matches):
    assert data._matches(path.split("/"), pattern.split("/")) is matches


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are text there")
def test_a_name_that_is_no_text_is_read_and_can_be_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    write(tmp_path, **{name: b"coffee", "tea.txt": b"tea"})
    corpus = Corpus.from_paths(tmp_path)
    assert json.loads(json.dumps(corpus.manifest())) == corpus.manifest()
    assert [d.name for d in corpus.documents] == [name, "tea.txt"]
    assert Corpus.from_paths(tmp_path / name).size == 6


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


@pytest.mark.parametrize("size", [100, 1000, 1 << 16])
def test_a_random_corpus_has_the_size_that_was_asked_for(size):
    corpus = Corpus.random(3, size)
    assert sum(len(d.source) for d in corpus.documents) == corpus.size == size


def test_about_a_twentieth_of_many_documents_is_held_out():
    corpus = Corpus(random_corpus(0, 4000))
    assert 0.04 < len(corpus.split("validation")) / corpus.size < 0.06


def test_a_large_document_is_never_held_out_beside_small_ones():
    for i in range(60):
        large = document("large", b"%d" % i + b"." * 5000)
        corpus = Corpus([large, document("small", b"s" * 300), document("tiny", b"t")])
        assert [d.name for d in corpus.split("validation").documents] == ["small"] and not corpus.note


@pytest.mark.parametrize("size", [27, 600])
def test_beside_a_very_small_document_the_last_tenth_of_the_large_one_is_held_out_and_the_note_says_so(size):
    book = b"".join(b"%06d " % i for i in range(50_000))
    corpus = Corpus([document("book", book), document("LICENSE", b"c" * size)])
    train, validation = (corpus.split(side) for side in ("train", "validation"))
    assert validation.read(0, len(validation)).tobytes() == book[-35_000:]
    assert train.read(0, len(train)).tobytes() == book[:-35_000] + b"\0" + b"c" * size
    assert corpus.note == "book is the largest document: its last tenth is the validation text"


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
    limit = data.PART // 4
    for size in (1, 1000, limit):
        bits, source = data.compressed_bits_per_byte(text, size), text.read(0, size).tobytes()
        assert bits["gzip"] == pytest.approx(8 * len(gzip.compress(source, 9)) / size)
        assert bits["xz"] == pytest.approx(8 * len(lzma.compress(source, preset=6)) / size)
    assert 1 < bits["xz"] < bits["gzip"] < 4


# --- the trace ----------------------------------------------------------------------------------------------


def test_the_trace_names_documents_sides_hash_and_a_sample(default):
    ran = subprocess.run(
        [sys.executable, data.__file__], capture_output=True, encoding="utf-8", check=True, timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert f"{len(default.documents):,} documents, {default.size:,} bytes" in ran.stdout
    assert default.manifest()["sha256"] in ran.stdout
    assert re.search(r"validation: [\d,]+ bytes", ran.stdout) and "one shuffled segment" in ran.stdout
