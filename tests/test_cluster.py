"""Several ranks are one process: the same bits, whatever their number and whatever each of them keeps."""

import ctypes
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from left_behind import checkpoint, differing, numbers

from autograd import Tensor, no_grad
from cluster import elastic
from cluster.fabric import Nccl
from cluster.gradients import Gradients
from cluster.weights import owners
from config import PRESETS
from hope import Hope
from layers import Parameter
from optimizers import OPTIMIZERS
from tools.folder import read_log
from tools.telemetry import Telemetry

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
WHY = "" if MPIRUN and importlib.util.find_spec("mpi4py") else "no MPI: pip install -r cluster/requirements.txt"
needs_mpi = pytest.mark.skipif(bool(WHY), reason=WHY)
SMALL = ("--preset", "tiny", "--layers", "2", "--segment", "32", "--width", "16", "--hidden", "16", "--batch", "2",
         "--memory-chunk", "16", "--projection-chunk", "16", "--sample-tokens", "2", "--validation", "3", "--quiet",
         "--chunks", "1,2", "--device", "cpu")


def mpirun(n, *command, **settings):
    """The command that starts n ranks here, and its environment."""
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                                "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return {"args": [*launcher(), "-n", str(n), sys.executable, *map(str, command)], "cwd": ROOT,
            "env": environment | settings}


@functools.cache
def launcher():
    """Of Open MPI, which has to be told that there may be fewer cores than ranks, or of MPICH."""
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, encoding="utf-8", check=True).stdout
    return [MPIRUN, *["--oversubscribe"] * ("Open MPI" in version)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"{n} and {n} are {2 * n}\n" for n in range(1000)), encoding="utf-8")
    return path


def on_ranks(n, folder, cases):
    """Train on n ranks (0: in a process alone), case after case: (shard, arguments)."""
    plan = folder / f"cases-{n}.json"
    plan.write_text(json.dumps([(shard if n else None, [*(() if "--resume" in arguments else SMALL),
                                                        *map(str, arguments)]) for shard, arguments in cases]))
    command = mpirun(n, ROOT / "tests" / "ranks.py", plan)
    if not n:
        command["args"] = [sys.executable, str(ROOT / "tests" / "ranks.py"), str(plan)]
    done = subprocess.run(**command, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


RUNGS = {name: ("", ("--optimizer", name, "--steps", "2")) for name in OPTIMIZERS if name not in ("adamw", "muon")}
CASES = {  # of each: what a rank has only its part of, the arguments
    "adamw": ("", ("--batch", "3", "--keep", "2")), **RUNGS,
    "clocks": ("", ("--options", "accumulate=gradients")), "nested": ("", ("--cms", "nested")),
    "muon": ("weights", ("--optimizer", "muon")), "m3 in parts": ("optimizer", ("--optimizer", "m3")),
    "dgd in parts": ("weights", ("--optimizer", "dgd")),
    "nested in parts": ("weights", ("--cms", "nested", "--optimizer", "muon")),
    "moving in parts": ("weights", ("--moves", "context", "--accumulate", "2")),
    "moving": ("optimizer", ("--moves", "context", "--batch", "1")),
    "all on one rank": ("weights", ("--layers", "1", "--mixer", "attention", "--sample-every", "1")),
}
STEPS = ("--steps", "3", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def both(text, tmp_path_factory):
    """A folder with the runs of all cases: NAME in one process that reads as much, NAME-2 on two ranks."""
    folder = tmp_path_factory.mktemp("both")
    common = ["--data", text, *STEPS]
    on_ranks(2, folder, [(shard, [*common, *flags, "--out", folder / f"{name}-2"])
                         for name, (shard, flags) in CASES.items()])
    on_ranks(0, folder, [(None, [*common, *flags, "--accumulate", 4 if "--accumulate" in flags else 2, "--out",
                                 folder / name]) for name, (_, flags) in CASES.items()])
    return folder


@needs_mpi
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process_that_reads_their_batches_to_the_last_bit(both, name):
    assert not differing(checkpoint(both / name), checkpoint(both / f"{name}-2"))
    assert numbers(both / name) == numbers(both / f"{name}-2")


@needs_mpi
def test_a_run_goes_on_anywhere_with_the_same_data_and_the_same_bits(both, text, tmp_path):
    """Begun on two ranks, it goes on on three (one of which has nothing to read in the last round), then alone."""
    for name in ("adamw", "muon"):
        shutil.copytree(both / f"{name}-2", tmp_path / name)
        shutil.copytree(both / name, tmp_path / f"{name} alone")
    on_ranks(3, tmp_path, [("optimizer", ["--resume", tmp_path / "adamw", "--steps", 4]),
                           ("weights", ["--resume", tmp_path / "muon", "--steps", 4])])
    on_ranks(0, tmp_path, [(None, ["--resume", tmp_path / name, "--steps", steps]) for name, steps in (
        ("adamw", 5), ("muon", 5), ("adamw alone", 4), ("adamw alone", 5), ("muon alone", 4), ("muon alone", 5))])
    for name in ("adamw", "muon"):
        assert not differing(checkpoint(tmp_path / name), checkpoint(tmp_path / f"{name} alone"))


@needs_mpi
def test_rows_that_go_on_where_they_ended_keep_their_state_and_are_one_large_batch_to_rounding(text, tmp_path):
    """In the consecutive order two ranks of two rows are one process of four."""
    common = ["--data", text, "--steps", 4, "--order", "consecutive"]
    on_ranks(2, tmp_path, [("", [*common, "--out", tmp_path / "ranks"]),
                           ("weights", [*common, "--out", tmp_path / "parts"])])
    on_ranks(0, tmp_path, [(None, [*common, "--batch", 4, "--out", tmp_path / "alone"])])
    alone, ranks, parts = (checkpoint(tmp_path / name) for name in ("alone", "ranks", "parts"))
    assert not differing(ranks, parts)
    assert str(ranks["progress"]) == str(alone["progress"])
    for name, array in alone.items():
        if name.startswith(("weights.", "state.")):
            np.testing.assert_allclose(ranks[name], array, rtol=0, atol=2e-5, err_msg=name)
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("alone", "ranks")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    on_ranks(3, tmp_path, [("", ["--resume", tmp_path / "ranks", "--steps", 6])])
    on_ranks(0, tmp_path, [(None, ["--resume", tmp_path / "alone", "--steps", 6])])
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("alone", "ranks")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_gradient_that_is_taken_on_the_way_back_lies_in_memory_as_one_that_stays():
    """What an optimiser computes, it does in that order, and another order may be another bit."""
    model = Hope(replace(PRESETS["tiny"][0], width=16, hidden=16, segment=32, chunks=(1, 2), moves="context"),
                 np.random.default_rng(0))
    tokens, taken = np.random.default_rng(1).integers(0, 256, (2, 33)), {}

    def take(leaf):
        taken[id(leaf)], leaf.grad = leaf.grad.strides, None
    model.context_loss(tokens)[0].backward()
    stay = {id(p): p.grad.strides for p in model.parameters() if p.grad is not None}
    model.zero_grad()
    for _ in range(5):
        model.context_loss(tokens)[0].backward(ready=take)
        assert {key: taken[key] for key in stay} == stay


# who is lost ------------------------------------------------------------------------------------------------


@contextmanager
def training(n, out, *arguments, module="cluster.train", **settings):
    """Ranks that train until they are disturbed; within, they have written a checkpoint and some lines of the log."""
    flags = [*SMALL, "--out", out, "--checkpoint-every", 2, "--sample-every", 0, "--schedule", "constant", "--silence",
             5, *arguments]
    command = mpirun(n, "-m", module, *flags, **settings)
    if module != "cluster.train":
        command["args"] = [sys.executable, "-m", module, "-n", str(n), "--launcher", " ".join(launcher()),
                           *map(str, flags)]
    ranks = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    try:
        until(lambda: len(read_log(out)) > 4 or ranks.poll() is not None)
        yield ranks
    finally:
        ranks.kill()
        ranks.wait()
        ranks.stdout.close()


def until(true, seconds=400):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it has not come to that"
        time.sleep(0.05)


def pid(rank, out):
    """The process of a rank of the run in this folder."""
    for process in Path("/proc").iterdir():
        try:
            environment = (process / "environ").read_bytes().split(b"\0") if process.name.isdigit() else []
            if str(out).encode() in (process / "cmdline").read_bytes() and any(
                    f"{name}={rank}".encode() in environment for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK")):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"there is no rank {rank}")


def said(ranks, seconds=60):
    """What the ranks have said when they ended, within so many seconds: the lines of ours.

    MPICH's mpirun kills the others when one was killed, mostly before one could say so; then it is its own line.
    """
    out, _ = ranks.communicate(timeout=seconds)
    ours, mpich = ([line for line in out.splitlines() if word in line] for word in ("error: ", "EXIT CODE: 9"))
    return ours or mpich


def is_whole(out, text):
    """The last checkpoint is that of one process, and one process goes on from it."""
    step = json.loads(str(checkpoint(out)["progress"]))["step"]
    alone = out.with_name("alone")
    on_ranks(0, out.parent, [(None, ["--resume", out, "--steps", step + 1]), (None, [
        "--data", text, "--out", alone, "--accumulate", 2, "--steps", step + 1, "--schedule", "constant"])])
    return len(read_log(out)) == step + 1 and numbers(out) == numbers(alone)


@needs_mpi
@pytest.mark.parametrize("lost, number, why", [(1, signal.SIGKILL, "it was killed"), (0, signal.SIGKILL, "killed"),
                                               (1, signal.SIGSTOP, "nothing was heard of it for 5 s")])
def test_where_a_rank_is_lost_the_others_end_and_say_which_and_why(lost, number, why, text, tmp_path):
    out = tmp_path / "run"
    with training(2, out, "--data", text, "--steps", 100000) as ranks:
        started = time.monotonic()
        os.kill(pid(lost, out), number)
        (line,) = said(ranks)
        assert re.fullmatch(rf"cluster.train: error: rank {lost}: .*{why}.*|=   EXIT CODE: {number:d}", line)
        assert time.monotonic() - started < 60 and ranks.returncode != 0
    if number == signal.SIGSTOP:
        assert is_whole(out, text)


@needs_mpi
def test_a_full_disk_ends_all_ranks_with_one_line_and_the_checkpoint_is_whole(text, tmp_path):
    out = tmp_path / "run"
    with training(2, out, "--data", text, "--steps", 100000) as ranks:
        kept = out / "log"
        os.link(out / "log.jsonl", kept)
        (out / "full").symlink_to("/dev/full")
        os.replace(out / "full", out / "log.jsonl")
        (line,) = said(ranks)
        assert "No space left on device" in line and f"{out} keeps step " in line
    os.replace(kept, out / "log.jsonl")
    assert is_whole(out, text)


def apart(*ranks):
    """Start ranks of which each has a command of its own, and let them end: what they did, and the lines of ours."""
    command = mpirun(1, *ranks[0])
    for one in ranks[1:]:
        command["args"] += [":", *mpirun(1, *one)["args"][len(launcher()):]]
    done = subprocess.run(**command, capture_output=True, encoding="utf-8", timeout=120)
    return done, [line for line in (done.stdout + done.stderr).splitlines() if "error: " in line]


PATCHED = """
import os, resource, sys, time
import train, tools.machine
{}
from cluster.train import main
sys.exit(main())
"""
IN_STEP_6 = """
def advance(run, *write, whole=train.Run.advance):
    if run.step == 5:
        {}
    return whole(run, *write)
train.Run.advance = advance
"""


@needs_mpi
@pytest.mark.parametrize("kind, words", [
    ("data", "rank 1 has .* for data, and rank 0 has .*: all ranks need the same packages, files and data"),
    ("packages", "rank 1 has 0.1 for numba, and rank 0 has .*: all ranks need the same packages, files and data"),
    ("program", "rank 1 has .* for program, and rank 0 has .*: all ranks need the same packages, files and data"),
    ("nothing", "rank 1: nothing matches .*missing.txt")])
def test_what_only_one_rank_has_ends_all_and_names_it(kind, words, text, tmp_path):
    out, program, other = ["--out", tmp_path / "out"], ("-m", "cluster.train"), text
    if kind == "data":
        other = tmp_path / "other.txt"
        other.write_text(text.read_text(encoding="utf-8")[:-7], encoding="utf-8")
    if kind == "nothing":
        other = tmp_path / "missing.txt"
    if kind == "packages":
        program = ("-c", PATCHED.format("tools.machine.versions = lambda found=tools.machine.versions(): "
                                        "{**found, 'numba': '0.1'}"))
    if kind == "program":
        copied = tmp_path / "program"
        for name in ("kernels", "tools", "cluster", "gpu"):
            shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in ROOT.glob("*.py"):
            shutil.copy(path, copied)
        with (copied / "data.py").open("a", encoding="utf-8") as file:
            file.write("# a line more\n")
        program = ("-c", f"import sys\nsys.path.insert(0, {str(copied)!r})\nfrom cluster.train import main\n"
                         "sys.exit(main())")
    done, (line,) = apart(["-m", "cluster.train", *SMALL, "--data", text, *out],
                          [*program, *SMALL, "--data", other, *out])
    assert re.search(words, line) and done.returncode == 2 - (kind == "nothing")
    assert not (tmp_path / "out").exists()


@needs_mpi
@pytest.mark.parametrize("rank, event, words", [
    (1, "time.sleep(1000)", "rank 1: the others have been waiting for it for 4 s"),
    (1, "run.ranks.fabric.receive(0, (1,), 'f4')", "rank 0: all ranks have been waiting for each other for 4 s"),
    (1, "raise OSError(28, 'No space left on device')", "rank 1: No space left on device; {} keeps step 4"),
    (0, "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))", "File too large; {} keeps step 4"),
], ids=["hangs", "waits for nobody", "full disk", "full disk of checkpoints"])
def test_where_a_rank_fails_in_a_step_the_others_end_and_the_run_goes_on(rank, event, words, both, tmp_path):
    out, alone = tmp_path / "run", tmp_path / "alone"
    shutil.copytree(both / "adamw-2", out)
    shutil.copytree(both / "adamw", alone)
    flags = ["--resume", out, "--steps", 8, "--patience", 4]
    ranks = [["-m", "cluster.train", *flags] for _ in range(2)]
    ranks[rank] = ["-c", PATCHED.format(IN_STEP_6.format(event)), *flags]
    done, (line,) = apart(*ranks)
    assert re.search(re.escape(words.format(out)), line) and done.returncode != 0
    assert json.loads(str(checkpoint(out)["progress"]))["step"] == 4
    on_ranks(0, tmp_path, [(None, ["--resume", folder, "--steps", 8]) for folder in (out, alone)])
    assert not differing(checkpoint(out), checkpoint(alone))


@needs_mpi
def test_ctrl_c_ends_all_ranks_at_the_same_step_and_saves_it(text, tmp_path):
    out = tmp_path / "run"
    with training(2, out, "--data", text, "--steps", 100000) as ranks:
        ranks.send_signal(signal.SIGINT)
        assert said(ranks) == []
    steps = [line["step"] for line in read_log(out)]
    assert steps == list(range(1, len(steps) + 1))
    assert json.loads(str(checkpoint(out)["progress"]))["step"] == steps[-1]


@needs_mpi
def test_an_elastic_run_goes_on_with_the_ranks_that_are_left_and_ends_with_the_same_bits(text, tmp_path):
    out = tmp_path / "run"
    with training(2, out, "--data", text, "--steps", 60, module="cluster.elastic") as ranks:
        os.kill(pid(1, out), signal.SIGKILL)
        printed, _ = ranks.communicate(timeout=120)
        assert ranks.returncode == 0 and "cluster.elastic: going on with 1 rank\n" in printed
    on_ranks(0, tmp_path, [(None, ["--data", text, "--accumulate", 2, "--steps", 60, "--checkpoint-every", 2,
                                   "--sample-every", 0, "--schedule", "constant", "--out", tmp_path / "alone"])])
    assert not differing(checkpoint(out), checkpoint(tmp_path / "alone"))


@pytest.mark.parametrize("named", [["--out", "{}"], ["out={}"], ["--output-dir={}"]], ids=" ".join)
def test_an_elastic_run_is_found_in_whatever_words_its_folder_was_named(named, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(elastic, "start", lambda launcher, command: (started.append(command), (elastic.LOST, False))[1])
    (tmp_path / elastic.LAST).touch()
    assert elastic.main(["-n", "2", *(word.format(tmp_path) for word in named), "--shard", "optimizer"]) == 1
    assert started == [["--out", str(tmp_path), "--shard", "optimizer"],
                       ["--resume", str(tmp_path), "--shard", "optimizer"]]


def test_an_elastic_run_that_was_resumed_keeps_what_it_was_asked_for(tmp_path, monkeypatch):
    """A rank may be lost before config.json has it."""
    started = []
    monkeypatch.setattr(elastic, "start", lambda launcher, command: (started.append(command), (elastic.LOST, False))[1])
    (tmp_path / elastic.LAST).touch()
    assert elastic.main(["-n", "2", "--resume", str(tmp_path), "steps=40", "--shard", "weights"]) == 1
    assert started == [["--resume", str(tmp_path), "--steps=40", "--shard", "weights"]] * 2


def test_what_memories_hold_is_of_all_rows_however_they_are_shared_out():
    pytest.importorskip("mpi4py")
    from cluster.communicator import Shared
    model = Hope(replace(PRESETS["tiny"][0], width=16, layers=1, hidden=16), np.random.default_rng(0))
    with no_grad():
        whole = model(np.random.default_rng(1).integers(0, 256, (4, 9)))[1]
    told = []
    ranks = SimpleNamespace(rank=0, gathered={}, rows=True,
                            fabric=SimpleNamespace(all=lambda one: (told.append(one), told)[1]))
    shared = Shared(ranks, model)
    for rows in (slice(0, 1), slice(1, 4)):
        found = shared.writes(whole.map(lambda t, rows=rows: Tensor(t.data[rows])))
    assert found == pytest.approx(Telemetry(model).writes(whole), rel=1e-6)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", 0)])
def test_what_ends_an_elastic_run_is_passed_on_to_its_ranks_which_are_not_started_again(number, tmp_path):
    (tmp_path / elastic.LAST).touch()
    launcher = tmp_path / "launcher.py"
    launcher.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)", encoding="utf-8")
    heard = ("import os, signal, sys; signal.signal(int(sys.argv[1]), signal.SIG_DFL); "
             "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])")  # in the background and under nohup, too
    command = [sys.executable, "-c", heard, str(int(number)), "-m", "cluster.elastic", "--launcher",
               f"{sys.executable} {launcher}", "--resume"]
    with subprocess.Popen([*command, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                          ) as run:
        ranks = int(run.stdout.readline())
        run.send_signal(number)
        out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (128 + number, "", "")
    with pytest.raises(ProcessLookupError):
        os.kill(ranks, 0)


# memory -----------------------------------------------------------------------------------------------------


@needs_mpi
def test_the_memory_of_a_rank_falls_with_their_number_where_they_share_it(text, tmp_path):
    held = {}
    for n in (1, 2):
        done = subprocess.run(**mpirun(n, "-m", "cluster.memory", "--width", 64, "--layers", 4), check=True,
                              capture_output=True, encoding="utf-8", timeout=300)
        held[n] = {kind: float(number) for kind, number in re.findall(r"(\w+) +kept +([\d.]+) MB", done.stdout)}
    assert held[2]["none"] > held[2]["optimizer"] > held[2]["weights"]
    assert held[2]["weights"] < 0.62 * held[1]["weights"]  # all but what every rank has: embedding, vectors
    assert held[1]["none"] == pytest.approx(held[2]["none"], rel=0.03)


# workers ----------------------------------------------------------------------------------------------------


@needs_mpi
def test_workers_find_what_one_process_finds(tmp_path):
    flags = ("-m", "apps.evaluate", "optimisers", "--preset", "tiny", "--optimizers", "adamw", "--rates", "0.001,0.01",
             "--seeds", 2, "--steps", 2, "--quiet", "--out")
    for name, n in (("alone", 0), ("pool", 2)):
        command = mpirun(max(n, 1), *flags, tmp_path / name, *["--mpi"] * bool(n))
        if not n:
            command["args"] = command["args"][command["args"].index(sys.executable):]
        subprocess.run(**command, check=True, capture_output=True, timeout=200)
    found = [json.loads((tmp_path / name / "optimisers.json").read_text(encoding="utf-8"))["results"]["optimisers"]
             for name in ("alone", "pool")]
    for one in found:
        del one["adamw"]["milliseconds per step"]
    assert found[0] == found[1]


@needs_mpi
def test_workers_share_the_sweeps_of_a_claim_and_find_what_one_finds(tmp_path):
    found = []
    for n in (1, 2):
        out = tmp_path / str(n)
        done = subprocess.run(**mpirun(n, "-m", "apps.evaluate", "claims", "variants", "--quick", "--quiet", "--mpi",
                                       "--out", out), check=True, capture_output=True, encoding="utf-8", timeout=300)
        kept = json.loads((out / "variants.json").read_text(encoding="utf-8"))
        found.append({name: kept[name] for name in ("here", "holds", "parameters", "sweep", "scores")})
        assert done.stdout.count(kept["here"]) == 1 and (out / "variants.png").exists()
    assert found[0] == found[1]


@needs_mpi
def test_workers_go_on_from_every_line_of_a_file_with_the_same_words(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once\n\nThe list\nimport\n", encoding="utf-8")
    command = ("-m", "cluster.pool", ROOT / "apps" / "demo", prompts, "--tokens", 8)
    said = [subprocess.run(**mpirun(n, *command), check=True, capture_output=True, encoding="utf-8", timeout=120).stdout
            for n in (1, 2)]
    assert said[0] == said[1] and re.findall(r"^(.*) ▶ ", said[0], re.MULTILINE) == ["Once", "The list", "import"]
    for run, file, words in (("nowhere", prompts, "there is no checkpoint nowhere"),
                             (ROOT / "apps" / "demo", "nowhere", "No such file or directory: nowhere")):
        done = subprocess.run(**mpirun(2, "-m", "cluster.pool", run, file), capture_output=True, encoding="utf-8",
                              timeout=120)
        (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
        assert line.startswith(f"cluster.pool: error: {words}") and done.returncode == 2


def test_a_pool_is_asked_for_by_name_and_says_what_it_shares(capsys):
    from apps import evaluate
    assert evaluate.main(["text", "--mpi"]) == 2
    assert "--mpi shares claims and optimisers" in capsys.readouterr().err


# between cards ----------------------------------------------------------------------------------------------


class Card(np.ndarray):
    """An array that lies where its `data.ptr` says, as CuPy's."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


class Meeting:
    """Where the threads that stand for ranks meet."""

    def __init__(self, size):
        self.size, self.barrier, self.brought = size, threading.Barrier(size), {}

    def comm(self, rank):
        def allgather(thing):
            self.brought[rank] = thing
            self.barrier.wait(10)
            found = [self.brought[r] for r in range(self.size)]
            self.barrier.wait(10)
            return found
        return SimpleNamespace(Get_rank=lambda: rank, Get_size=lambda: self.size, allgather=allgather,
                               bcast=lambda thing: allgather(thing)[0])

    def nccl(self):
        """What CuPy's NCCL does of what we use, in the order that it asks for."""
        meeting = self

        class NcclCommunicator:
            def __init__(self, size, uid, rank):
                assert size == meeting.size and uid == "uid"
                self.rank, self.calls, self.all = rank, None, meeting.comm(rank)

            def send(self, ptr, count, kind, peer, stream):
                self.calls.append(("send", ptr, count, kind, peer))

            def recv(self, ptr, count, kind, peer, stream):
                self.calls.append(("recv", ptr, count, kind, peer))
        group = threading.local()

        def start():
            group.own.calls = []

        def end():
            every = group.own.all.allgather(list(group.own.calls))
            for what, ptr, count, kind, peer in group.own.calls:
                if what == "recv":  # meets the send of the peer to this rank
                    (sent,) = (c for c in every[peer] if c[0] == "send" and c[4] == group.own.rank)
                    assert sent[2:4] == (count, kind)
                    ctypes.memmove(ptr, sent[1], count * {7: 4, 8: 8}[kind])
            group.own.all.allgather(None)  # nobody lets go of what is still read

        def communicator(*given):
            group.own = NcclCommunicator(*given)
            return group.own
        return SimpleNamespace(NCCL_FLOAT32=7, NCCL_FLOAT64=8, get_unique_id=lambda: "uid", groupStart=start,
                               groupEnd=end, NcclCommunicator=communicator)


def cards(size, work):
    """work(fabric) on so many ranks, each with a card that is none; what they return."""
    meeting, found = Meeting(size), {}
    nccl = meeting.nccl()
    event = SimpleNamespace(done=True)
    stream = SimpleNamespace(wait_event=lambda event: None, record=lambda: event, ptr=0)
    cupy = SimpleNamespace(cuda=SimpleNamespace(Stream=lambda non_blocking: stream, get_current_stream=lambda: stream))

    def run(rank):
        found[rank] = work(Nccl(meeting.comm(rank), cupy, nccl))
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["equal parts", "owners"])
def test_cards_add_up_gradients_in_the_order_of_the_ranks(size, kind):
    rng = np.random.default_rng(size)
    shapes = [(3, 5), (4,), (7, 2)]
    drawn = rng.standard_normal((size, sum(map(np.prod, shapes)))).astype(np.float32)
    parts = [[row.reshape(shape) for row, shape in zip(np.split(one, np.cumsum([*map(np.prod, shapes)])[:-1]), shapes,
                                                       strict=True)] for one in drawn]

    def work(fabric):
        params = [Parameter(np.zeros(shape, np.float32).view(Card)) for shape in shapes]
        owner = owners(params, size) if kind == "owners" else None
        gradients = Gradients([params], owner, fabric, 40)
        loss = sum(((p * part).sum() for p, part in zip(params, parts[fabric.rank], strict=True)), start=Tensor(0.0))
        gradients.backward(loss, size)
        gradients.reduce()
        return [p.grad if p.grad is None else np.asarray(p.grad) for p in params], owner and list(owner.values())
    found = cards(size, work)
    assert not found[0][1] or [sum(grads[i] is not None for grads, _ in found) for i in range(3)] == [1, 1, 1]
    for grads, owner in found:
        for i, g in enumerate(grads):
            if owner and g is None:
                continue  # its owner has it
            total = parts[0][i].copy()
            for other in parts[1:]:
                total += other[i]
            assert np.array_equal(g, total)


def test_one_card_for_each_rank_is_asked_for(monkeypatch):
    pytest.importorskip("mpi4py")
    from cluster import train as ranks
    gpu = SimpleNamespace(ready=lambda: SimpleNamespace(cuda=SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=lambda: 1))))
    monkeypatch.setattr(ranks.machine, "choose", lambda device: (gpu, "a card"))
    comm = SimpleNamespace(Split_type=lambda kind: SimpleNamespace(Get_rank=lambda: 1))
    with pytest.raises(ValueError, match="this machine has 1 GPUs, and this is its rank 1"):
        ranks.fabric(comm, "cuda", SimpleNamespace(waiting=None))


def test_what_rank_0_refuses_is_refused_by_all_of_them():
    from cluster.communicator import Ranks
    told: list = []

    def first(found):
        told.append(found)
        return told[0]

    def ranks(rank):
        return Ranks(SimpleNamespace(rank=rank, size=2, first=first))

    def refused():
        raise ValueError("line 3 is none")
    for rank in (0, 1):
        with pytest.raises(ValueError, match="line 3 is none"):
            ranks(rank).first(refused)
    told.clear()
    assert [ranks(rank).first(lambda: "made") for rank in (0, 1)] == ["made", "made"]


def test_the_fabric_is_of_the_device_that_the_run_has(tmp_path):
    pytest.importorskip("mpi4py")
    from cluster.train import device
    about = {"preset": "tiny", "config": {}, "training": {"device": "cpu"}, "data": {"sha256": ""}}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    assert device(["--resume", str(tmp_path)]) == device(["--config", str(tmp_path / "config.json")]) == "cpu"
    assert device(["--resume", str(tmp_path), "--device", "cuda"]) == device(["device=cuda"]) == "cuda"
    assert device(["--preset", "tiny"]) == device(["--resume", str(tmp_path / "none")]) == "auto"


def test_a_rank_alone_says_that_several_are_needed_to_measure(tmp_path, monkeypatch):
    pytest.importorskip("mpi4py")
    from cluster import scale
    monkeypatch.setattr(sys, "argv", ["scale", "--out", str(tmp_path)])
    for name in ("", "SLURM_NTASKS_PER_NODE"):
        if name:
            monkeypatch.setenv(name, "4")
        with pytest.raises(SystemExit, match=r"scale.json: mpirun -n 4 python -m cluster.scale measures"):
            scale.main()


def test_the_model_of_communication_is_fitted_to_what_is_measured():
    from cluster import scale
    one, two = [(0.0, 4e-6, 3e9)], [(0.0, 2e-6, 5e9), (1e5, 1e-4, 9e9)]
    fabric = {"exchange": [two, one], "spread": [one, two]}
    found = [{"what": what, "ranks": n, "bytes": size, "seconds": scale.transfer(n, size, lines, 2)}
             for what, lines in fabric.items() for n in (2, 3, 4) for size in scale.SIZES]
    fitted = scale.fit(found, 2)
    for x in found:
        assert scale.transfer(x["ranks"], x["bytes"], fitted[x["what"]], 2) == pytest.approx(x["seconds"])
    assert scale.transfer(4, 4e6, [one, one], 2) == 2 * scale.transfer(4, 4e6, [one, one], 4)
    fabric = {what: [[(0.0, 1e-6, 1e9)]] for what in fabric}
    assert scale.efficiency(1, 4, 1.0, 1e9, fabric) == 1
    assert scale.efficiency(4, 4, 1.0, 1e9, fabric, overlap=False) == pytest.approx(1 / 2.500006, rel=1e-4)
    assert scale.efficiency(4, 4, 1.0, 1e9, fabric) > scale.efficiency(4, 4, 1.0, 1e9, fabric, overlap=False)
    assert scale.efficiency(4, 4, 1.0, 1e9, fabric, buckets=1000) < scale.efficiency(4, 4, 1.0, 1e9, fabric)


def test_the_page_has_the_model_of_what_was_measured_and_how_far_it_is_off():
    from cluster import scale
    page = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    kept = json.loads((ROOT / "cluster" / "scale.json").read_text(encoding="utf-8"))
    fabric = scale.fit(kept["measured"], kept["cores"])
    for what, both in fabric.items():
        for shared, ((_, *short), (start, *long)) in enumerate(both):
            ours = [f"{1e6 * latency:.1f} µs, {bandwidth / 1e9:.2f} GB/s" for latency, bandwidth in (short, long)]
            assert f"| {what}{', cores shared' * shared} | {ours[0]} | from {start / 1e3:.0f} kB on {ours[1]} |" in page
    off = np.exp([abs(np.log(scale.transfer(x["ranks"], x["bytes"], fabric[x["what"]], kept["cores"]) / x["seconds"]))
                  for x in kept["measured"]])
    assert f"a factor of {np.median(off):.2f} (median) and of {np.max(off):.2f} at most" in page and np.max(off) < 1.5
    found = scale.curve("paper-1.3b", kept, fabric, 12.5e9, 5e-6, 50e12, 64 * 2**20)["curves"]
    for name, values in zip(("that network, as drawn", "nothing overlapped"), list(found.values())[2:], strict=True):
        shown = [f"{value:.0%}" for ranks, value in zip(scale.RANKS, values, strict=True) if ranks == 8 or ranks >= 64]
        assert f"| {name} | {' | '.join(shown)} |" in page
