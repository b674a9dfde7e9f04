"""The travel stories: what is read, what is learned, what is left in the folder, and what is said when it cannot be."""

import json
import signal

import numpy as np
import pytest

import train
from apps import stories
from data import IGNORE

FEW = ["--preset", "stories", "--steps", "3", "--seeds", "1", "--width", "8", "--models", "transformer,rnn"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder of two stories, told to two models by the command of train.py."""
    folder = tmp_path_factory.mktemp("stories") / "told"
    assert train.main([*FEW, "--out", str(folder)]) == 0
    return folder


def test_stories_leave_their_settings_numbers_and_picture(told):
    assert {path.name for path in told.iterdir()} == {"config.json", "stories.json", "stories.png"}
    found = json.loads((told / "stories.json").read_text(encoding="utf-8"))
    assert {name: np.shape(path) for name, path in found.items()} == {"transformer": (1, 7, 2), "rnn": (1, 7, 2)}
    assert all(0 <= share <= 1 for path in found.values() for share in np.ravel(path))
    settings = json.loads((told / "config.json").read_text(encoding="utf-8"))["settings"]
    assert settings["steps"] == 3 and settings["stories"] == ["train", "flight"]


def test_a_story_that_is_learned_is_known(tmp_path, capsys):
    assert train.main([*FEW, "--out", str(tmp_path / "out"), "--models", "transformer", "--steps", "60",
                       "--width", "16"]) == 0
    found = np.array(json.loads((tmp_path / "out" / "stories.json").read_text(encoding="utf-8"))["transformer"])[0]
    assert found[0].max() < 0.2 and found[60, 0] > 0.8 and found[120, 1] > 0.8
    out = capsys.readouterr().out
    assert "after train" in out and f"{found[60, 0]:18.3f}{found[120, 0]:18.3f}" in out


def test_the_stories_that_come_along_are_four_of_sixteen_sentences():
    found = stories.read_stories(stories.parser().parse_args(FEW).file)
    assert {name: len(sentences) for name, sentences in found.items()} == {
        "train": 16, "flight": 16, "bus": 16, "road trip": 16}


def test_stories_are_read_by_name_with_or_without_a_byte_order_mark(tmp_path):
    (tmp_path / "mine.txt").write_text("# a note\n\n# one\nI go  home\n\n# two\nyou stay\n", encoding="utf-8-sig")
    assert stories.read_stories(tmp_path / "mine.txt") == {"one": [["I", "go", "home"]], "two": [["you", "stay"]]}


def test_the_next_words_are_the_targets_and_after_the_last_nothing_is_asked():
    tokens, targets = stories.next_words([["a", "b", "c"], ["c", "a"]], ["a", "b", "c"])
    assert tokens.tolist() == [[0, 1], [2, 0]] and targets.tolist() == [[1, 2], [0, IGNORE]]


@pytest.mark.parametrize(("flags", "words"), [
    (["--stories", "train"], "give two stories or more"),
    (["--seeds", "0"], "at least one seed"),
    (["--stories", "train,fligth"], "there is no story 'fligth', did you mean 'flight'?"),
    (["--models", "rnn,hop"], "there is no model 'hop', did you mean 'hope'?"),
    (["--file", "nowhere.txt"], "No such file or directory: nowhere.txt"),
    (["--file", "EMPTY"], "holds no story: a line '# name', then one sentence a line"),
    (["--file", "SHORT", "--stories", "a,b"], "the story 'a' has sentences of one word only"),
    (["--rnn-optimizer", "adamm"], "did you mean 'adamw'?"),
    (["--width", "7"], "the width must be an even multiple of heads"), (["--rnn-chunks", ""], "chunks ()"),
    (["--rnn-lr", "fast"], "invalid float value: 'fast'"),
    (["--stepps", "3"], "unrecognized arguments: --stepps"),
])
def test_what_cannot_be_told_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").write_text("nothing of a name\n", encoding="utf-8")
    (tmp_path / "SHORT").write_text("# a\nword\n# b\ntwo words\n", encoding="utf-8")
    assert train.main([*FEW, *flags]) == 2
    err = capsys.readouterr().err.rsplit("\r", 1)[-1].strip()
    assert err.startswith("train.py: error: ") and words in err
    assert {path.name for path in tmp_path.iterdir()} == {"EMPTY", "SHORT"}


def test_ctrl_c_while_stories_are_told_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stories, "tell", lambda *_: signal.raise_signal(signal.SIGINT))
    assert train.main(FEW) == 130
    signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert out == "\nstopped; nothing had begun\n" and "Traceback" not in err and not list(tmp_path.iterdir())


def test_help_shows_the_flags_of_the_stories(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--preset", "stories", "--help"])
    shown = capsys.readouterr().out
    for words in ("--stories", "--hope-chunks", "--banks-optimizer", "What does each model keep"):
        assert words in shown
