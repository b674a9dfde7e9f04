"""The tools around the loop: what was asked for, the folder, what the machine has, how a program is stopped."""

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
import hope
import optimizers
import train
from config import MIXERS, PRESETS, Config, Training
from hope import Hope
from optimizers import OPTIMIZERS
from tools import checkpoint, command, console, early, folder, machine, plots, stopping

ROOT = Path(__file__).resolve().parent.parent
SMALL = replace(PRESETS["tiny"][0], layers=1, segment=32, width=16, hidden=16)


def python(*arguments, **changed):
    """Run Python in the checkout."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300,
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"} | changed)


# settings ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_can_be_typed_as_a_flag_and_read_from_json(preset):
    config, training = PRESETS[preset]
    values = asdict(config) | asdict(training)
    typed = [word for name, value in values.items() if value not in ((), "") or name == "options" for word in
             (command.FLAGS[name], *(value if name == "data" else [command.typed(value)]))]
    assert command.settings("nano", command.parse(typed)[1]) == PRESETS[preset]
    assert command.settings("nano", json.loads(json.dumps(values))) == PRESETS[preset]


def test_a_path_of_data_that_is_empty_is_refused():
    with pytest.raises(ValueError, match="data holds a path that is empty"):
        Training(data=("",))


def shown_help(capsys, *arguments):
    with pytest.raises(SystemExit, match="0"):
        train.main([*arguments, "--help"])
    return capsys.readouterr().out


def test_every_flag_is_explained_with_the_default_of_the_preset_that_runs(capsys):
    shown = " ".join(shown_help(capsys).split())
    for name in command.DEFAULTS:
        assert f"{command.FLAGS[name]} " in shown
    assert "B, segments read side by side [8]" in shown and "D, the length of the vector" in shown
    assert "learning rate after the warm-up [0.05]" in shown and "steps of the optimiser [500]" in shown  # of nano
    shown = " ".join(shown_help(capsys, "--preset", "tiny").split())
    assert "learning rate after the warm-up [0.002]" in shown and "steps of the optimiser [20]" in shown


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_help_names_every_choice_and_every_option_at_any_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = shown_help(capsys)
    shown = " ".join(out.split())
    for name in [*config.MIXERS, *config.CHOICES["cms"], *config.CHOICES["optimizer"]]:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", shown), name
    for name, rung in OPTIMIZERS.items():
        own = [option for option in rung.defaults if option not in optimizers.Optimizer.defaults]
        line = re.search(rf" {name}: (.*?)(?: [a-z0-9_]+: |$)", shown)[1]
        assert [option.partition("=")[0] for option in line.split()] == ["lr", *own]
    options = out[out.index("options of each --optimizer"):].splitlines()
    assert max(map(len, options)) <= max(columns, 40)


@pytest.mark.parametrize(("says", "width"), [((0, 0), 72), ((132, 50), 132)])
def test_a_screen_that_says_it_has_no_columns_has_as_many_as_one_that_is_not_there(monkeypatch, says, width):
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda fallback: os.terminal_size(says))
    assert console.columns(72) == width


def test_every_heading_of_the_settings_holds_some_and_all_stand_under_one():
    for part in (Config, Training):
        found = dict(command.headings(part))
        assert all(found.values()) and len(found) > 5
        assert [name for notes in found.values() for name in notes] == [f.name for f in fields(part)]


def test_an_optimiser_that_replaces_a_presets_own_brings_its_learning_rate():
    assert command.settings("nano", {"optimizer": "adamw"})[1].lr == config.RATES["adamw"] != PRESETS["nano"][1].lr
    assert command.settings("nano", {"optimizer": "adamw", "lr": 0.5})[1].lr == 0.5
    assert command.settings("nano", {"optimizer": "muon"})[1].lr == PRESETS["nano"][1].lr
    assert command.settings("nano", {"optimizer": "sgd", "lr": 7.0}, {"steps": 3})[1].lr == 7.0
    assert command.settings("nano", {"lr": 7.0}, {"optimizer": "sgd"})[1].lr == config.RATES["sgd"]
    assert set(config.RATES) == set(OPTIMIZERS)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "settings.json"
    settings = {"steps": 3, "lr": 1, "chunks": [1, 2], "out": "elsewhere"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    wanted, given = command.parse(["--preset", "tiny", "--config", str(path), "--steps", "2", "--width", "16"])
    _, model, training = command.asked(wanted, given)
    assert (training.steps, training.lr, model.chunks, model.width, model.layers) == (2, 1, (1, 2), 16, 2)


def test_a_file_of_settings_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "settings.json").write_text('{"steps": 3}', encoding="utf-8-sig")
    wanted, given = command.parse(["--config", str(tmp_path / "settings.json")])
    assert command.asked(wanted, given)[2].steps == 3


@given(st.integers(1, 10**6), st.floats(1e-9, 1e9), st.booleans(), st.lists(st.integers(1, 99), min_size=1))
def test_what_is_typed_is_what_is_read(steps, lr, quiet, chunks):
    found = command.parse(["--steps", str(steps), "--lr", repr(lr), "--quiet", command.typed(quiet),
                         "--chunks", command.typed(chunks)])[1]
    assert found == {"steps": steps, "lr": lr, "quiet": quiet, "chunks": tuple(chunks)}


@pytest.mark.parametrize(("options", "words"), [
    (["beta1=1"], "beta1 = 1: must be below 1"), (["eps=abc"], "eps = abc: must be a number"),
    (["beta2=true"], "beta2 = True: must be a number"), (["eps=NaN"], "eps = nan: must be finite"),
    (["eps"], "'eps' has no value; write name=value"), (["epsilon=1"], "did you mean 'eps'?")])
def test_options_that_cannot_be_are_refused_before_the_first_step(options, words):
    model = Hope(SMALL, None)
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizers.build("adamw", model.groups(), 0.1, **Training(options=tuple(options)).rung())


# the folder -------------------------------------------------------------------------------------------------

def test_whoever_asks_for_a_folder_in_the_same_second_gets_one_of_their_own(tmp_path):
    barrier = threading.Barrier(8)

    def begin(i):
        barrier.wait()
        with folder.made(tmp_path / "runs" / "tiny-1", exact=False) as made:
            (made / "config.json").write_text(str(i), encoding="utf-8")
        return made, i
    with ThreadPoolExecutor(8) as pool:
        found = dict(pool.map(begin, range(8)))
    assert {path.name for path in found} == {"tiny-1", *(f"tiny-1-{n}" for n in range(2, 9))}
    assert all((path / "config.json").read_text(encoding="utf-8") == str(i) for path, i in found.items())


@pytest.mark.parametrize("there", [False, True])
def test_one_folder_that_is_named_goes_to_one_of_many(tmp_path, there):
    if there:
        (tmp_path / "run").mkdir()
    barrier = threading.Barrier(8)

    def begin(i):
        barrier.wait()
        try:
            with folder.made(tmp_path / "run"):
                return True
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'run'} is in use; choose another --out")
            return False
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(8))) == 1


@pytest.mark.parametrize("exact", [True, False])
def test_what_could_not_be_begun_leaves_no_folder_behind(tmp_path, exact):
    for parent in ("runs/deep", "empty"):
        with pytest.raises(KeyboardInterrupt), folder.made(tmp_path / parent / "run", exact) as made:
            (made / "config.json").write_text("{}", encoding="utf-8")
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), folder.made(tmp_path / "mine") as made:
        raise KeyboardInterrupt
    assert (tmp_path / "mine").is_dir() and not list((tmp_path / "mine").iterdir())  # it was there before


def test_a_folder_in_which_a_process_trains_is_locked_until_it_ends(tmp_path):
    pytest.importorskip("fcntl")
    with folder.locked(tmp_path), pytest.raises(ValueError, match="another process is training in"):
        with folder.locked(tmp_path):
            pass
    with folder.locked(tmp_path), folder.locked(tmp_path / "not there"):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_the_last_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    for step, best in ((1, True), (2, False), (3, True), (4, False)):
        folder.write_text(tmp_path / "checkpoint.npz", str(step))
        checkpoint.keep(tmp_path, step, 2, best)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        "checkpoint.npz": "4", "checkpoint-000004.npz": "4", "checkpoint-000003.npz": "3", "best.npz": "3"}


def test_a_line_of_the_log_may_hold_any_character(tmp_path):
    line = {"step": 1, "loss": 1.0, "note": "a\u2028b\x85c"}
    folder.append(tmp_path / "log.jsonl", json.dumps(line, ensure_ascii=False) + "\n")
    assert folder.read_log(tmp_path) == [line]


def test_other_data_is_refused_with_what_differs_and_what_can_be_done(tmp_path):
    then = {"data": {"sha256": "a", "documents": {"x": 1, "y": 2}}, "versions": {"python": "3.11.7"}}
    folder.expect_data(tmp_path, then, {"sha256": "a", "documents": {}}, by_default=True)
    for now, by_default, words in (
            ({"x": 1, "z": 2}, False, r"\(2 files are others, such as y\): say with --data where it lies"),
            ({"x": 1, "y": 2}, False, r"\(the same names, other contents\): say with --data where it lies"),
            ({}, True, r"\(the library of Python 3\.11\.7\): go on with that Python")):
        with pytest.raises(ValueError, match=f"the data is not what this run began with {words}, or start from its "
                                             f"weights: --from {re.escape(str(tmp_path))}"):
            folder.expect_data(tmp_path, then, {"sha256": "b", "documents": now}, by_default)


# pictures and lines -----------------------------------------------------------------------------------------

def test_pictures_that_cannot_be_drawn_are_skipped_with_a_line(capsys):
    done = []
    plots.tried(lambda: done.append(1), lambda: 1 / 0, lambda: done.append(2))
    assert done == [1] and capsys.readouterr().out == "no pictures: ZeroDivisionError: division by zero\n"


def test_a_broken_backend_of_matplotlib_is_a_line(tmp_path):
    code = "from tools import plots; plots.tried(lambda: plots.canvas('title', 1)); print('went on')"
    done = python("-c", code, MPLBACKEND="a notebook's")
    assert done.returncode == 0 and done.stdout.startswith("no pictures: ") and done.stdout.endswith("went on\n")
    assert done.stdout.count("\n") == 2


def test_output_escapes_what_the_screen_lacks_and_goes_nowhere_without_one(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    console.ready()
    print("▶ ü", flush=True)
    assert sys.stdout.buffer.getvalue() == b"\\u25b6 \xfc\n"
    for stream in (io.StringIO(), None):  # a notebook's; none
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        console.ready()
        print("▶", file=sys.stdout)
        print("▶", file=sys.stderr)
        assert not sys.stderr.isatty()
        if stream is None:
            sys.stdout.close()
            sys.stderr.close()


# stopping ---------------------------------------------------------------------------------------------------

@pytest.fixture
def own_signals():
    """Signals as a program in the foreground has them, whatever started the tests."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def left(monkeypatch):
    """What was said when the program ended at once, which it does not do here."""
    said = []
    monkeypatch.setattr(stopping, "leave", lambda text, code: said.append((text, code)))
    return said


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_stops_what_runs_and_a_second_one_ends_the_program_with_what_is_kept(number, own_signals, left):
    with stopping.heeded(lambda: "step 3 is saved") as asked:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert asked and asked.code == 128 + number and not left
        with pytest.raises(KeyboardInterrupt):  # only because it did not end
            signal.raise_signal(number)
        assert left[0] == ("stopped at once; step 3 is saved", 128 + number)
    assert all(signal.getsignal(n) is signal.default_int_handler for n in stopping.SIGNALS)


def test_what_must_be_whole_is_finished_first(own_signals):
    done = []
    with stopping.heeded(lambda: "") as asked, pytest.raises(KeyboardInterrupt):
        with stopping.whole(), stopping.whole():
            signal.raise_signal(signal.SIGINT)
            done.append(bool(asked))
        done.append("never")
    assert done == [True]
    with stopping.whole():
        done.append("without anybody who listens")
    assert len(done) == 2


def test_within_another_only_the_words_change(own_signals, left):
    with stopping.heeded(lambda: "outer") as outer:
        with stopping.heeded(lambda: "inner") as inner:
            assert inner is outer and outer.kept() == "inner"
        assert outer.kept() == "outer"


def test_signals_that_were_ignored_from_the_start_stay_ignored_and_the_others_are_heard(own_signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's background do
    with stopping.heeded(lambda: "") as asked:
        signal.raise_signal(signal.SIGINT)
        assert not asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert asked.code == 128 + signal.SIGTERM


def test_in_a_thread_nothing_is_arranged_and_everything_runs():
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        def work():
            with stopping.heeded(lambda: "") as asked, stopping.whole():
                return signal.getsignal(signal.SIGINT) is before and not asked
        assert pool.submit(work).result()


BUSY = """
import _thread, ctypes, sys
from tools import stopping
libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)
libc.pthread_mutex_init(lock, None)
libc.pthread_mutex_lock(lock)
sys.setswitchinterval(1000)  # another thread has its turn when this one leaves Python, not before
def other():
    print("ready", flush=True)
    if sys.stdin.readline():
        libc.pthread_mutex_unlock(lock)
with stopping.heeded(lambda: "step 3 is saved", lambda: {complete}) as asked:
    try:
        _thread.start_new_thread(other, ())
        libc.pthread_mutex_lock(lock)  # does not come back to Python until a line has come
        sum(range(1000))
    except KeyboardInterrupt:
        print("stopped in good order", flush=True)
sys.exit(asked.code)
"""


def begun(code):
    """A Python program in the checkout that has said "ready" and may be sent signals, wherever the tests run."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8")
    assert program.stdout.readline() == "ready\n"
    return program


def test_a_program_that_is_busy_elsewhere_answers_at_once_and_stops_when_it_can():
    program = begun(BUSY.format(complete=False))
    program.send_signal(signal.SIGINT)
    err = program.stderr.readline() + program.stderr.readline()  # while it is still busy
    out, more = program.communicate("\n", timeout=300)
    assert not more and err == "\nstopping as soon as that can be done; step 3 is saved; once more ends it at once\n"
    assert out == "stopped in good order\n" and program.returncode == 130


def test_a_second_signal_ends_a_busy_program_without_a_traceback():
    program = begun(BUSY.format(complete=False))
    program.send_signal(signal.SIGINT)
    program.stderr.readline()
    assert program.stderr.readline().startswith("stopping as soon as that can be done")
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=300)
    assert err == "\nstopped at once; step 3 is saved\n" and not out and program.returncode == 130


def test_where_nothing_is_lost_one_signal_ends_a_busy_program():
    program = begun(BUSY.format(complete=True))
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=300)
    assert err == "\nstopped at once; step 3 is saved\n" and not out and program.returncode == 130


def test_before_anything_has_begun_one_is_enough():
    program = begun("import time\nfrom tools import early\nearly.settle([])\nprint('ready', flush=True)\n"
                    "exec('try:\\n time.sleep(60)\\nexcept BaseException:\\n pass')")  # as an import may
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=300)
    assert err == "\nstopped\n" and program.returncode == 130


PROGRAMS = ["train.py", "apps/chat.py", "apps/serve.py", "apps/evaluate.py", "apps/adopt/__main__.py",
            "apps/demonstration.py", "corpora/__main__.py", "benchmarks/__main__.py", "cluster/train.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_settles_who_answers_before_it_loads_anything_that_takes_time(program):
    body = iter(ast.parse((ROOT / program).read_text(encoding="utf-8")).body)
    loaded = []
    for part in body:
        if isinstance(part, ast.If):
            assert "early.settle(sys.argv)" in ast.unparse(part) and "__main__" in ast.unparse(part.test)
            break
        loaded += [one.name for one in part.names] if isinstance(part, ast.Import) else []
    assert set(loaded) <= {"os", "sys"}
    found = python("-c", "import sys; before = {*sys.modules}; import tools.early; print(*{*sys.modules} - before)")
    assert {*found.stdout.split()} <= {"tools", "tools.early", "itertools", "signal", "enum", "types", "operator",
                                       "_operator", "functools", "collections", "reprlib", "keyword", "_collections",
                                       "_functools", "__future__"}


@pytest.mark.parametrize(("arguments", "threads"), [(["--threads", "3"], "3"), (["--threads=4"], "4"), ([], None),
                                                    (["training.threads=2"], "2"), (["--threads", "none"], None),
                                                    (["--threads", "²"], None)])
def test_the_number_of_threads_is_known_before_numba_is_imported(monkeypatch, arguments, threads):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    early.settle(["train.py", *arguments])
    signal.signal(signal.SIGINT, handler)
    assert os.environ.get("NUMBA_NUM_THREADS") == threads
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)


# without training -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("preset", "parameters"), [("paper-760m", 760e6), ("paper-1.3b", 1.3e9)])
def test_the_papers_sizes_are_met_within_one_percent(preset, parameters):
    assert hope.count(PRESETS[preset][0]) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("config", [{}, {"memory": "matrix", "adaptive": ("k", "memory")},
                                    {"projection_chunk": 1}, {"layers": 3, "mixer": "attention+banks+generated"},
                                    *({"mixer": mixer} for mixer in MIXERS)])
def test_the_states_size_is_known_before_the_first_token(config):
    config = replace(PRESETS["tiny"][0], chunks=(1, 4), segment=33, **config)
    model, rng = Hope(config, np.random.default_rng(0)), np.random.default_rng(0)
    tokens = rng.integers(0, 256, (1, config.segment + 1))
    memories, levels = machine.state_bytes(Hope(config, None))
    _, state = model(tokens[:, :-1])
    assert state.nbytes == memories
    _, learned = model.learn(tokens)
    nothing = learned.reset("levels").nbytes
    assert learned.nbytes - nothing == levels


def test_the_optimisers_size_is_known_before_the_first_step():
    model, training = Hope(SMALL, np.random.default_rng(0)), PRESETS["tiny"][1]
    optimizer = optimizers.build(training.optimizer, model.groups(training.weight_decay), training.lr)
    model.loss(np.zeros((2, 33), np.int64))[0].backward()
    optimizer.step()
    kept = sum(np.asarray(v).nbytes for state in optimizer.state for v in state.values())
    assert machine.optimizer_bytes(model, training) == pytest.approx(kept, rel=0.02)


def test_a_dry_run_says_what_a_run_would_take_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--dry-run", "--preset", "tiny", "--layers", "1", "--width", "16"]) == 0
    out = capsys.readouterr().out
    for word in ("parameters", "state", "FLOPs", "memory", "data", "duration", "estimate"):
        assert word in out
    assert [line.split()[-3:] for line in out.splitlines() if "main memory" in line] == [["32", "128", "64"]]
    assert train.main(["--dry-run", "--preset", "tiny", "--cms", "spread", "--layers", "3", "--width", "16"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("typed", "words"), [
    (["--width", "1000000"], "weights, gradients and two moments alone take"), (["--width", str(10**10)], "no machine"),
    (["--batch", str(10**9)], "a batch of 1,000,000,000 alone takes 16.4 TB")])
def test_what_no_machine_can_hold_is_refused_before_the_start(tmp_path, monkeypatch, capsys, typed, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "memory", lambda: 1e12)
    assert train.main(["--preset", "tiny", *typed]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_doctor_says_what_there_is():
    done = python("train.py", "--doctor", "--threads=1")
    assert done.returncode == 0 and not done.stderr
    for word in ("python", "numpy", "BLAS", "limited to 1", "kernels", "cache", "GPU", "usable"):
        assert word in done.stdout


@pytest.mark.parametrize(("n", "words"), [(0, "0 bytes"), (999, "999 bytes"), (20_218_000, "20.2 MB")])
def test_sizes_are_said_in_words(n, words):
    assert console.amount(n) == words


def test_pictures_are_no_concern_of_the_start():
    assert python("-c", "import sys, train; sys.exit('matplotlib' in sys.modules)").returncode == 0


# the layout of another system -------------------------------------------------------------------------------

def given_as(found: dict) -> tuple[Config, Training]:
    return command.settings("nano", command.flat(found))


def test_settings_in_sections_mean_what_their_document_says():
    config, training = given_as({
        "model": {"hidden_size": 64, "vocab_size": 300, "seq_len": 128, "num_levels": 2,
                  "level_timescales": [1, 8], "continuum_mem": {"short_span": 9}},
        "self_modify": {"meta_lr": 0.5, "update_frequency": 16, "weight_mod_dim": 24},
        "deep_optimizer": {"slow_ema": 0.95, "sync_interval": 7, "gradient_compression_dim": 3},
        "training": {"batch_size": 2, "learning_rate": 1e-3, "num_steps": 5, "log_every": 2,
                     "use_random_data": False}})
    assert (config.width, config.vocabulary, config.segment, config.chunks) == (64, 300, 128, (1, 8))
    assert config.mixer == "attention+banks+generated" and config.spans == (2, 9, 32, 128, 512)
    assert (config.generator_rate, config.generator_chunk, config.generator_hidden) == (0.5, 16, 24)
    assert training.optimizer == "multi_timescale"
    assert set(training.options) == {"fast_lr_scale=1.0", "slow_lr_scale=0.1", "fast_ema=0.9",
                                     "slow_ema=0.95", "sync=7", "rank=3"}
    assert (training.batch, training.lr, training.steps, training.log_every) == (2, 1e-3, 5, 2)
    assert not training.random_data


def test_settings_in_sections_have_their_documents_defaults():
    config, training = given_as({"model": {}})
    assert (config.width, config.vocabulary, config.segment, config.chunks) == (384, 512, 256, (1, 4, 16))
    assert (config.generator_rate, training.lr, training.steps) == (1e-5, 1e-4, 1000) and training.random_data


def test_what_a_section_disables_is_left_out():
    off = {"enabled": False}
    config, training = given_as({"continuum_mem": off, "self_modify": off, "deep_optimizer": off})
    assert config.mixer == "attention" and training.optimizer == "adamw" and training.options == ()


@pytest.mark.parametrize("found, message", [
    ({"model": {"hiden_size": 8}}, "unknown key 'hiden_size' in 'model', did you mean 'hidden_size'"),
    ({"self_modifi": {"enabled": True}}, "unknown section 'self_modifi', did you mean 'self_modify'"),
    ({"model": {"continuum_mem": {"far_span": 3}}}, "unknown key 'far_span' in 'continuum_mem'"),
    ({"training": {"batch_size": "two"}}, "training.batch_size is 'two'; it must be a whole number, such as 4"),
    ({"model": {"num_levels": 2}}, r"num_levels is 2, but level_timescales \[1, 4, 16\] has 3")])
def test_sections_refuse_what_they_do_not_know_by_name(found, message):
    with pytest.raises(ValueError, match=message):
        given_as(found)


def test_a_file_in_sections_trains_on_random_bytes(tmp_path):
    layout = {"model": {"hidden_size": 16, "seq_len": 16, "num_levels": 1, "level_timescales": [1]},
              "continuum_mem": {"long_span": 4}, "training": {"num_steps": 2, "batch_size": 2}}
    (tmp_path / "layout.json").write_text(json.dumps(layout), encoding="utf-8")
    out = tmp_path / "run"
    assert train.main(["--preset", "tiny", "--config", str(tmp_path / "layout.json"), "--out", str(out),
                       "--validation", "1", "--sample-tokens", "5", "--quiet"]) == 0
    kept = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert kept["training"]["random_data"] and next(iter(kept["data"]["documents"])).startswith("random/")


@pytest.mark.parametrize("width", [40, 60, 90, 120])
def test_help_fits_the_screen_at_any_width_and_says_all_that_was_written(width, monkeypatch):
    about = ("What is it?\n\n    python -m program --run RUN     what it does, in words that go on for a\n"
             "                                    while\n"
             "    python -m other   little\n\nProse that is written in lines of one hundred and twenty columns, "
             "as all in this project is,\nand goes on.\n")
    monkeypatch.setenv("COLUMNS", str(width + 2))
    said = command.Parser(prog="p", usage="p", description=about, formatter_class=command.Help).format_help()
    shown = said.partition("\n\n")[2].partition("\noptions:")[0]
    assert shown.split() == about.split() and max(map(len, shown.splitlines())) <= width
    assert shown.count("\n\n") == about.count("\n\n")  # paragraphs stay apart
    assert (shown.strip() == about.strip()) == (width == 120)
