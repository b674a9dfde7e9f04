"""Commands as people type them elsewhere mean what they say, and the presets of others have their sizes."""

import shlex

import pytest

import train
from config import PRESETS
from tools import aliases, command
from tools.folder import read_json, read_log

SMOKE = [name for name in PRESETS if name.endswith("-smoke")]


def asked(line):
    return command.asked(*command.parse(shlex.split(line)))


@pytest.mark.parametrize(("typed", "ours"), [
    ("--config small --steps 500 --optimizer adamw --batch-size 8", "--preset small --steps 500 --batch 8"),
    ("--config-name pilot_smoke", "--preset pilot-smoke"), ("--preset=pilot_smoke", "--preset pilot-smoke"),
    ("--config=medium train.steps=10 optim.lr=1e-3", "--preset medium --steps 10 --lr 0.001"),
    ("model.dim=64 model.num_layers=2 model.heads=4 data.seq_len=32", "--width 64 --layers 2 --heads 4 --segment 32"),
    ("data.batch_size=2 train.seed=3 ++train.device=cpu", "--batch 2 --seed 3 --device cpu"),
    ("optim.type=muon optim.weight_decay=0.02", "--optimizer muon --weight-decay 0.02"),
    ("chunks=[1,2,4] --quiet model.mixer=linear", "--chunks 1,2,4 --quiet --mixer linear"),
    ("logging.backend=json train.log_interval=5", "--log json --log-every 5"),
    ("train.checkpoint.dir=runs/x train.checkpoint.save_interval=7", "--out runs/x --checkpoint-every 7"),
    ("--optimizer m3 --options slow_period=8 lr=3", "--optimizer m3 --options slow_period=8 --lr 3"),
    ("--data README.md steps=3", "--data README.md --steps 3"), ("--d-model 64 --max-steps 5", "--width 64 --steps 5"),
    ("data=[README.md,tests]", "--data README.md tests"), ("data.data_dir=[tests]", "--data tests"),
    ("""'data=["my notes, old.txt", my notes.txt]' steps=3""", "--data 'my notes, old.txt' 'my notes.txt' --steps 3"),
    ("out=a=b", "--out a=b"), ("'out=runs/my run' 'chunks=[1, 2]'", "--out 'runs/my run' --chunks 1,2")])
def test_what_is_typed_elsewhere_means_the_same_here(typed, ours):
    assert asked(typed) == asked(ours)


@pytest.mark.parametrize(("typed", "words"), [
    ("train.stepz=4", "unknown key 'train.stepz', did you mean 'train.steps'?"),
    ("optim.lrr=3", "unknown key 'optim.lrr', did you mean 'optim.lr'?"),
    ("model.widht=3", "unknown key 'model.widht', did you mean 'model.width'?"),
    ("logging.path=x", "a run's log is log.jsonl in its folder, --out"), ("logging.depth=1", "unknown key"),
    ("foo.steps=4", "unknown key 'foo.steps', did you mean 'steps'?"),
    ("data.mixture.sources[0].shards_dir=x", "did you mean 'data.shards_dir'?"),
    ("--config smal", "there is no file smal, and no such preset, did you mean 'small'?"),
    ("steps=many", "argument --steps: invalid int value: 'many'")])
def test_what_nobody_knows_is_one_line_with_the_nearest(tmp_path, monkeypatch, capsys, typed, words):
    monkeypatch.chdir(tmp_path)
    assert train.main(shlex.split(typed)) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_file_goes_before_a_preset_and_before_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text('{"width": 64}', encoding="utf-8")
    (tmp_path / "steps=3").write_text("a text", encoding="utf-8")
    assert asked("--config small")[1].width == 64
    assert asked("--data steps=3")[2].data == (str(tmp_path / "steps=3"),)


def test_what_is_typed_is_translated_once(monkeypatch):
    found = []
    monkeypatch.setattr(command, "ours", lambda words: found.append(words) or aliases.ours(words))
    assert command.parse(["batch_size=3", "config=small"])[1] == {"batch": 3} and len(found) == 1


def test_every_alias_means_a_setting_or_a_command_and_hides_none():
    assert {*aliases.ALIASES} & {*aliases.KNOWN} == {"origin"}  # whose flag is --from
    assert {*aliases.ALIASES.values()} <= {*aliases.KNOWN, *aliases.COMMANDS}
    assert aliases.ours(["--steps", "3", "--quiet"]) == ["--steps", "3", "--quiet"]
    assert aliases.ours(aliases.ours(["batch_size=3", "--config", "small"])) == ["--batch=3", "--preset", "small"]


@pytest.mark.parametrize(("name", "width", "layers", "heads", "segment", "vocabulary", "chunks", "batch"), [
    ("small", 128, 2, 4, 64, 5000, (1, 2, 4), 32), ("medium", 256, 4, 8, 128, 10000, (1, 2, 4), 16),
    ("large", 512, 6, 8, 256, 32000, (1, 2, 4), 8), ("pilot", 512, 12, 8, 2048, 32000, (1, 4, 32, 128), 6),
    ("mid", 1024, 24, 16, 2048, 32000, (1, 4, 32, 128), 16),
    ("target", 1536, 32, 24, 2048, 32000, (1, 4, 32, 128, 512), 32),
    ("pilot-smoke", 128, 2, 4, 64, 32000, (1, 4, 16), 4), ("mid-smoke", 256, 4, 8, 64, 32000, (1, 4, 16, 64), 4)])
def test_the_presets_of_others_have_their_sizes(name, width, layers, heads, segment, vocabulary, chunks, batch):
    config, training = PRESETS[name]
    assert (config.width, config.layers, config.heads, config.segment) == (width, layers, heads, segment)
    assert (config.vocabulary, config.chunks, training.batch) == (vocabulary, chunks, batch)
    assert asked(f"--config {name} --dry-run")[1].vocabulary == vocabulary  # and where it is trained, the text's
    assert asked(f"--config {name}")[1].vocabulary == 256
    assert asked(f"--config {name} vocab_size=300")[1].vocabulary == 300


def test_every_preset_of_others_has_a_smoke_variant_with_its_optimiser_and_levels():
    for name in ("small", "medium", "large", "pilot", "mid", "target"):
        (config, training), (small, few) = PRESETS[name], PRESETS[f"{name}-smoke"]
        assert (few.optimizer, few.schedule, few.options) == (training.optimizer, training.schedule, training.options)
        assert small.cms == config.cms and few.steps == 10 and small.width <= 256


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if name != "pilot-smoke" else []) for name in SMOKE])
def test_a_smoke_variant_trains(tmp_path, name):
    (tmp_path / "text.txt").write_text("".join(f"{n} and {n} are {2 * n}\n" for n in range(500)), encoding="utf-8")
    assert train.main(["--config", name, "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run"),
                       "--quiet"]) == 0
    assert read_json(tmp_path / "run" / "config.json")["preset"] == name
    lines = read_log(tmp_path / "run")
    assert len(lines) == 10 and lines[-1]["loss"] < lines[0]["loss"]
