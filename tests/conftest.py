"""Shared by all tests: hypothesis tries the same examples on every machine, and leaves no folder behind."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as train.py has it, read as NumPy is loaded: threads of BLAS wait
# by spinning, and most of what tests multiply is small
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))
settings.register_profile("house", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture
def ended():
    """Reads what a program says until it ends: (stdout, stderr, seconds of processor time it took since the call)."""
    def spent(pid: int) -> float:
        stat = Path(f"/proc/{pid}/stat")  # there until someone waits for the program
        fields = stat.read_text().rpartition(")")[2].split() if stat.exists() else ["0"] * 13
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read(program):
        begun = spent(program.pid)
        out, err = program.stdout.read(), program.stderr.read()
        seconds = spent(program.pid) - begun
        program.communicate()
        return out, err, seconds
    return read
