"""The files that run the server elsewhere say what is true: what they copy is enough, what they call is there."""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import configparser
import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/requirements.txt")

import hope
from apps import serve
from config import Config
from hope import Hope

ROOT = Path(__file__).resolve().parent.parent
CONTAINER = re.sub(r" \\\n *", " ", (ROOT / "apps" / "Containerfile").read_text(encoding="utf-8"))
STEPS = [line.split(" ", 1) for line in CONTAINER.splitlines() if line and not line.startswith("#")]
UNIT = ROOT / "apps" / "hope.service"
SMALL = Config(width=16, layers=1, heads=2, segment=16, hidden=16, chunks=(1, 2), memory_chunk=8, projection_chunk=4)


def said(step: str) -> list[str]:
    return [text for name, text in STEPS if name == step]


def copied(folder: Path) -> Path:
    """What the container has, by its COPY lines."""
    for line in said("COPY"):
        *sources, target = line.split()
        for source in [found for pattern in sources for found in glob.glob(pattern, root_dir=ROOT)]:
            path = folder / target / (Path(source).name if (ROOT / source).is_file() else "")
            path.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, path)
    return folder


def test_what_the_container_copies_is_enough_to_serve_as_it_says(tmp_path):
    folder, run = copied(tmp_path / "hope"), tmp_path / "run-of-mine"
    run.mkdir()
    hope.save(run / "checkpoint.npz", Hope(SMALL, np.random.default_rng(0)))
    entry, = said("ENTRYPOINT")
    command = [sys.executable, *json.loads(entry)[1:], str(run), "--port", "0", "--session-folder", str(tmp_path / "s")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=folder, env={**env, "HOPE_API_KEY": "secret"}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8") as process:
        try:
            first = ""
            while not (url := re.search(r"http://\S+(?=  )", first)):  # kernels may have to be compiled first
                line = process.stdout.readline()
                assert line, first
                first += line
            assert "key: needed" in first
            health, = said("HEALTHCHECK")
            check = json.loads(health.partition("CMD ")[2])
            check = [part.replace("http://127.0.0.1:8000", url[0]) for part in check]
            assert check != json.loads(health.partition("CMD ")[2])
            subprocess.run([sys.executable, *check[1:]], check=True, timeout=300)
            with contextlib.closing(urllib.request.urlopen(url[0])) as page:
                assert b"Continue a text" in page.read()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_container_installs_the_server_s_packages_and_not_those_of_its_tests(tmp_path):
    install = next(line for line in said("RUN") if "pip install" in line)
    script = install.partition(" && ")[0].replace("/tmp/server.txt", str(tmp_path / "server.txt"))
    subprocess.run(["sh", "-c", script], cwd=ROOT, check=True)
    names = re.findall(r"^[\w-]+", (tmp_path / "server.txt").read_text(encoding="utf-8"), re.M)
    assert names == ["fastapi", "pydantic", "starlette", "uvicorn"]
    for file in ("requirements.txt", "apps/adopt/requirements.txt"):
        assert f"-r {file}" in install and (ROOT / file).exists()
    version = re.search(r"python:(\d+)\.(\d+)", said("FROM")[0])
    assert (3, 10) <= tuple(map(int, version.groups())) and said("USER") == ["hope"]


def test_the_commands_above_the_container_build_and_run_what_is_there():
    build, run = (shlex.split(line.strip("# ")) for line in CONTAINER.splitlines() if line.startswith("#     podman"))
    assert (ROOT / build[build.index("-f") + 1]).samefile(ROOT / "apps" / "Containerfile") and build[-1] == "."
    assert build[build.index("-t") + 1] == run[-1] and build[build.index("--format") + 1] == "docker"
    assert f"{said('EXPOSE')[0]}:8000" in run and "--port 8000" in " ".join(json.loads(said("ENTRYPOINT")[0]))
    kept = {word.partition(":")[2] for word in run if word.startswith("hope-")}
    assert kept == {*said("VOLUME")[0].split()} and "NUMBA_CACHE_DIR=/kernels" in said("ENV")[0]


def test_without_a_key_the_container_does_not_serve(capsys, monkeypatch):
    monkeypatch.delenv("HOPE_API_KEY", raising=False)
    assert serve.main(json.loads(said("ENTRYPOINT")[0])[3:]) == 2
    assert "no key is asked for" in capsys.readouterr().err


def test_the_unit_starts_what_is_there_and_systemd_takes_it(tmp_path):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(UNIT, encoding="utf-8")
    service = unit["Service"]
    python, dash, module, *flags = shlex.split(service["ExecStart"])
    given = serve.parser().parse_args(flags)
    assert (dash, module) == ("-m", "apps.serve") and python.startswith(service["WorkingDirectory"])
    assert given.session_folder == f"/var/lib/{service['StateDirectory']}"
    assert f"NUMBA_CACHE_DIR=/var/cache/{service['CacheDirectory']}" in service["Environment"]
    if not shutil.which("systemd-analyze"):
        return
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text(encoding="utf-8").replace(python, sys.executable)
                    .replace(service["WorkingDirectory"], str(ROOT)), encoding="utf-8")
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", here], capture_output=True, encoding="utf-8")
    about = [line for line in (found.stdout + found.stderr).splitlines() if UNIT.name in line]
    assert found.returncode == 0 and not about, found.stderr
