"""What a run leaves behind, that it can be stopped anywhere, and what it says when something is wrong."""

import errno
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from left_behind import checkpoint, differing, numbers

import cms
import hope
import train
from config import PRESETS
from data import Corpus, Document, Segments, Vocabulary
from tools import checkpoint as checkpoints
from tools import folder as folders
from tools import stopping
from tools.folder import read_log
from train import Run

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--preset", "tiny", "--layers", "1", "--segment", "32", "--width", "16", "--hidden", "16",
         "--batch", "2", "--sample-tokens", "4", "--quiet")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 20 kB that is easy to predict."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"{n} and {n} are {2 * n}\n" for n in range(1000)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run of 18 steps with its baseline, begun from the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    done = shell("--data", text, "--out", folder, "--baseline",
                 "--steps", 18, "--sample-every", 9, quiet=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.fixture(autouse=True)
def own_signals():
    """Signals as a program in the foreground has them, whatever started the tests."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command(*arguments, quiet=True):
    return [sys.executable, str(ROOT / "train.py"), *SMALL[:None if quiet else -1], *map(str, arguments)]


def shell(*arguments, quiet=True):
    return subprocess.run(command(*arguments, quiet=quiet), capture_output=True, encoding="utf-8",
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"}, timeout=300)


def main(*arguments):
    return train.main([*SMALL, *map(str, arguments)])


def small(text, folder, model=None, **changed):
    """A run in this process, not begun yet."""
    config, training = PRESETS["tiny"]
    config = replace(config, layers=1, segment=32, width=16, hidden=16, **(model or {}))
    training = replace(training, batch=2, sample_tokens=4, quiet=True, data=(str(text),), **changed)
    return Run(folder, "tiny", config, training, Corpus.from_paths(str(text)))


# what a run leaves behind -----------------------------------------------------------------------------------

def test_a_run_leaves_every_file_it_promises(finished):
    folder, _, _ = finished
    assert {p.name for p in folder.iterdir()} == {"config.json", "log.jsonl", "checkpoint.npz", "loss.png",
                                                  "levels.png", "sample.txt", "baseline"}
    for name in ("loss.png", "levels.png"):
        assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "sample.txt").read_text(encoding="utf-8").count("step ") == 2  # at step 9 and at the end


def test_the_log_has_a_line_for_every_step_with_all_that_is_promised(finished):
    log = read_log(finished[0])
    assert [line["step"] for line in log] == list(range(1, 19))
    for line in log:
        assert line["bits_per_byte"] == pytest.approx(line["loss"] / np.log(2))
        assert line["gradient_norm"] > 0 and line["learning_rate"] > 0 and line["tokens_per_second"] > 0
        assert line["memory_writes"].keys() == {"k", "v", "eta", "alpha", "memory"}
        assert all(value > 0 for value in line["memory_writes"].values())


def test_the_log_shows_each_level_moving_at_its_steps_and_at_no_other(finished):
    for line in read_log(finished[0]):
        due = [chunk for chunk in (1, 4, 16) if line["step"] % chunk == 0]
        assert line["fired"] == due
        assert {int(chunk) for chunk, change in line["level_change"].items() if change != 0} == set(due)


def test_the_report_stands_beside_gzip_xz_and_the_transformer(finished):
    folder, out, _ = finished
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    found = last["validation_bits_per_byte"]
    assert found.keys() == {"this run", "transformer", "gzip", "xz"}
    for name, bits in found.items():
        assert re.search(rf"{bits:.3f}  {name}$", out, re.MULTILINE)
    assert f"{last['bytes']:,} bytes" in out
    ours, baseline = (hope.load(p / "checkpoint.npz")[0].config for p in (folder, folder / "baseline"))
    assert baseline == hope.transformer(ours) and abs(hope.count(ours) - hope.count(baseline)) <= 16


@pytest.mark.parametrize("changed", [
    {"level_rates": (0.1, 0.05, 0.02)}, {"moves": "context", "tick": 4, "chunks": (1, 2)}, {"cms": "independent"},
    {"mixer": "rnn", "chunks": (1,), "drift_rank": 32}])
def test_the_baseline_of_any_model_is_a_transformer_whose_mlp_stands_still(changed):
    config = replace(PRESETS["tiny"][0], **changed)
    found = hope.transformer(config)
    assert (found.mixer, found.chunks, found.moves, found.level_rates) == ("attention", (1,), "optimizer", ())
    assert abs(hope.count(config) - hope.count(found)) <= config.width * config.layers


def test_a_baseline_that_cannot_go_on_costs_a_line_and_nothing_else(text, tmp_path, capsys):
    run = small(text, tmp_path / "run", steps=1, baseline=True).begin()
    (run.folder / "baseline").mkdir()
    (run.folder / "baseline" / "checkpoint.npz").write_bytes(b"cut short")
    run.train(1)
    assert train.finish(run) is False
    out, err = capsys.readouterr()
    assert "no baseline: " in err and "not a readable checkpoint" in err and "this run" in out
    assert "transformer" not in folders.log_lines(run.folder)[-1]["validation_bits_per_byte"]


def test_validation_is_the_mean_over_the_measured_bytes(text, tmp_path):
    run = small(text, tmp_path / "run")
    bits, measured = run.evaluate()
    assert bits == pytest.approx(8, rel=0.05)  # an untrained model knows nothing of bytes
    tokens = np.concatenate([measured.read(0, len(measured))])
    assert len(tokens) == 8 * 32 and bytes(tokens[:8]) in text.read_bytes()


def test_the_screen_shows_settings_progress_and_a_sample(finished):
    _, out, err = finished
    assert "width=16" in out and "optimizer=adamw" in out and "step 9: " in out and "▶" in out
    assert "bits/byte" in err and "tokens/s" in err and "moved" in err


def test_quiet_shows_the_result_only(text, tmp_path, capsys):
    assert main("--data", text, "--out", tmp_path / "run", "--steps", 1) == 0
    out, err = capsys.readouterr()
    assert "width=" not in out and not err and "bits per byte" in out


def test_a_run_is_described_well_enough_to_be_repeated(finished, tmp_path, capsys):
    folder, _, _ = finished
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert saved["data"]["sha256"] and saved["versions"].keys() >= {"python", "numpy"}
    assert train.main(["--config", str(folder / "config.json"), "--out", str(tmp_path / "again"),
                       "--baseline", "false", "--quiet"]) == 0
    assert not differing(checkpoint(folder), checkpoint(tmp_path / "again"))


@pytest.mark.slow
def test_a_run_is_the_same_whether_its_kernels_are_compiled_or_come_from_the_cache(text, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    runs = [tmp_path / "compiled", tmp_path / "cached"]
    for folder in runs:
        assert shell("--data", text, "--out", folder, "--steps", 3, "--baseline", "false").returncode == 0
    assert not differing(*map(checkpoint, runs))


def test_unprintable_bytes_are_written_as_escapes():
    assert train.readable(list(b"a\x1b[0m\n\tb\x00" + "é".encode()), Vocabulary()) == "a\\x1b[0m\n\tb\\x00é"
    assert train.readable([0xC3], Vocabulary()) == "\ufffd"


# stopping and going on --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "training"), [
    ({}, {}),
    ({}, {"order": "consecutive", "accumulate": 2}),
    ({"mixer": "gated"}, {"order": "consecutive", "optimizer": "muon"}),
    ({"mixer": "attention", "window": 8}, {"order": "consecutive"}),
    ({"mixer": "attention", "cms": "independent"}, {"optimizer": "m3", "options": ("slow_period=2",)}),
    ({"cms": "nested", "chunks": (1, 2, 4)}, {"optimizer": "multi_timescale"}),
    ({"moves": "context", "mixer": "linear", "chunks": (1, 2)}, {}),
], ids=lambda settings: "-".join(map(str, settings.values())) or "plain")
def test_seven_steps_are_three_a_stop_and_four_to_the_last_bit(text, tmp_path, config, training):
    whole = small(text, tmp_path / "whole", config, steps=7, **training).begin()
    assert not whole.train(7)
    small(text, tmp_path / "parts", config, steps=7, **training).begin().train(3)
    parts = train.resume(tmp_path / "parts", {})
    assert parts.step == 3 and not parts.train(7)
    assert not differing(checkpoint(whole.folder), checkpoint(parts.folder))
    assert numbers(whole.folder) == numbers(parts.folder) and len(numbers(whole.folder)) == 7
    assert whole.evaluate()[0] == parts.evaluate()[0] and whole.sample() == parts.sample()


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_saves_the_steps_that_were_taken_and_says_how_to_go_on(text, tmp_path, monkeypatch, capsys, number):
    folder, append = tmp_path / "run", folders.append

    def press(path, line):
        append(path, line)
        if '"step": 3,' in line:
            os.kill(os.getpid(), number)
    monkeypatch.setattr(folders, "append", press)
    assert main("--data", text, "--out", folder, "--steps", 6) == 128 + number
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"step 3 of 6 is saved; to go on: python train.py --resume {folder}"
    assert hope.load(folder / "checkpoint.npz")[2]["progress"].item().startswith('{"step": 3,')
    monkeypatch.setattr(folders, "append", append)
    assert train.main(["--resume", str(folder)]) == 0
    assert main("--data", text, "--out", tmp_path / "whole", "--steps", 6) == 0
    assert not differing(checkpoint(folder), checkpoint(tmp_path / "whole"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_that_is_interrupted_is_as_if_it_had_not_begun(text, tmp_path, monkeypatch):
    settings = {"order": "consecutive", "accumulate": 2, "steps": 5}
    whole = small(text, tmp_path / "whole", {"mixer": "gated"}, **settings).begin()
    whole.train(5)
    run = small(text, tmp_path / "parts", {"mixer": "gated"}, **settings).begin()
    loss, calls = run.model.loss, []

    def interrupted(*given):
        calls.append(1)
        found = loss(*given)
        if len(calls) in (6, 9):  # the second batch of step 3, the first one of step 4
            signal.raise_signal(signal.SIGINT)
        return found
    monkeypatch.setattr(run.model, "loss", interrupted)
    assert run.train(5) and run.step == run.saved == 2
    assert run.train(5) and run.step == run.saved == 3
    assert not run.train(5)
    assert not differing(checkpoint(whole.folder), checkpoint(run.folder))
    assert numbers(whole.folder) == numbers(run.folder)


def test_a_step_of_the_optimiser_is_taken_wholly(text, tmp_path, monkeypatch):
    run = small(text, tmp_path / "run", steps=5).begin()
    step = run.optimizer.step

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        return step()
    monkeypatch.setattr(run.optimizer, "step", interrupted)
    assert run.train(5) and run.step == run.saved == run.optimizer.clock == 1
    assert [line["step"] for line in numbers(run.folder)] == [1]  # and stands in the log


def test_what_stands_between_two_lines_of_the_log_is_in_it_after_a_stop(text, tmp_path, monkeypatch):
    runs = [small(text, tmp_path / name, {"mixer": "linear"}, steps=9, log_every=3).begin()
            for name in ("whole", "cut")]
    runs[0].train(9)
    loss, calls = runs[1].model.loss, []

    def interrupted(*given):
        calls.append(1)
        found = loss(*given)
        if len(calls) == 6:  # in step 6
            signal.raise_signal(signal.SIGINT)
        return found
    monkeypatch.setattr(runs[1].model, "loss", interrupted)
    assert runs[1].train(9)
    train.resume(runs[1].folder, {}).train(9)
    whole, cut = (numbers(run.folder) for run in runs)
    assert [line["step"] for line in whole] == [3, 6, 9] and [line["step"] for line in cut] == [3, 5, 6, 9]
    assert cut[0] == whole[0] and cut[3] == whole[2] and cut[1]["level_change"]["4"] > 0  # in step 4
    same = set(cut[2]) - {"level_change"}
    assert {name: cut[2][name] for name in same} == {name: whole[1][name] for name in same}


def test_a_line_that_is_somebodys_own_stays_in_the_log(text, tmp_path):
    small(text, tmp_path / "run", {"mixer": "linear"}, steps=3).begin().train(2)
    folders.append(tmp_path / "run" / "log.jsonl", '{"note": "the window is open"}\n\n{"step": null}\n')
    train.resume(tmp_path / "run", {}).train(3)
    assert [line.get("step") for line in folders.log_lines(tmp_path / "run")] == [1, 2, None, None, 3]


def test_ctrl_c_before_a_run_has_begun_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Corpus, "default", lambda: signal.raise_signal(signal.SIGINT))
    assert train.main(["--preset", "tiny"]) == 130
    out, err = capsys.readouterr()
    assert out == "\nstopped; nothing had begun\n" and not err and not list(tmp_path.iterdir())
    monkeypatch.setattr(Corpus, "default", lambda: Corpus([Document("a", b"text" * 999, 3996)]))
    monkeypatch.setattr(folders, "describe", lambda *_: signal.raise_signal(signal.SIGINT))
    assert train.main(["--preset", "tiny"]) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_while_kernels_are_compiled_is_answered_at_once(text, tmp_path, monkeypatch, ended):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    program = subprocess.Popen(command("--data", text, "--out", tmp_path / "run", quiet=False), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8")
    seen = ""
    while "0%|" not in seen:
        seen += program.stderr.read(1)
        assert program.poll() is None
    while "compiling kernels" not in seen:
        seen += program.stderr.read(1)
    program.send_signal(signal.SIGINT)
    out, err, seconds = ended(program)
    assert seconds < 10 and program.returncode == 130
    assert "step 0 of 20 is saved; to go on" in out + err and "Traceback" not in out + err


def test_ctrl_c_while_measuring_loses_nothing(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "finish", lambda run: signal.raise_signal(signal.SIGINT))
    assert main("--data", text, "--out", tmp_path / "run", "--steps", 2) == 130
    assert "step 2 of 2 is saved" in capsys.readouterr().out


def test_a_killed_run_leaves_a_good_checkpoint_at_every_moment(text, tmp_path):
    folder, rng, step = tmp_path / "run", np.random.default_rng(0), -1
    start = command("--data", text, "--out", folder, "--steps", 9999, "--checkpoint-every", 1)
    for _ in range(2):
        running = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        began = time.monotonic()
        while len(numbers(folder)) < max(step, 0) + 2:
            assert running.poll() is None and time.monotonic() - began < 600, running.stderr.read()
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.05))
        running.kill()
        running.communicate()
        found = json.loads(str(hope.load(folder / "checkpoint.npz")[2]["progress"]))["step"]
        assert found > step
        step, start = found, [*start[:2], "--resume", str(folder)]
    run = train.resume(folder, {"steps": step + 1})
    run.train(step + 1)
    assert [line["step"] for line in numbers(folder)] == list(range(1, step + 2))


def test_the_old_checkpoint_stays_while_the_new_one_is_written(text, tmp_path, monkeypatch):
    run = small(text, tmp_path / "run").begin()
    before = checkpoint(run.folder)
    run.advance()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert not differing(before, checkpoint(run.folder))


def test_a_full_disk_is_one_clear_line_and_loses_nothing(text, tmp_path, monkeypatch, capsys):
    folder, write = tmp_path / "run", hope.write_npz

    def full(path, arrays):
        if '"step": 4,' in str(arrays["progress"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, arrays)
    monkeypatch.setattr(hope, "write_npz", full)
    assert main("--data", text, "--out", folder, "--steps", 6, "--checkpoint-every", 2) == 1
    assert one_line(capsys) == f"No space left on device; {folder} keeps step 2"
    monkeypatch.setattr(hope, "write_npz", write)
    assert train.main(["--resume", str(folder)]) == 0
    assert main("--data", text, "--out", tmp_path / "whole", "--steps", 6) == 0
    assert not differing(checkpoint(folder), checkpoint(tmp_path / "whole"))


def test_a_log_cut_in_the_middle_of_a_line_can_be_gone_on_with(text, tmp_path):
    run = small(text, tmp_path / "run", steps=4).begin()
    run.train(2)
    with open(run.folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss": 5.1, "level_change": {"1": 0.1}')
    train.resume(run.folder, {}).train(4)
    assert [line["step"] for line in numbers(run.folder)] == [1, 2, 3, 4]


def test_time_runs_out_with_a_save(text, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main("--data", text, "--out", folder, "--steps", 500, "--minutes", 1e-6) == 0
    assert "step 1 of 500 is saved" in capsys.readouterr().out
    assert train.resume(folder, {"steps": 2}).step == 1


# numbers that are not finite --------------------------------------------------------------------------------

@pytest.mark.parametrize("where", ["blocks.0.cms.levels.1.up.weight", "blocks.0.mixer.initial.memory.0",
                                   "embedding"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_place(text, tmp_path, where):
    run = small(text, tmp_path / "run", steps=5).begin()
    run.train(2)
    before = checkpoint(run.folder)
    dict(run.model.named_parameters())[where].data.flat[-1] = np.nan
    with pytest.raises(FloatingPointError, match=rf"step 3: the weight {re.escape(where)} is not finite"):
        run.train(5)
    assert not differing(before, checkpoint(run.folder))


def test_weights_that_are_not_finite_are_never_saved(text, tmp_path):
    run = small(text, tmp_path / "run").begin()
    before = checkpoint(run.folder)
    run.model.norm.weight.data[0] = np.inf
    with pytest.raises(FloatingPointError, match=r"the weight norm\.weight is not finite"):
        run.save()
    assert not differing(before, checkpoint(run.folder))


def test_a_level_whose_output_overflows_is_named(text, tmp_path):
    run = small(text, tmp_path / "run").begin()
    run.model.blocks[0].cms.levels[2].up.weight.data[:] = 1e25
    run.model.blocks[0].cms.levels[2].down.weight.data[:] = 1e25
    with pytest.raises(FloatingPointError, match="block 0, the level with chunk size 16 is not finite"):
        run.train(1)


def test_a_run_that_diverges_ends_with_one_line_and_a_finite_checkpoint(text, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main("--data", text, "--out", folder, "--optimizer", "sgd", "--lr", "1e30", "--warmup", 0) == 1
    assert re.fullmatch(r"step \d+: .+ is not finite; try a smaller --lr than 1e\+30; .+ keeps step 0",
                        one_line(capsys))
    assert all(np.all(np.isfinite(a)) for a in checkpoint(folder).values() if a.dtype.kind == "f")


@pytest.mark.parametrize("weight", [np.nan, 1e30])
def test_divergence_at_the_very_step_of_a_sample_is_one_line(text, tmp_path, monkeypatch, capsys, weight):
    advance = Run.advance

    def diverging(run, *write):
        line = advance(run, *write)
        if run.step == 2:
            run.model.embedding.data[:] = weight
        return line
    monkeypatch.setattr(Run, "advance", diverging)
    assert main("--data", text, "--out", tmp_path / "run", "--steps", 4, "--sample-every", 2) == 1
    assert re.fullmatch(r"step 3: .+ is not finite; try a smaller --lr than 0\.002; .+ keeps step 0", one_line(capsys))


def test_a_data_file_that_is_cut_short_while_training_is_one_line_that_names_it(tmp_path, monkeypatch, capsys):
    book, advance = tmp_path / "book.txt", Run.advance
    book.write_text("some text of a book\n" * 999, encoding="utf-8")

    def cut(run, *write):
        if run.step == 2:
            os.truncate(book, 100)
        return advance(run, *write)
    monkeypatch.setattr(Run, "advance", cut)
    assert main("--data", book, "--out", tmp_path / "run", "--steps", 4) == 1
    said = one_line(capsys)
    assert said.startswith(f"{book} shrank from 17982 to 100 bytes") and said.endswith("run keeps step 0")


# bad input --------------------------------------------------------------------------------------------------

def one_line(capsys):
    out, err = capsys.readouterr()
    assert err.startswith("train.py: error: ") and err.count("\n") == 1 and "Traceback" not in out + err
    return err.removeprefix("train.py: error: ").rstrip("\n")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--preset", "tinny"], "unknown preset 'tinny', did you mean 'tiny'?"),
    (["--stepps", "3"], "unknown argument '--stepps', did you mean '--steps'?"),
    (["tiny"], "unknown argument 'tiny'"),
    (["--optimizer", "adamm"], "did you mean 'adamw'?"),
    (["--mixer", "titan"], "did you mean 'titans'?"),
    (["--options", "momentun=1", "--optimizer", "momentum"], "did you mean 'momentum'?"),
    (["--options", "momentum"], "write name=value"),
    (["--options", "lr=0.1"], "lr is none of the optimiser's own options"),
    (["--resume", ""], "--resume is empty"),
    (["--resume", "nowhere", "--dry-run"], "leave out one of them"),
    (["--resume", "nowhere", "--doctor"], "leave out one of them"),
    (["--resume", "nowhere", "--config", "settings.json"], "a resumed run keeps its config; leave out --config"),
    (["--baseline", "maybe"], "'maybe' is neither true nor false"),
    (["--config", "stories"], "--preset stories"),
    (["--from", ""], "--from is empty"),
    (["--data", ""], "--data is empty"),
    (["--schedule", "cosinus"], "did you mean 'cosine'?"),
    (["--order", "random"], "choose from shuffled, consecutive"),
    (["--steps", "0"], "steps is 0; it must be at least 1"),
    (["--steps", "many"], "invalid int value: 'many'"),
    (["--batch", "-1"], "batch is -1; it must be at least 1"),
    (["--accumulate", "0"], "accumulate is 0"),
    (["--lr", "0"], "lr is 0.0; it must be positive"),
    (["--lr", "nan"], "lr is nan"),
    (["--clip", "-1"], "clip is -1.0"),
    (["--minutes", "inf"], "minutes is inf"),
    (["--seed", "-1"], "seed is -1"),
    (["--quiet", "perhaps"], "'perhaps'"),
    (["--width", "30", "--heads", "4"], "width 30 over 4 heads"),
    (["--cms", "nested", "--chunks", "1,3", "--segment", "32"], "chunk sizes that divide"),
    (["--chunks", "1,x"], "'1,x' is no list of whole numbers with commas between"),
    (["--vocabulary", "200"], "vocabulary is 200"),
    (["--segment", "100000"], "the validation text has"),
    (["--batch", "30000", "--order", "consecutive"], "the train text has"),
    (["--data", "nowhere.txt"], "nowhere.txt' in "),
    (["--data", "EMPTY"], "empty"),
    (["--config", "nowhere.json"], "there is no file nowhere.json"),
    (["--config", "LIST"], "holds a list"),
    (["--config", "TORN"], "is not JSON"),
    (["--config", "DEEP"], "is not JSON"),
    (["--config", "NUMBERS"], "unknown setting 'config'"),
    (["--config", "UNKNOWN"], "unknown setting 'widht', did you mean 'width'?"),
    (["--config", "KIND"], "lr is '1'; it must be a finite number, such as 0.002"),
    (["--resume", "nowhere"], "there is no file nowhere"),
    (["--out", "USED"], "is in use; choose another --out"),
    (["--out", "EMPTY"], "is in use; choose another --out"),
    (["--out", "/dev/null/run"], "cannot be made (Not a directory); choose another --out"),
    (["--preset", "paper-1.3b", "--width", "65536"], "--dry-run says what a run would take"),
])
def test_bad_input_is_answered_in_one_line(text, tmp_path, capsys, arguments, words):
    files = {"EMPTY": "", "LIST": "[1]", "TORN": '{"lr": ', "UNKNOWN": '{"widht": 1}', "KIND": '{"lr": "1"}',
             "DEEP": "[" * 100_000, "NUMBERS": '{"config": 5, "training": 6}'}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "USED").mkdir()
    (tmp_path / "USED" / "thesis.txt").write_text("irreplaceable", encoding="utf-8")
    arguments = [str(tmp_path / a) if a in files or a == "USED" else a for a in arguments]
    base = [] if "--resume" in arguments or "--preset" in arguments else SMALL
    defaults = ["--data", str(text), "--out", str(tmp_path / "run")]
    given = [*base, *([] if "--resume" in arguments else defaults), *arguments]
    assert train.main(given) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "run").exists()
    assert [p.name for p in (tmp_path / "USED").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: os.truncate(f / "checkpoint.npz", 5000), "not a readable checkpoint"),
    (lambda f: flip(f / "checkpoint.npz"), "not a readable checkpoint"),
    (lambda f: (f / "checkpoint.npz").unlink(), "there is no checkpoint"),
    (lambda f: hope.save(f / "checkpoint.npz", hope.load(f / "checkpoint.npz")[0]), "no run to go on"),
    (lambda f: edit(f / "config.json", "config", "width", 32), "they differ in width"),
    (lambda f: edit(f / "config.json", "config", "widht", 32), "did you mean 'width'?"),
    (lambda f: edit(f / "config.json", "training", "batch", 3), "the saved position is for batch 2"),
    (lambda f: edit(f / "config.json", "training", "optimizer", "sgd"), "not of SGD"),
    (lambda f: edit(f / "config.json", "data", "sha256", "0"), "the data is not what this run began"),
    (lambda f: (f / "config.json").write_text("{}", encoding="utf-8"), "was not written by a run"),
    (lambda f: edit(f / "config.json", None, "preset", ["tiny"]), "was not written by a run"),
    (lambda f: edit(f / "config.json", None, "config", []), "was not written by a run"),
    (lambda f: edit(f / "config.json", None, "data", {}), "was not written by a run"),
    (lambda f: hope.save(f / "checkpoint.npz", hope.load(f / "checkpoint.npz")[0], progress=np.array('{"step": 1}')),
     "no run to go on"),
    (lambda f: (f / "log.jsonl").write_bytes(b'{"step": \n' + (f / "log.jsonl").read_bytes()),
     "line 1 is not a line of a log"),
    (lambda f: (f / "log.jsonl").write_bytes(b'7\n' + (f / "log.jsonl").read_bytes()), "line 1 is not a line of a log"),
    (lambda f: (f / "log.jsonl").write_bytes(b'"\xff"\n' + (f / "log.jsonl").read_bytes()),
     "line 1 is not a line of a log"),
], ids=["cut", "flipped", "gone", "no run", "other shape", "other key", "other batch", "other optimiser",
        "other data", "no settings", "list for preset", "list for config", "no sum", "no place", "torn line",
        "number for line", "no text"])
def test_a_run_that_cannot_go_on_says_why(text, tmp_path, capsys, change, words):
    small(text, tmp_path / "run", {"mixer": "linear"}, steps=2).begin().train(1)
    change(tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    assert words in one_line(capsys) and (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_a_model_without_its_documents_is_no_run_to_go_on_with(text, tmp_path, capsys):
    small(text, tmp_path / "run", steps=2).begin().train(1)
    path = tmp_path / "run" / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    del about["data"]["documents"]  # as in the demonstration
    path.write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "other.txt").write_text("something else " * 99, encoding="utf-8")
    assert train.main(["--resume", str(tmp_path / "run"), "--data", str(tmp_path / "other.txt")]) == 2
    assert "the data is not what this run began with" in one_line(capsys)


def test_a_run_of_a_preset_that_is_no_more_goes_on(text, tmp_path):
    small(text, tmp_path / "run", steps=3).begin().train(1)
    path = tmp_path / "run" / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(about | {"preset": "once"}), encoding="utf-8")
    run = train.resume(tmp_path / "run", {})
    assert run.preset == "once" and run.config.width == 16 and run.step == 1 and not run.train(2)


def test_a_run_goes_on_with_the_same_data_elsewhere(text, tmp_path):
    moved = tmp_path / "elsewhere" / "another name.txt"
    moved.parent.mkdir()
    moved.write_bytes(text.read_bytes())
    small(text, tmp_path / "run", steps=3).begin().train(2)
    whole = small(text, tmp_path / "whole", steps=3).begin()
    whole.train(3)
    run = train.resume(tmp_path / "run", {"data": (str(moved),)})
    assert run.step == 2 and not run.train(3)
    assert not differing(checkpoint(whole.folder), checkpoint(run.folder))
    moved.write_text("something else", encoding="utf-8")
    with pytest.raises(ValueError, match=r"say with --data where it lies, or start from its weights: --from"):
        train.resume(tmp_path / "run", {"data": (str(text), str(moved))})


def test_fewer_steps_than_were_taken_are_refused_with_both_numbers(text, tmp_path, capsys):
    small(text, tmp_path / "run", steps=3).begin().train(3)
    train.finish(train.resume(tmp_path / "run", {}))
    before, log = checkpoint(tmp_path / "run"), (tmp_path / "run" / "log.jsonl").read_bytes()
    capsys.readouterr()
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "2"]) == 2
    assert "has taken 3 steps, and --steps 2 is fewer: give more, or leave it out" in one_line(capsys)
    assert not differing(before, checkpoint(tmp_path / "run"))
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_the_folder_of_a_run_that_trains_is_locked(text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    small(text, folder, steps=3).begin()
    with folders.locked(folder):
        assert train.main(["--resume", str(folder)]) == 2
    assert one_line(capsys) == f"another process is training in {folder}; wait for it, or stop it"
    monkeypatch.setattr(train, "finish", lambda run: train.main(["--resume", str(folder)]) != 2)
    assert train.main(["--resume", str(folder)]) == 0


def test_a_run_among_its_own_data_reads_none_of_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a note, and another one\n" * 99, encoding="utf-8")
    assert main("--data", ".", "--steps", 2, "--sample-every", 1) == 0
    assert train.main(["--resume", str(next((tmp_path / "runs").iterdir())), "--steps", "3"]) == 0
    assert "left out, as they are runs: 1 (tiny-" in capsys.readouterr().out


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path, part, name, value):
    found = json.loads(path.read_text(encoding="utf-8"))
    (found[part] if part else found)[name] = value
    path.write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--eta-max", "0.5"], ["--preset", "tiny"], ["--out", "elsewhere"]])
def test_a_resumed_run_keeps_its_model(text, tmp_path, capsys, arguments):
    small(text, tmp_path / "run").begin()
    assert train.main(["--resume", str(tmp_path / "run"), *arguments]) == 2
    assert "keeps" in one_line(capsys)


# steps ------------------------------------------------------------------------------------------------------

def test_consecutive_segments_carry_the_state_until_the_text_begins_anew(text, tmp_path, monkeypatch):
    run, pasts = small(text, tmp_path, {"mixer": "linear"}, order="consecutive"), []
    run.segments = Segments(Corpus.from_paths(str(text)).split("validation"), 2, 32, "consecutive")
    loss = run.model.loss
    monkeypatch.setattr(run.model, "loss", lambda tokens, past: pasts.append(past) or loss(tokens, past))
    count = (len(run.segments.text) - 1) // 2 // 32
    for _ in range(count + 2):
        run.advance()
    assert [past is None for past in pasts] == [True, *[False] * (count - 1), True, False]
    assert pasts[1].blocks[0].mixer.S.node is None  # no gradient runs from one segment into the last


def test_attention_with_a_window_carries_what_lies_in_it(text, tmp_path):
    for mixer in ("attention", "ada"):
        run, sizes = small(text, tmp_path, {"mixer": mixer, "window": 8}, order="consecutive"), []
        for _ in range(3):
            run.advance()
            sizes.append(run.state.nbytes)
        assert sizes[0] == sizes[1] == sizes[2] > 0


def test_shuffled_segments_and_attention_carry_nothing(text, tmp_path):
    for config, order in (({}, "shuffled"), *(({"mixer": mixer}, "consecutive") for mixer in
                                              ("attention", "ada", "gated+attention"))):
        run = small(text, tmp_path, config, order=order)
        run.advance()
        assert run.state is None


def test_two_accumulated_batches_are_one_of_twice_the_size(text, tmp_path):
    one, two = (small(text, tmp_path, accumulate=n, clip=1e9) for n in (1, 2))
    one.segments = Segments(one.segments.text, 4, 32)
    a, b = one.advance(), two.advance()
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    for p, q in zip(one.optimizer.params, two.optimizer.params, strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_follows_the_schedule(text, tmp_path):
    run = small(text, tmp_path, steps=10, warmup=2, final=0.5, lr=0.01, schedule="linear")
    rates = [run.advance()["learning_rate"] for _ in range(10)]
    np.testing.assert_allclose(rates[:3], [0.005, 0.01, 0.01])
    np.testing.assert_allclose(np.diff(rates[2:]), -0.005 / 8)


def test_training_learns(text, tmp_path):
    run = small(text, tmp_path, steps=60, lr=1e-2)
    first = run.advance()["loss"]
    for _ in range(40):
        last = run.advance()["loss"]
    assert last < first - 2  # nats: digits, spaces and four words


# from a trained run ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A run of six steps with levels of chunk sizes 1 and 4, and one with a single level."""
    runs = {}
    for name, chunks in (("two", (1, 4)), ("one", (1,))):
        run = small(text, tmp_path_factory.mktemp("trained") / name, {"mixer": "linear", "chunks": chunks}, steps=6)
        run.begin().train(6)
        runs[name] = run
    return runs


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "other.txt"
    path.write_text("quite another text, and not a number in it\n" * 200, encoding="utf-8")
    return path


def begun_from(origin, *arguments):
    """The run that a command with --from begins, not trained yet."""
    wanted, given = train.command.parse(["--from", str(origin), *map(str, arguments)])
    return train.begin(*train.command.asked(wanted, given))


def test_a_run_from_another_has_its_weights_settings_and_clocks_and_other_data(trained, other, tmp_path):
    old = trained["two"]
    before = checkpoint(old.folder)
    run = begun_from(old.folder, "--data", other, "--out", tmp_path / "run", "--steps", 4)
    assert run.config == old.config and run.training.batch == 2 and run.training.data == (str(other),)
    assert run.step == 0 and run.optimizer.clock == 6
    for name, weight in run.model.state_dict().items():
        np.testing.assert_array_equal(weight, old.model.state_dict()[name])
    run.train(4)
    assert [line["fired"] for line in read_log(run.folder)] == [[1], [1, 4], [1], [1]]  # steps 7 to 10 of its life
    assert not differing(before, checkpoint(old.folder))
    again = begun_from(run.folder, "--out", tmp_path / "again")
    assert again.optimizer.clock == 10 and again.training.data == (str(other),)
    resumed = train.resume(run.folder, {"steps": 5})
    assert resumed.optimizer.clock == 10 and resumed.step == 4


def test_a_run_from_another_is_described_well_enough_to_be_repeated(trained, other, tmp_path):
    first = begun_from(trained["two"].folder, "--data", other, "--out", tmp_path / "first", "--steps", 2)
    first.train(2)
    assert train.main(["--config", str(first.folder / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert not differing(checkpoint(first.folder), checkpoint(tmp_path / "again"))


@pytest.mark.parametrize(("flags", "same"), [
    (["--cms", "spread", "--layers", "1", "--chunks", "4"], "bits"),
    (["--cms", "independent", "--chunks", "1,4,16"], "rounding")])
def test_the_mlps_of_a_run_with_one_level_become_levels(trained, tmp_path, flags, same):
    old = trained["one"]
    run = begun_from(old.folder, *flags, "--out", tmp_path / "run")
    assert [level.chunk for level in run.model.blocks[0].cms.levels] == list(run.config.chunks)
    found, expected = run.evaluate()[0], old.evaluate()[0]
    assert found == expected if same == "bits" else found == pytest.approx(expected, rel=1e-5)
    stacked = cms.stack_levels(old.model.state_dict(), old.config, run.config)
    assert all(np.array_equal(weight, stacked[name]) for name, weight in run.model.state_dict().items())


@pytest.mark.parametrize(("arguments", "words"), [
    (["--cms", "sequential", "--chunks", "1,4,16"], "would apply the trained MLP several times"),
    (["--width", "32"], "do not fit a model with other width"),
    (["--mixer", "attention"], "do not fit a model with other mixer"),
    (["--preset", "tiny"], "keeps its settings; leave out --preset"),
    (["--from", "nowhere"], "there is no checkpoint"),
])
def test_what_cannot_start_from_a_run_is_one_line_and_leaves_no_folder(trained, tmp_path, capsys, arguments, words):
    assert train.main(["--from", str(trained["one"].folder), "--out", str(tmp_path / "run"), *arguments]) == 2
    assert words in one_line(capsys) and not (tmp_path / "run").exists()


# checkpoints that are kept -----------------------------------------------------------------------------------------

def test_the_last_checkpoints_are_kept_and_the_best_by_validation_text(text, tmp_path, monkeypatch):
    bits, folder = iter([4.0, 3.0, 3.5, 2.7, 2.5]), tmp_path / "run"
    monkeypatch.setattr(Run, "evaluate", lambda run: (next(bits), run.text))

    def kept():
        return sorted(path.stem.removeprefix("checkpoint-00000") for path in folder.glob("*.npz"))
    small(text, folder, steps=4, checkpoint_every=1, keep=2).begin().train(3)  # it stops before the third is judged
    assert kept() == ["1", "2", "best", "checkpoint"] and step_of(folder / "best.npz") == 2
    run = train.resume(folder, {})
    assert not run.train(4) and kept() == ["2", "3", "best", "checkpoint"]
    assert step_of(folder / "best.npz") == 2  # 3.0 stands: it is known after a stop, too
    assert train.main(["--resume", str(folder)]) == 0
    assert kept() == ["3", "4", "best", "checkpoint"] and step_of(folder / "best.npz") == 4
    assert [line["validation"] for line in folders.log_lines(folder) if "validation" in line] == [4.0, 3.0, 3.5, 2.7]
    assert train.main(["--resume", str(folder), "--steps", "5"]) == 0
    assert kept() == ["4", "5", "best", "checkpoint"] and step_of(folder / "best.npz") == 5


def test_of_a_million_steps_the_newest_are_kept(tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"now")
    (tmp_path / "checkpoint-backup.npz").write_bytes(b"somebody's own")
    for step in (999_900, 1_000_000, 1_000_100):
        checkpoints.keep(tmp_path, step, last=2, best=False)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-1000000.npz", "checkpoint-1000100.npz", "checkpoint-backup.npz"}


def step_of(path):
    return json.loads(str(hope.load(path)[2]["progress"]))["step"]


def test_keeping_checkpoints_changes_no_bit_and_a_run_may_start_from_any(text, tmp_path):
    for keep in (0, 3):
        run = small(text, tmp_path / str(keep), steps=4, checkpoint_every=2, keep=keep).begin()
        assert not run.train(4) and not train.finish(run)
    assert not differing(checkpoint(tmp_path / "0"), checkpoint(tmp_path / "3"))
    assert not list((tmp_path / "0").glob("checkpoint-*"))
    second = tmp_path / "3" / "checkpoint-000002.npz"
    run, weights = begun_from(second, "--out", tmp_path / "run"), hope.load(second)[0].state_dict()
    assert all(np.array_equal(weight, weights[name]) for name, weight in run.model.state_dict().items())
    assert run.optimizer.clock == 2


# where it runs -----------------------------------------------------------------------------------------------------

def test_a_run_in_a_thread_is_the_same(text, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, "--data", text, "--out", tmp_path / "thread", "--steps", 2).result() == 0
    assert main("--data", text, "--out", tmp_path / "main", "--steps", 2) == 0
    assert not differing(checkpoint(tmp_path / "thread"), checkpoint(tmp_path / "main"))


def test_a_run_in_a_notebook_or_without_a_console_runs(text, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    for name, stream in (("notebook", io.StringIO()), ("none", None)):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        arguments = command("--data", text, "--out", tmp_path / name, "--steps", 1, quiet=False)
        monkeypatch.setattr(sys, "argv", arguments[1:])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")  # as %run does
        assert (tmp_path / name / "sample.txt").exists()
        if stream is None:
            sys.stdout.close()
            sys.stderr.close()
        else:
            assert "bits per byte" in stream.getvalue() and "what now?" in stream.getvalue()
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_pictures_and_with_a_poor_screen_the_score_and_the_sample_come_first(text, tmp_path):
    folder = tmp_path / "run"
    poor = os.environ | {"MPLBACKEND": "that of a notebook", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command("--data", text, "--out", folder, "--steps", 1, quiet=False), capture_output=True,
                          env=poor, timeout=300)
    out = done.stdout.decode("ascii")
    assert done.returncode == 0 and b"Traceback" not in done.stderr and not list(folder.glob("*.png"))
    assert out.index("\\u25b6") < out.index("bits per byte") < out.index("no pictures: ") < out.index("what now?")


def test_a_run_that_ends_says_what_can_be_done_with_it(finished):
    folder, out, _ = finished
    for words in (f"python -m apps.chat {folder}", f"python -m apps.serve {folder}",
                  f"python train.py --resume {folder} --baseline", f"python train.py --from {folder} --data"):
        assert words in out[out.index("what now?"):]
