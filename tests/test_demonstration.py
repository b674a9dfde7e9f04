"""The run that ships is small, says what it is, and says something sensible before anybody has trained."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import hope
import train
from apps import demonstration
from apps.about import About
from apps.runs import DEMO, END, Place, Run, read
from config import Config
from hope import Hope
from tools.command import parse, settings

LESSON = b"The grellip sings in spring, and the miller keeps the coins in a blue jar. " * 4


@pytest.fixture(scope="module")
def demo():
    return Run.open(DEMO)


def test_it_is_small_and_was_made_by_its_command(demo):
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < demonstration.LARGEST
    with np.load(DEMO / "checkpoint.npz") as arrays:
        kinds = {arrays[name].dtype for name in arrays.files if name.startswith("weights.")}
    assert kinds == {np.dtype(np.float16)} and {p.data.dtype for p in demo.model.parameters()} == {np.dtype(np.float32)}
    made = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    _, given = parse(demonstration.FLAGS[:-1])
    config, training = settings(demonstration.FLAGS[1], given)
    assert json.loads(json.dumps([asdict(config), asdict(training)])) == [made["config"], made["training"]]
    assert made["preset"] == demonstration.FLAGS[1]
    assert not any(str(value).startswith("/") for value in made["training"].values())  # of nobody's machine


@pytest.mark.slow
def test_it_predicts_text_as_well_as_it_says(demo):
    about = About.of(DEMO)
    assert about.steps > 0 and about.held_out and f"{about.bits_per_byte:.2f} bits per byte" in about.sentence
    found = demonstration.bits_per_byte(demo.model)  # of this Python's text: another one's is a little different
    assert found == pytest.approx(about.bits_per_byte, abs=0.25) and found < 2.4


def test_a_lesson_saves_it_bits_with_learning_on_and_not_without(demo):
    def mean(pieces):
        return np.mean([token.bits for piece in pieces for token in piece.tokens])
    half = len(LESSON)
    off = [token.bits for piece in read(demo.model, Place(), LESSON + LESSON) for token in piece.tokens]
    pieces = list(read(demo.model, Place(), LESSON, learn=True))
    again = mean(read(demo.model, pieces[-1].place, LESSON))
    levels = mean(read(demo.model, Place(pieces[-1].place.state.reset("memory"), END), LESSON))
    assert max(again, levels) < 0.85 * mean(pieces) and max(again, levels) < 0.85 * min(np.mean(off[:half]),
                                                                                        np.mean(off[half:]))


@pytest.mark.parametrize("code", [130, 0])
def test_what_was_trained_is_not_lost_where_it_was_stopped_or_cannot_be_kept(monkeypatch, tmp_path, capsys, code):
    def trained(arguments):
        folder = Path(arguments[-1])
        folder.mkdir()
        (folder / "checkpoint.npz").touch()  # which is none, and so is not kept
        return code
    monkeypatch.setattr(train, "main", trained)
    assert demonstration.main(["--out", str(tmp_path / "demo")]) == (code or 2)
    run = Path(capsys.readouterr().out.removeprefix("and then: python -m apps.demonstration --run ").strip())
    assert (run / "checkpoint.npz").exists()
    shutil.rmtree(run.parent)


def test_where_nothing_can_be_kept_is_said_before_anything_is_trained(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(train, "main", None)
    assert demonstration.main(["--out", str(tmp_path / "file")]) == 2
    assert "is a file; choose another --out" in capsys.readouterr().err


def test_a_run_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "demo"
    run.mkdir()
    config = Config(width=16, layers=1, heads=2, segment=16, hidden=16, chunks=(1, 2), memory_chunk=8,
                    projection_chunk=4)
    hope.save(run / "checkpoint.npz", Hope(config, np.random.default_rng(0)))
    about = {"preset": "tiny", "config": {}, "training": {"data": [], "out": "/home/ann/run"},
             "data": {"bytes": 9, "documents": {"a": 9}}}
    (run / "config.json").write_text(json.dumps(about), encoding="utf-8")
    (run / "log.jsonl").write_text("".join(json.dumps({"step": i, "bits_per_byte": 8.0}) + "\n" for i in range(9)),
                                   encoding="utf-8")
    (run / "sample.txt").write_text("step 4: a ▶ b\n\nstep 8: c ▶ d\n\n", encoding="utf-8")
    monkeypatch.setattr(demonstration, "bits_per_byte",
                        lambda model, words: float(model.parameters()[0].data.dtype.itemsize))
    assert demonstration.main(["--run", str(run), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"checkpoint.npz", "config.json", "log.jsonl", "sample.txt"}
    assert "/home" not in (out / "config.json").read_text(encoding="utf-8")
    assert About.of(out).steps == 8 and (out / "sample.txt").read_text(encoding="utf-8") == "step 8: c ▶ d\n\n"
    for name in ("sample.txt", "log.jsonl"):  # of a run that was stopped early
        (run / name).unlink()
    assert demonstration.main(["--run", str(run), "--out", str(run)]) == 2 and (run / "config.json").exists()
    (out / "vocabulary.json").touch()  # of a run with tokens of its own that was here before
    (run / "config.json").rename(tmp_path / "config.json")
    assert demonstration.main(["--run", str(run), "--out", str(out)]) == 2  # nothing is replaced
    assert About.of(out).steps == 8 and (out / "vocabulary.json").exists()
    (tmp_path / "config.json").rename(run / "config.json")
    assert demonstration.main(["--run", str(run), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"checkpoint.npz", "config.json", "log.jsonl", "sample.txt"}
    assert not (out / "sample.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(demonstration, "APART", 0)  # no room for what half precision loses
    assert demonstration.main(["--run", str(run), "--out", str(tmp_path / "no")]) == 2
    assert not list((tmp_path / "no").iterdir())
