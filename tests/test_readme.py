"""Whoever types what README.md says gets what it says: its commands run, its tables are up to date."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [re.split(r"\n| && ", body.strip()) for language, body in BLOCKS if language == "sh"]
LISTED = [command for block in COMMANDS for command in block]
PYTHON = [body for language, body in BLOCKS if language == "python"]

LESS = "--steps 2 --validation 1 --sample-tokens 2"
SHORTENED = {  # as README.md has it → what runs here; all other commands run as they are
    "pip install -r requirements.txt": "",  # needs the network: .ci/run does it
    "python train.py --preset nano": f"python train.py --preset nano {LESS} --batch 1 --segment 64",
    "python train.py --preset stories": "python train.py --preset stories --steps 2 --seeds 1 --width 8",
    "python -m apps.chat": "python -m apps.chat --help",  # they wait for a person, and for other packages
    "pip install -r apps/requirements.txt": "",
    "python -m apps.serve": "",
    "python -m pytest": "python -m pytest tests/test_layers.py",
    "python -m pytest -m slow": "python -m pytest -m slow --collect-only tests/test_memory.py",
    ".ci/run": "bash -nv .ci/run",
    "python train.py --resume runs/first --steps 40": f"python train.py --resume runs/first {LESS} --steps 3",
} | {command: f"{command} {LESS}" for command in LISTED
     if re.match(r"python train.py --(preset tiny|config)", command)}


def run(command, folder):
    """Run a command as if the checkout were the folder, which may be written."""
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in shlex.split(command)]
    words = [sys.executable if word == "python" else word for word in words]
    env = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8", env=env, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


LONG = (".ci/run", "python -m pytest", "--mixer attention+banks+generated")  # with a process or kernels of their own


@pytest.mark.parametrize("commands", [
    pytest.param(c, marks=[pytest.mark.slow] if any(words in c[-1] for words in LONG) else []) for c in COMMANDS
], ids=lambda commands: commands[-1])
def test_the_commands_of_the_readme_work(commands, tmp_path):
    for command in commands:
        if shorter := SHORTENED.get(command, command):
            assert run(shorter, tmp_path), f"{command} says nothing"


def test_every_command_that_is_shortened_is_in_the_readme():
    assert set(SHORTENED) <= set(LISTED)


def test_the_first_commands_are_the_two_that_a_newcomer_needs():
    install, train, test = LISTED[:3]
    assert (install, train, test) == ("pip install -r requirements.txt", "python train.py --preset nano",
                                      "python -m pytest")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert install in ci and test in ci


@pytest.mark.parametrize("source", PYTHON)
def test_the_python_of_the_readme_runs(source, tmp_path):
    shorter = source.replace("range(20)", "range(2)")
    assert shorter != source
    (tmp_path / "example.py").write_text(shorter, encoding="utf-8")
    assert run("python example.py", tmp_path)


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lengths_apart(text):
    """How many lines each file has, as the text says, and the text without it."""
    rows = re.compile(r"^(\| \[\w+\.py\].*\|) (\d+) \|$", re.MULTILINE)
    return [int(found[2]) for found in rows.finditer(text)], rows.sub(r"\1", text)


@pytest.mark.parametrize("name", ["files", "presets", "ladder", "trained", "claims"])
def test_the_tables_are_those_that_the_code_makes(generator, name):
    made = generator.rewrite(README, name, getattr(generator, name)())
    lines, rest = lengths_apart(README)
    assert len(lines) == len(generator.ORDER)
    lines_now, rest_now = lengths_apart(made)
    assert rest == rest_now, "README.md is behind the code: run python docs/readme.py"
    assert lines == pytest.approx(lines_now, rel=0.1), "files have grown or shrunk: run python docs/readme.py"


def test_the_numbers_and_pictures_of_a_run_find_their_way_into_the_page(generator, tmp_path, monkeypatch):
    run(f"python train.py --preset tiny {LESS} --out run", tmp_path)
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "README", tmp_path / "README.md")
    monkeypatch.setattr(generator, "files", lambda: "")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    generator.main([str(tmp_path / "run")])
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    for words in ("--preset tiny --steps 2 ", "seconds**", " parameters, 512 bytes read", "| 2 |", "gzip",
                  "with chunk size 1 moved 2 times", "step 2: "):
        assert words in page
    assert {path.name for path in (tmp_path / "docs").iterdir()} == set(generator.PICTURES)


def test_every_file_and_picture_that_the_readme_names_is_there():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link
