"""What TensorBoard and Weights & Biases get is what log.jsonl has, number by number, also after a stop."""

import itertools
import math
import struct
import sys
import time

import numpy as np
import pytest

import train
from config import Config
from hope import Hope, State
from tools import loggers
from tools.folder import log_lines, read_json
from tools.telemetry import Telemetry

SMALL = ("--preset", "tiny", "--layers", "1", "--segment", "32", "--width", "16", "--hidden", "16", "--batch", "2",
         "--chunks", "1,2", "--sample-tokens", "4", "--quiet")
quietly = pytest.mark.filterwarnings("default")  # warnings of other people's packages are not ours to mend


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"{n} and {n} are {2 * n}\n" for n in range(500)), encoding="utf-8")
    return str(path)


def logged(text, folder, names):
    """Lines of a run of three steps that then goes on to the fifth."""
    assert train.main([*SMALL, "--data", text, "--out", str(folder), "--steps", "3", "--log", names]) == 0
    assert train.main(["--resume", str(folder), "--steps", "5", "--quiet"]) == 0
    return {line["step"]: dict(loggers.numbers(line, (1, 2))) for line in log_lines(folder) if "loss" in line}


def test_every_number_of_a_line_has_a_name_of_its_own():
    line = {"step": 4, "loss": 2.5, "fired": [1, 4], "level_change": {"1": 0.1, "16": 0}, "validation_bits_per_byte": {
        "this run": 3.0}}
    assert dict(loggers.numbers(line, (1, 4, 16))) == {
        "loss": 2.5, "fired/1": 1, "fired/4": 1, "fired/16": 0, "level_change/1": 0.1, "level_change/16": 0,
        "validation_bits_per_byte/this run": 3.0}


def test_a_line_has_firings_norms_and_drifts_and_the_sizes_of_writes(text, tmp_path):
    lines = logged(text, tmp_path / "run", "json")
    names = {f"{what}/{chunk}" for what in ("fired", "level_change", "level_norm") for chunk in (1, 2)}
    assert len(lines) == 5 and {path.name for path in (tmp_path / "run").iterdir()} >= {"log.jsonl"}
    for step, found in lines.items():
        assert names | {"loss", "gradient_norm", "memory_writes/k", "memory_writes/memory"} <= found.keys()
        assert found["fired/1"] == 1 and found["fired/2"] == (step % 2 == 0)
        assert (found["level_change/2"] > 0) == (step % 2 == 0) and found["level_norm/2"] > 0


def test_the_norm_of_a_level_is_that_of_all_its_weights():
    model = Hope(Config(width=16, layers=2, heads=2, segment=8, hidden=16, chunks=(1, 2)), np.random.default_rng(0))
    found = Telemetry(model).measure(State.start(model.config))["level_norm"]
    for i, chunk in enumerate(model.config.chunks):
        weights = [p.data for block in model.blocks for p in block.cms.levels[i].parameters()]
        assert found[str(chunk)] == pytest.approx(math.sqrt(sum(np.sum(np.square(w, dtype=float)) for w in weights)))


@pytest.mark.parametrize(("name", "package"), loggers.PACKAGES.items())
def test_a_log_without_its_package_is_one_line_and_nothing_begins(text, tmp_path, monkeypatch, capsys, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert train.main([*SMALL, "--data", text, "--out", str(tmp_path / "run"), "--log", name]) == 2
    assert capsys.readouterr().err.strip() == (
        f"train.py: error: --log {name} needs the package {package}: pip install {package}")
    assert not (tmp_path / "run").exists()


def test_an_unknown_log_is_refused_with_the_nearest(text, capsys):
    assert train.main([*SMALL, "--data", text, "--log", "tensorbord"]) == 2
    assert "log 'tensorbord', did you mean 'tensorboard'?; choose from json, tensorboard, wandb" in (
        capsys.readouterr().err)


@quietly
def test_tensorboard_gets_every_number(text, tmp_path):
    board = pytest.importorskip("tensorboardX", reason="pip install -r tools/requirements.txt")
    lines, seen = logged(text, tmp_path / "run", "json,tensorboard"), {}
    for path in sorted((tmp_path / "run" / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: its length, a checksum of that, the event, a checksum of that
            size, = struct.unpack_from("<Q", data, at)
            event = board.proto.event_pb2.Event.FromString(data[at + 12:at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                seen.setdefault(event.step, {})[value.tag] = value.simple_value
    assert lines.keys() == seen.keys()
    for step, found in lines.items():
        for name, value in found.items():
            assert seen[step][name.replace(" ", "_")] == pytest.approx(value, rel=1e-6), name
    assert "validation_bits_per_byte/this_run" in seen[5]


def leveldb(data):
    """The records of a log as LevelDB writes it: blocks of 32 kB, each part with checksum, size and kind."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (1 << 15) - at % (1 << 15) < 7:  # a rest too short for a part
            at += -at % (1 << 15)
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@quietly
def test_wandb_gets_every_number_offline(text, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install -r tools/requirements.txt")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    from wandb.proto import wandb_internal_pb2 as records

    lines, seen = logged(text, tmp_path / "run", "wandb"), {}
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({path.stem for path in files}) == 1  # one run, begun and gone on with
    until = time.monotonic() + 60
    while lines.keys() != seen.keys() and time.monotonic() < until:  # its own process writes them
        for data in itertools.chain(*(leveldb(path.read_bytes()) for path in files)):
            record = records.Record.FromString(data)
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "step" in items and "loss" in items:
                seen[int(items["step"])] = {name: float(value) for name, value in items.items() if name[0] != "_"}
        time.sleep(0.1)
    assert lines.keys() == seen.keys()
    for step, found in lines.items():
        for name, value in found.items():
            assert seen[step][name] == pytest.approx(value), name
    assert read_json(tmp_path / "run" / "config.json")["training"]["log"] == ["wandb"]
