"""Several ranks are one process: the same bits, whatever their number and whatever each of them keeps."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimizers import OPTIMIZERS
from tools.folder import read_log

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
WHY = "" if MPIRUN and importlib.util.find_spec("mpi4py") else "no MPI: pip install -r cluster/requirements.txt"
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)
SMALL = ("--preset", "tiny", "--layers", "2", "--segment", "32", "--width", "16", "--hidden", "16", "--batch", "2",
         "--memory-chunk", "16", "--projection-chunk", "16", "--sample-tokens", "2", "--validation", "3", "--quiet",
         "--chunks", "1,2", "--device", "cpu")


def mpirun(n, *command, **settings):
    """The command that starts n ranks here, and its environment."""
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                                "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    found = ["--oversubscribe"] if "Open MPI" in version() else []
    return {"args": [MPIRUN, *found, "-n", str(n), sys.executable, *map(str, command)], "cwd": ROOT,
            "env": environment | settings}


def version():
    return subprocess.run([MPIRUN, "--version"], capture_output=True, encoding="utf-8", check=True).stdout


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


def checkpoint(folder):
    with np.load(folder / "checkpoint.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def differing(one, other):
    """The names in which two checkpoints differ, be it by a bit."""
    def bits(array):
        return array.dtype, array.shape, array.tobytes()
    return [name for name in {*one, *other}
            if name not in one or name not in other or bits(one[name]) != bits(other[name])]


def numbers(folder):
    """The log without what depends on the clock on the wall."""
    return [{name: value for name, value in line.items() if name not in ("tokens_per_second", "seconds")}
            for line in read_log(folder)]


RUNGS = {name: ("", ("--optimizer", name, "--steps", "2")) for name in OPTIMIZERS if name not in ("adamw", "muon")}
CASES = {  # of each: what a rank has only its part of, the arguments
    "adamw": ("", ("--batch", "3", "--keep", "2")), **RUNGS,
    "clocks": ("", ("--options", "accumulate=gradients")), "nested": ("", ("--cms", "nested")),
    "muon": ("weights", ("--optimizer", "muon")), "m3 in parts": ("optimizer", ("--optimizer", "m3")),
    "dgd in parts": ("weights", ("--optimizer", "dgd")),
}
STEPS = ("--steps", "3", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def both(text, tmp_path_factory):
    """A folder with the runs of all cases: NAME in one process that reads as much, NAME-2 on two ranks."""
    folder = tmp_path_factory.mktemp("both")
    common = ["--data", text, *STEPS]
    on_ranks(2, folder, [(shard, [*common, *flags, "--out", folder / f"{name}-2"])
                         for name, (shard, flags) in CASES.items()])
    on_ranks(0, folder, [(None, [*common, *flags, "--accumulate", 2, "--out", folder / name])
                         for name, (_, flags) in CASES.items()])
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process_that_reads_their_batches_to_the_last_bit(both, name):
    assert not differing(checkpoint(both / name), checkpoint(both / f"{name}-2"))
    assert numbers(both / name) == numbers(both / f"{name}-2")


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
