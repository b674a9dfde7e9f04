"""benchmarks/: what is timed computes the same, takes turns, and is reported as it was measured."""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import harness, report
from benchmarks.__main__ import BENCHMARKS, IMITATED, Options, main, parse
from benchmarks.harness import Disagreement, Failed, Job, Others, agree, race, ratio, take_turns
from benchmarks.report import Result, Table, Target, cell, page, rewrite
from benchmarks.worker import Contender, scheduled

HERE = "tests.test_benchmarks:"

# Programs to be timed; each runs in a process of its own ----------------------------------------------------


def says(answer, name="x"):
    return Contender(lambda: None, lambda: {name: np.array(answer), "large": np.ones(3)})


def notes(file, letter, seconds=0.0):
    def step(add=""):
        time.sleep(seconds)
        with open(file, "a", encoding="utf-8") as f:
            f.write(letter + add)
        return letter
    return Contender(step, None, {"threads": os.environ["OMP_NUM_THREADS"]})


def takes_memory(megabytes):
    return Contender(lambda: np.ones(megabytes << 17).size, None)


def needs_torch():
    raise ModuleNotFoundError("No module named 'torch'")


def chatters():
    print("a library that prints")
    return says(1.0)


def dies():
    os._exit(3)


def sleeps():
    time.sleep(60)


def refuses(options):
    raise Disagreement("ours and theirs differ in loss")


def finds(options):
    table = Table("Some", ["a", "b"], [[options.rounds, 0.5]])
    return Result("ceiling", [table], [Target.least("speed", 2.0, 1.0)])


# The harness ------------------------------------------------------------------------------------------------


def test_programs_that_agree_may_be_timed_and_the_difference_is_told():
    jobs = {"ours": Job(HERE + "says", {"answer": 1.0}), "theirs": Job(HERE + "says", {"answer": 1.0001})}
    with race(jobs, 1) as lanes:
        assert 0.9e-4 < agree(lanes, 1e-3) < 1.1e-4


@pytest.mark.parametrize("arguments, words", [
    ({"answer": 1.1}, "differ in x by 0.1"),
    pytest.param({"answer": float("nan")}, "differ in x", marks=pytest.mark.slow),  # a process each
    pytest.param({"answer": [1.0, 1.0]}, "shape", marks=pytest.mark.slow),
    ({"answer": 1.0, "name": "y"}, "only one of ours and theirs answers 'x'")])
def test_programs_that_disagree_are_refused_and_the_error_says_where(arguments, words):
    jobs = {"ours": Job(HERE + "says", {"answer": 1.0}), "theirs": Job(HERE + "says", arguments)}
    with race(jobs, 1) as lanes, pytest.raises(Disagreement, match=words):
        agree(lanes, 1e-3)


@pytest.mark.slow
def test_programs_take_turns_and_short_steps_are_repeated_within_a_turn(tmp_path):
    file = str(tmp_path / "log")
    jobs = {"A": Job(HERE + "notes", {"file": file, "letter": "A", "seconds": 0.4}),
            "B": Job(HERE + "notes", {"file": file, "letter": "B", "seconds": 0.14}, {"add": "+"})}
    with race(jobs, 1) as lanes:
        take_turns(lanes, rounds=3, seconds=0.01)
        assert len(lanes["A"].rounds) == len(lanes["B"].rounds) == 3  # three, however little time there is
        assert len(lanes["A"].times) == 3 and len(lanes["B"].times) == 6
        assert ratio(lanes["A"], lanes["B"]) > 2 and lanes["A"].median >= 0.4
        assert lanes["A"].values == ["A"]
    assert Path(file).read_text(encoding="utf-8") == "AA" + "B+B+" + 3 * "AB+B+"


def test_a_process_gets_its_number_of_threads_and_jobs_made_alike_share_one(tmp_path):
    job = Job(HERE + "notes", {"file": str(tmp_path / "log"), "letter": "A"})
    with race({"A": job, "B": Job(job.make, job.arguments, {"add": "!"})}, 2) as lanes:
        assert lanes["A"].process is lanes["B"].process
        assert lanes["A"].process.about == {"threads": "2"}


def test_the_peak_of_memory_is_that_of_the_program_and_not_of_this_process():
    ballast = np.ones(300 << 17)  # 300 MB
    with race({"A": Job(HERE + "takes_memory", {"megabytes": 100})}, 1) as lanes:
        before = lanes["A"].process.peak
        lanes["A"].step()
        assert 95e6 < lanes["A"].process.peak - before < 130e6
        assert before < ballast.nbytes


def test_what_is_optional_and_not_installed_is_left_out_and_that_is_said(capfd):
    jobs = {"ours": Job(HERE + "says", {"answer": 1.0}), "PyTorch": Job(HERE + "needs_torch")}
    with race(jobs, 1) as lanes:
        assert list(lanes) == ["ours"]
    assert "left out: PyTorch: ModuleNotFoundError: No module named 'torch'" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("make, limit, words", [
    ("dies", 300, "ended with 3"), ("sleeps", 1, "no reply within 1 s"), ("missing", 300, "AttributeError")])
def test_a_program_that_cannot_be_built_fails_with_its_name_unless_it_may(make, limit, words, capfd):
    job = Job(HERE + make, limit=limit)
    with pytest.raises(Failed, match=f"theirs: .*{words}"), race({"theirs": job}, 1):
        pass
    with race({"theirs": job}, 1, may_fail=("theirs",)) as lanes:
        assert not lanes
    assert words in capfd.readouterr().err


def test_what_a_library_prints_does_not_get_between():
    with race({"ours": Job(HERE + "chatters")}, 1) as lanes:
        assert lanes["ours"].answer()["x"] == 1


# The command line -------------------------------------------------------------------------------------------


def test_all_benchmarks_run_unless_some_are_named_and_in_their_order():
    assert parse([])[0] == list(BENCHMARKS)
    assert parse(["hope", "ceiling"])[0] == ["ceiling", "hope"]


@pytest.mark.parametrize("arguments, words", [
    (["hop"], "unknown benchmark 'hop'"), (["--threads", "0"], "give numbers from 1"),
    (["--threads", "x"], "threads"), (["--rounds", "2"], "at least 3"),
    (["--seconds", "0"], "positive"), (["--seconds", "nan"], "positive"),
    (["--small", "--readme"], "do not go into README.md")])
def test_a_bad_argument_gets_one_clear_line_and_exit_code_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "error: " in last and words in last


def test_the_command_line_reaches_the_benchmark():
    _, options, _ = parse(["loss", "--threads", "1", "--rounds", "5", "--seconds", "3", "--small", "--eager"])
    assert options == Options(threads=(1,), rounds=5, seconds=3.0, small=True, eager=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_there_and_needs_no_other_framework_to_be_imported(name):
    module, _, function = BENCHMARKS[name].partition(":")
    assert getattr(importlib.import_module(module), function).__doc__


def test_programs_that_disagree_give_no_numbers_and_exit_code_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "ceiling", HERE + "refuses")
    file = tmp_path / "results.json"
    assert main(["ceiling", "--json", str(file)]) == 1
    out, err = capsys.readouterr()
    assert not out and "differ in loss" in err and not file.exists()


def begins(options):
    with race({"ours": Job(HERE + "says", {"answer": 1.0})}, 1):
        pass


def test_ctrl_c_is_one_line_and_leaves_no_program_and_no_timer_behind(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
    started = []
    monkeypatch.setitem(BENCHMARKS, "ceiling", HERE + "begins")
    monkeypatch.setattr(harness.subprocess, "Popen", lambda *a, **k: started.append(Popen(*a, **k)) or started[-1])
    monkeypatch.setattr(harness, "print", interrupted, raising=False)  # as the first question is asked
    threads = threading.active_count()
    assert main(["ceiling"]) == 130
    assert capsys.readouterr().err == "stopped\n" and threading.active_count() == threads
    assert started[0].poll() is not None


def test_results_are_kept_beside_those_of_other_benchmarks(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "ceiling", HERE + "finds")
    file = tmp_path / "results.json"
    assert main(["ceiling", "--json", str(file), "--rounds", "4"]) == 0
    assert "| 4 | 0.5 |" in capsys.readouterr().out
    report.merge(file, {"start": json.loads(file.read_text(encoding="utf-8"))["ceiling"]}, list(BENCHMARKS))
    assert main(["ceiling", "--json", str(file), "--rounds", "5"]) == 0
    found = report.read(file)
    assert list(found) == ["ceiling", "start"]
    assert found["ceiling"]["tables"][0]["rows"] == [[5, 0.5]]
    assert found["start"]["tables"][0]["rows"] == [[4, 0.5]]
    assert found["ceiling"]["command"] == f"python -m benchmarks ceiling --json {file} --rounds 5"


def test_a_machine_without_avx512_is_imitated_and_kept_beside_this_one(monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "ceiling", HERE + "finds")
    for name in IMITATED:
        monkeypatch.setenv(name, "as it was")  # and will be again
    for kind in ([], ["--avx2"]):
        assert main(["ceiling", "--json", str(tmp_path / "results.json"), *kind]) == 0
        assert {os.environ[name] for name in IMITATED} == ({*IMITATED.values()} if kind else {"as it was"})
    assert list(report.read(tmp_path / "results.json")) == ["ceiling", "ceiling, AVX2"]


def test_a_file_of_something_else_is_not_overwritten(capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"width": 64}', encoding="utf-8")
    assert main(["ceiling", "--json", str(file)]) == 2
    assert "does not hold results" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == '{"width": 64}'


# The report -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, text", [
    (0.0, "0"), (0.012345, "0.0123"), (1.0, "1"), (1.999, "2"), (12.34, "12.3"), (123.4, "123"),
    (-0.5, "-0.5"), (1234.5, "1,234"), (1234567, "1,234,567"), (100, "100"), (None, "–"),
    (float("nan"), "–"), ("word", "word")])
def test_a_number_is_written_with_three_digits_that_count(value, text):
    assert cell(value) == text


@given(st.floats(1e-4, 1e6))
def test_what_is_written_is_the_number_to_three_digits(value):
    assert float(cell(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_a_target_is_met_missed_or_not_measured():
    assert Target.least("x", 2.0, 1.5).met is True and Target.least("x", 1.0, 1.5).met is False
    assert Target.most("x", 2.0, 1.5, " s") == Target("x", "≤ 1.5 s", "2 s", False)
    assert Target.most("x", None, 1.5).met is None and Target.least("x", float("nan"), 1.5).met is None


def test_the_page_holds_every_target_table_and_note_and_rewriting_changes_nothing_else():
    found = {"ceiling": finds(Options()).finished("python -m benchmarks ceiling", 12.0)}
    found["ceiling"]["notes"] = ["a | b"]
    text = page(found)
    for part in ("| [ceiling](#ceiling) | speed | ≥ 1 | 2 | yes |", "### ceiling", "**Some**", "| a | b |",
                 "- a | b", "`python -m benchmarks ceiling`", found["ceiling"]["date"],
                 found["ceiling"]["machine"]):
        assert part in text
    both = page(found | {"ceiling, AVX2": found["ceiling"]})
    assert "| [ceiling](#ceiling) | speed | ≥ 1 | 2 | yes | 2 | yes |" in both
    assert "<details><summary>ceiling, AVX2</summary>" in both
    around = f"before\n{report.BEGIN}old{report.END}\nafter"
    assert rewrite(around, found) == f"before\n{report.BEGIN}{text}{report.END}\nafter"
    with pytest.raises(ValueError, match="once each"):
        rewrite("no markers", found)


def test_the_readme_shows_what_was_measured():
    text = (report.HERE / "README.md").read_text(encoding="utf-8")
    assert rewrite(text, report.read(report.HERE / "results.json")) == text
    for name in BENCHMARKS:
        assert f"`{name}`" in text


def test_time_in_a_library_is_counted_for_the_function_of_ours_that_called_it():
    from benchmarks.harness import ROOT
    from benchmarks.training import by_room

    ours, other, library = ((str(ROOT / "layers.py"), 1, "linear"), (str(ROOT / "cms.py"), 1, "move"),
                            ("~", 0, "matmul"))
    stats = {ours: (1, 1, 1.0, 4.0, {}), other: (1, 1, 2.0, 3.0, {}),
             library: (4, 4, 4.0, 4.0, {ours: (3, 3, 3.0, 3.0), other: (1, 1, 1.0, 1.0)})}
    rooms, functions = by_room(stats)
    assert rooms == {"layers.py": 4 / 7, "cms.py": 3 / 7}
    assert functions == {"layers.py::linear": 4 / 7, "cms.py::move": 3 / 7}


def test_learning_by_steps_warms_up_cools_down_and_measures_where_it_is_asked():
    trainer = SimpleNamespace(clock=0, took=[])

    def step(batch, scale):
        trainer.clock += 1
        trainer.took.append((batch, scale))
    trainer.step = step
    learner = scheduled(trainer, "abc", lambda: 2 * np.log(2), steps=40, warmup=4, final=0.1)
    assert learner.step() == {"steps": 1} and learner.step(until=1) == {"steps": 1, "bits": 2}
    assert learner.step(until=40) == {"steps": 40, "bits": 2}
    batches, scales = zip(*trainer.took, strict=True)
    assert "".join(batches) == ("abc" * 14)[:40]
    assert scales[0] == 0.25 and 0.9 < max(scales) <= 1 and scales[-1] == pytest.approx(0.1, abs=0.01)


def test_the_curves_of_a_claim_stand_beside_that_of_pytorch(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import loss

    names = ("Hope", "gated delta", "Transformer")
    claim = {"x": ["minutes", [2, 4, 6]], "seeds": 2, "date": "2001-01-01", "steps": dict.fromkeys(names, 6),
             "sweep": {name: {"0.1": -2.0, "0.05": -1.0} for name in names},
             "scores": {"Hope": [[4, 3, 2.0], [4, 3, 2.1]], "gated delta": [[4, 3, 2.5], [4, 3, 2.6]],
                        "Transformer": [[4, 3, 1.9], [4, 3, 2.2]]}}
    (tmp_path / "clock.json").write_text(json.dumps(claim), encoding="utf-8")
    monkeypatch.setattr(loss, "CLAIM", tmp_path / "clock.json")
    found = loss.run(Options(threads=(1,), rounds=3, seconds=0.1, small=True))
    rows = {row[0]: row[1:] for row in found.tables[0].rows}
    assert list(rows) == ["nano", "gated delta", "Transformer, ours", "Transformer, PyTorch"]
    assert rows["gated delta"][:2] == [0.05, 6] and rows["gated delta"][-1] == "yes"
    assert rows["Transformer, ours"][-1] == "not shown" and rows["Transformer, PyTorch"][-1] == "one seed"
    assert [float(target.measured) for target in found.targets[:2]] == [-0.5, 0.0]
    assert 2 < float(rows["Transformer, PyTorch"][-2]) < 9


# What is compared -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_checkpoints_between_pieces_change_no_loss_and_no_gradient():
    from benchmarks.growth import ours

    settings = {"width": 16, "heads": 2, "hidden": 16, "memory_chunk": 8, "projection_chunk": 8,
                "form": "chunked"}
    whole, pieces = (ours(settings, 2, 30, piece).answer() for piece in (0, 12))
    for name, value in whole.items():
        np.testing.assert_allclose(pieces[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


ATTENTION = {"mixer": "attention", "chunks": (1,)}


@pytest.mark.parametrize("settings, optimizer, tolerance", [
    ({}, "adamw", 1e-7), ({"objective": "dot", "form": "chunked"}, "adamw", 1e-7), (ATTENTION, "adamw", 1e-7),
    (ATTENTION, "muon", 1e-2)], ids=["l2", "dot", "transformer", "muon"])  # its Newton–Schulz is in bfloat16
def test_the_port_to_pytorch_has_the_same_loss_and_gradients(settings, optimizer, tolerance, tmp_path):
    torch_port = pytest.importorskip("benchmarks.torch_port", reason="PyTorch is not installed")
    from benchmarks import training
    from config import Config

    config = Config(width=16, layers=2, heads=2, segment=70, hidden=16, memory_hidden=12, **settings)
    training.prepare(str(tmp_path), config, batch=2, batches=3)
    ours, theirs = (side(str(tmp_path), "float64", lr=1e-3, optimizer=optimizer).answer()
                    for side in (training.ours, torch_port.training))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        rtol = tolerance if name == "losses of three steps" else 1e-7
        np.testing.assert_allclose(theirs[name], value, rtol=rtol, atol=1e-9, err_msg=name)


def test_the_port_refuses_a_model_that_it_does_not_know():
    torch_port = pytest.importorskip("benchmarks.torch_port", reason="PyTorch is not installed")
    from dataclasses import asdict

    from config import Config

    with pytest.raises(ValueError, match="retention is 'zero'; the port knows 'initial'"):
        torch_port.Model(json.loads(json.dumps(asdict(Config(retention="zero")))))


@pytest.mark.parametrize("make", ["in_torch", "in_jax"])
def test_the_delta_rule_is_the_same_in_other_frameworks(make):
    pytest.importorskip(make[3:], reason=f"{make[3:]} is not installed")
    from benchmarks import delta

    shape = [1, 2, 128, 8]
    ours, theirs = (getattr(delta, program)(shape, True).answer() for program in ("ours", make))
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_what_our_own_processes_spend_is_not_that_of_others_after_they_ended_either(monkeypatch):
    """A machine of which we used 8 s ourselves, 20 s in a process that runs and 30 s in ended ones; others 2 s."""
    def spent(user, system, **more):
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=user, system=system, **more))
    me = spent(6.0, 2.0, children_user=25.0, children_system=5.0)
    me.children = lambda: [spent(19.0, 1.0)]
    machine = SimpleNamespace(user=50.0, system=9.0, steal=1.0)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: me, cpu_times=lambda: machine))
    assert Others.used() == pytest.approx(2)
