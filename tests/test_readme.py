"""Whoever types what README.md and the pages in docs/ say gets what they say: commands run, tables are up to date."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest

from config import MIXERS, Config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
         for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]}
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S)]
COMMANDS = [re.split(r"\n| && ", body.strip()) for language, body in dict.fromkeys(BLOCKS) if language == "sh"]
LISTED = [command for block in COMMANDS for command in block]
PYTHON = [body for language, body in BLOCKS if language == "python"]

LESS = "--steps 2 --validation 1 --sample-tokens 2"
SHORTENED = {  # as the pages have it → what runs here; all other commands run as they are
    "pip install -r requirements.txt": "",  # needs the network: .ci/run does it
    "python train.py --preset nano": f"python train.py --preset nano {LESS} --batch 1 --segment 64",
    "python train.py --preset stories": "python train.py --preset stories --steps 2 --seeds 1 --width 8",
    "python -m apps.chat": "python -m apps.chat --help",  # they wait for a person, and for other packages
    "pip install -r apps/requirements.txt": "",
    "python -m apps.serve": "",
    "lm_eval --model local-completions --tasks piqa --model_args model=RUN,base_url=http://127.0.0.1:8000/v1/completions,"
    "tokenizer_backend=remote,tokenized_requests=True": "",  # the tests of the server ask by it
    "python -m apps.demonstration": "python -m apps.demonstration --help",
    "python -m apps.evaluate optimisers --preset tiny --optimizers adamw muon --rates 0.003,0.01,0.03,0.1 --seeds 3":
        "python -m apps.evaluate optimisers --preset tiny --optimizers adamw muon --rates 0.003 --seeds 1 --steps 2",
    "python -m pytest tests/test_autograd.py -k central_differences":
        "python -m pytest tests/test_autograd.py -k central_differences --collect-only",  # the other tests run it
    "python -m pytest": "python -m pytest tests/test_layers.py",
    "python -m pytest -m slow": "python -m pytest -m slow --collect-only tests/test_memory.py",
    ".ci/run": "bash -nv .ci/run",
    "python train.py --resume runs/first --steps 40": f"python train.py --resume runs/first {LESS} --steps 3",
} | {command: f"{command} {LESS}" for command in LISTED
     if re.match(r"python train.py --(preset tiny|config|from)", command)}


def run(command, folder):
    """Run a command as if the checkout were the folder, which may be written."""
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in shlex.split(command)]
    words = [sys.executable if word == "python" else word for word in words]
    env = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8", env=env, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


LONG = (".ci/run", "python -m pytest")  # take long, as those of docs/ do
FIRST = PAGES["README.md"] + PAGES["CONTRIBUTING.md"]


@pytest.mark.parametrize("commands", [
    pytest.param(c, marks=[pytest.mark.slow] if any(words in c[-1] for words in LONG) or f"\n{c[-1]}\n" not in FIRST
                 else []) for c in COMMANDS
], ids=lambda commands: commands[-1])
def test_the_commands_of_the_pages_work(commands, tmp_path):
    for command in commands:
        if shorter := SHORTENED.get(command, command):
            assert run(shorter, tmp_path), f"{command} says nothing"


def test_every_command_that_is_shortened_is_on_a_page():
    assert set(SHORTENED) <= set(LISTED)


def test_the_readme_is_one_screen():
    assert len(README.split()) < 1300


def test_the_first_commands_are_those_that_a_newcomer_needs():
    install, *trainings, test = LISTED[:4]
    assert install == "pip install -r requirements.txt" and test == "python -m pytest"
    assert trainings == ["python train.py --preset tiny", "python train.py --preset nano"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert install in ci and test in ci


@pytest.mark.parametrize("source", PYTHON)
def test_the_python_of_the_readme_runs(source, tmp_path):
    shorter = source.replace("range(20)", "range(2)")
    assert shorter != source
    (tmp_path / "example.py").write_text(shorter, encoding="utf-8")
    assert run("python example.py", tmp_path)


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator():
    return loaded("readme")


def lengths_apart(text):
    """How many lines each file has, as the text says, and the text without it."""
    rows = re.compile(r"^(\| \[\w+(?:\.py|/)\].*\|) (\d+) \|$", re.MULTILINE)
    return [int(found[2]) for found in rows.finditer(text)], rows.sub(r"\1", text)


PARTS = re.findall(r"<!-- ([\w-]+): python docs/readme.py -->", "".join(PAGES.values()))


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_are_those_that_the_code_makes(generator, name):
    (page, make), = [(page, parts[name]) for page, parts in generator.PAGES.items() if name in parts]
    lines, rest = lengths_apart(PAGES[page])
    lines_now, rest_now = lengths_apart(generator.rewrite(PAGES[page], name, make()))
    assert rest == rest_now, f"{page} is behind the code: run python docs/readme.py"
    assert lines == pytest.approx(lines_now, rel=0.1), "files have grown or shrunk: run python docs/readme.py"


def test_every_part_that_the_code_makes_is_on_its_page(generator):
    assert sorted(PARTS) == sorted(name for parts in generator.PAGES.values() for name in parts)
    assert len(lengths_apart(README)[0]) == len(generator.ORDER)


def test_the_drawing_of_the_block_is_the_one_that_its_timetable_gives():
    block = loaded("block")
    assert (ROOT / "docs" / "block.svg").read_text(encoding="utf-8") == block.of("nano"), "run python docs/block.py"


@pytest.mark.parametrize("settings", [
    {"mixer": "attention", "chunks": (1,)}, {"moves": "context"}, {"mixer": "banks+cell"}, {"cms": "nested"}])
def test_a_block_of_other_settings_can_be_drawn(settings):
    drawn = ElementTree.fromstring(loaded("block").draw(Config(**settings), 2048))
    levels = [x for x in drawn.iter("{http://www.w3.org/2000/svg}rect") if x.get("class") == "level"]
    assert len(levels) == len(settings.get("chunks", (1, 4, 16)))


def test_the_page_of_claims_is_the_one_that_their_files_give():
    claims = importlib.import_module("apps.claims")
    assert PAGES["docs/claims/README.md"] == claims.overview(claims.FOLDER)


def test_every_mixer_and_its_settings_are_on_their_page():
    page = PAGES["docs/mixers.md"]
    assert {name for name in MIXERS if f"`{name}`" not in page} == set()
    flags = set(re.findall(r"^\| (.*?) \|", page[page.index("## Settings"):], re.M))
    named = {name.replace("-", "_") for cell in flags for name in re.findall(r"`--([\w-]+)`", cell)}
    assert named and named <= {field.name for field in fields(Config)}


@pytest.mark.slow
def test_the_numbers_and_pictures_of_a_run_find_their_way_into_the_pages(generator, tmp_path, monkeypatch):
    run(f"python train.py --preset nano --width 32 --layers 2 --heads 2 --segment 64 --hidden 32 {LESS} --out run",
        tmp_path)
    monkeypatch.setattr(generator, "HERE", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "runs.json").write_text("{}", encoding="utf-8")
    generator.keep(tmp_path / "run")
    page, short = generator.run(), generator.nano()
    for words in ("--preset nano --width 32 --layers 2 ", "seconds**", " parameters, 1,024 bytes read", "| 2 |", "gzip",
                  "with chunk size 1 moved 2 times", "step 2: "):
        assert words in page
    assert "1,024 bytes read" in short and "step 2: " in short
    assert "Read on" not in short
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {*generator.PICTURES, "runs.json"}
    for learn, bits in (("memory", 1.75), ("all", 1.5)):
        (tmp_path / "run" / learn).mkdir()
        (tmp_path / "run" / learn / "text.json").write_text(json.dumps({"results": {
            name: {"bits per byte": less, "by position": {"31": 9.0, "511": less, "1023": less}}
            for name, less in (("off", 2.0), (learn, bits))}}), encoding="utf-8")
    generator.keep(tmp_path / "run")
    assert "learning, unseen text costs 1.50 bits per byte, without 2.00." in generator.nano()
    assert generator.reading().splitlines()[2:] == [
        f"| {place} | 2.000 | 1.750 | 1.500 |" for place in ("256 to 511", "512 to 1,023", "all")]


def test_a_folder_that_is_no_run_is_one_line(generator, tmp_path):
    with pytest.raises(SystemExit, match=r"docs/readme.py: error: there is no file .*nowhere/config.json"):
        generator.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("page", PAGES)
def test_every_file_picture_and_heading_that_a_page_names_is_there(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        name, _, heading = link.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), link
        if heading and not re.fullmatch(r"L\d+", heading):
            text = file.read_text(encoding="utf-8")
            titles = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.M)}
            assert heading in titles | set(re.findall(r'<a id="([\w-]+)">', text)), link


def test_every_command_in_a_sentence_of_the_readme_runs_in_a_test():
    elsewhere = {"python train.py --help", "python docs/block.py", "python train.py --device cuda",
                 "python -m benchmarks", "python -m corpora --help", "python -m apps.evaluate claims NAME",
                 "python lessons/1_gradient.py"}
    assert set(re.findall(r"`(python [^`]+)`", README)) <= {*LISTED, *elsewhere}


def test_the_workflow_runs_everything_on_the_oldest_python_that_is_promised():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run" in workflow and '"3.10"' in workflow and "Python 3.10 or later" in README
