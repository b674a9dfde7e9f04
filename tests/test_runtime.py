"""What kernels/runtime.py promises: the right version runs, threads change no bit, the cache sees every edit."""

import importlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_kernels import KERNELS, arguments, as_tuple, assert_close, needs_jit

import kernels
from kernels import ahead, runtime

ROOT = Path(kernels.__file__).resolve().parent.parent


# --- which version runs -------------------------------------------------------------------------------------


class Foreign(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of another library: it speaks NumPy's protocols and refuses to become a NumPy array."""

    def __init__(self, data):
        self.data = data

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to NumPy")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return wrap(getattr(ufunc, method)(*unwrap(inputs), **unwrap(kwargs)))

    def __array_function__(self, function, kinds, args, kwargs):
        return wrap(function(*unwrap(args), **unwrap(kwargs)))

    def __getitem__(self, index):
        return wrap(self.data[unwrap(index)])

    def __setitem__(self, index, value):
        assert isinstance(value, Foreign)
        self.data[index] = value.data

    def __len__(self):
        return len(self.data)

    def __getattr__(self, name):
        attribute = getattr(self.data, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: wrap(attribute(*args, **kwargs))


def wrap(x):
    if isinstance(x, (tuple, list)):
        return type(x)(wrap(y) for y in x)
    return Foreign(x) if isinstance(x, np.ndarray) else x


def unwrap(x):
    if isinstance(x, (tuple, list)):
        return type(x)(unwrap(y) for y in x)
    if isinstance(x, dict):
        return {key: unwrap(y) for key, y in x.items()}
    return x.data if isinstance(x, Foreign) else x


@pytest.mark.parametrize("name", KERNELS)
def test_definitions_run_on_arrays_of_another_library(name):
    arrays, settings, _ = arguments(name)
    expected = as_tuple(KERNELS[name].definition(*arrays, **settings))
    arrays, settings, _ = arguments(name)
    foreign = wrap(arrays)
    found = as_tuple(KERNELS[name](*foreign, **{key: wrap(x) for key, x in settings.items()}))
    if name == "adamw":
        found, expected = foreign, wrap(by_copy := [x.copy() for x in arguments(name)[0]])
        KERNELS[name].definition(*by_copy, **settings)
        expected = by_copy
    assert all(isinstance(x, Foreign) for x in found)
    assert_close(tuple(unwrap(found)), tuple(expected), 1e-15)


def test_a_registered_twin_runs_for_its_array_type(monkeypatch):
    monkeypatch.setattr(kernels.gelu, "twins", dict(kernels.gelu.twins))
    assert kernels.gelu.vjp(Foreign(np.ones(3))) is None
    kernels.gelu.register(Foreign, lambda x: ("the twin", "kept"), lambda kept, bar: (kept, bar))
    z, back = kernels.gelu.vjp(Foreign(np.ones(3)))
    assert kernels.gelu(Foreign(np.ones(3))) == z == "the twin" and back("bar") == ("kept", "bar")
    assert isinstance(kernels.gelu(np.ones(3)), np.ndarray)


def test_what_a_twin_does_not_implement_is_left_to_the_definition(monkeypatch):
    monkeypatch.setattr(kernels.gelu, "twins", {Foreign: (lambda x: NotImplemented, None)})
    assert kernels.gelu.vjp(Foreign(np.ones(3))) is None
    assert np.array_equal(kernels.gelu(Foreign(np.ones(3))).data, kernels.gelu.definition(np.ones(3)))


@needs_jit
def test_the_twin_runs_for_floats_and_the_definition_for_the_rest(monkeypatch):
    monkeypatch.setattr(kernels.gelu, "twins", {np.ndarray: (lambda x: ("twin", x), None)})
    monkeypatch.setattr(kernels.gelu, "definition", lambda x: "definition")
    kinds = {dtype: kernels.gelu(np.ones(3, dtype)) for dtype in ("f4", "f8", "f2", "i8", ">f4")}
    assert kinds == {"f4": "twin", "f8": "twin", "f2": "definition", "i8": "definition", ">f4": "definition"}


def test_what_works_in_place_has_no_derivative():
    arrays, settings, _ = arguments("adamw")
    if found := kernels.adamw.vjp(*arrays, **settings):
        with pytest.raises(RuntimeError, match="in place"):
            found[1]()


@needs_jit
def test_compiled_names_the_kernels_that_are_and_their_dtypes():
    kernels.gelu(np.ones(3, np.float32))
    assert "float32" in kernels.compiled()["gelu"]
    assert set(KERNELS) <= set(kernels.compiled())


# --- threads ------------------------------------------------------------------------------------------------


def test_every_part_is_done_once_by_threads_and_what_goes_wrong_in_one_is_raised(monkeypatch):
    monkeypatch.setattr(runtime, "_threads", 3)
    done = np.zeros(10, int)

    def loop(start, stop, fails):
        done[start:stop] += 1
        if start == fails:
            raise ArithmeticError(f"from {start} on")
    for work in (0, kernels.GRAIN):
        kernels.split(loop, len(done), work, None)
    assert np.all(done == 2)
    with pytest.raises(ArithmeticError, match="from 3 on"):
        kernels.split(loop, len(done), kernels.GRAIN, 3)
    assert np.all(done == 3)


def test_a_loop_that_was_interrupted_while_it_waited_leaves_all_threads_to_the_next(monkeypatch):
    def interrupted(others):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_threads", 2)
        patch.setattr(runtime, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runtime.split(lambda i, j: None, 2, 10**9)
    assert not runtime._shared.get()


def test_what_a_thread_splits_of_its_share_it_does_itself(monkeypatch):
    monkeypatch.setattr(runtime, "_threads", 3)
    parts = []

    def within(start, stop, outer):
        parts.append((outer, start, stop, threading.get_ident()))

    def loop(start, stop):
        kernels.split(within, 6, kernels.GRAIN, (start, threading.get_ident()))
    kernels.split(loop, 3, kernels.GRAIN)
    assert sorted(outer[0] for outer, *_ in parts) == [0, 1, 2]
    assert all((start, stop, ident) == (0, 6, outer[1]) for outer, start, stop, ident in parts)
    kernels.split(within, 6, kernels.GRAIN, (9, 0))
    assert sorted(part[1:3] for part in parts if part[0][0] == 9) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    out, _ = run_python("""
import os, numpy as np, kernels
from kernels import runtime
runtime._threads = 2
def loop(start, stop, x): x[start:stop] += 1
kernels.split(loop, 4, kernels.GRAIN, np.zeros(4))
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
else:
    x = np.zeros(4)
    kernels.split(loop, 4, kernels.GRAIN, x)
    os._exit(0 if x.sum() == 4 else 1)
print("done")
""")
    assert out == "done\n"


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_threads_that_cannot_be_is_refused(n):
    with pytest.raises(ValueError, match=f"{n} threads; choose 1 to"):
        kernels.set_threads(n)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc only")
def test_what_is_freed_is_there_for_the_next_step():
    out, _ = run_python("""
import resource, numpy as np, kernels
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *rest = [faults() for _ in range(4)]
print(first, max(rest))""")
    first, later = map(int, out.split())
    assert first >= 32 and later < 8  # 128 MB are 32,768 pages, or 64 large ones


# --- without a compiler -------------------------------------------------------------------------------------


def run_python(code, root=ROOT, **environment):
    """Run code in a fresh interpreter; returns its stdout and stderr."""
    path = {"PYTHONPATH": f"{root}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300,
                          env=os.environ | path | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


RUN_ALL = """
from test_kernels import *
for name, kernel in KERNELS.items():
    arrays, settings, bars = arguments(name, np.float32)
    found = as_tuple(kernel(*arrays, **settings))
    if name == "adamw":
        continue
    assert kernel.vjp(*arrays, **settings) is None
    expected = as_tuple(kernel.definition(*arrays, **settings))
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True)), name
kernels.set_threads(2)
print(kernels.JIT, kernels.compiled(), kernels.cache_folder())
"""


def test_everything_works_with_jit_disabled_and_nothing_is_said():
    out, err = run_python(RUN_ALL, NUMBA_DISABLE_JIT="1")
    assert out == "False {} None\n" and err == ""


def test_everything_works_without_numba_and_it_is_said_once():
    out, err = run_python("import sys; sys.modules['numba'] = None\n" + RUN_ALL)
    assert out == "False {} None\n"
    assert err.count("\n") == 1 and err.startswith("Numba cannot be used (") and "definitions" in err


@needs_jit
def test_importing_compiles_nothing():
    out, err = run_python("import kernels; print([d for d in kernels.compiled().values() if d])")
    assert out == "[]\n" and err == ""


# --- the cache ----------------------------------------------------------------------------------------------

TWO_KERNELS = """
import numpy as np, kernels
from kernels import runtime
kernels.gelu(np.ones(3, np.float32))
kernels.adamw(*(np.ones(3, np.float32) for _ in range(4)), 0.1, 0.9, 0.99, 1e-8, 0.0, 1)
for loop, name in runtime._loops.items():
    if loop.signatures:
        print(name, sum(loop.stats.cache_hits.values()), sum(loop.stats.cache_misses.values()))
"""
COMPILED, LOADED = (0, 1), (1, 0)
SAID = re.compile(r"compiling kernels, once, about \d+ s\n")


@pytest.fixture
def copy(tmp_path):
    """A root with a copy of kernels/ that may be edited; what runs there has no cache but its own."""
    shutil.copytree(ROOT / "kernels", tmp_path / "root" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "root"


def from_the_cache(root, code=TWO_KERNELS, **environment):
    """What was loaded and compiled of gelu and adamw in a new process, and what it said."""
    settings = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(root / "home")} | environment
    out, err = run_python(code, root, **settings)
    found = {name: (int(hits), int(misses)) for name, hits, misses in map(str.split, out.splitlines())}
    return found, err


def edit(path, text="\n# another comment\n"):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@needs_jit
def test_what_was_compiled_once_is_loaded_and_only_compiling_is_announced(copy):
    found, said = from_the_cache(copy)
    assert found == {"gelu": COMPILED, "adamw": COMPILED} and SAID.fullmatch(said)
    for path in (copy / "kernels").glob("*.py"):
        os.utime(path, (1, 1))  # as after a fresh checkout
    assert from_the_cache(copy) == ({"gelu": LOADED, "adamw": LOADED}, "")


@needs_jit
@pytest.mark.parametrize("edited", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_an_edit_compiles_what_is_made_of_that_file_and_nothing_else_and_nothing_is_thrown_away(copy, edited):
    before = {path: path.read_text(encoding="utf-8") for path in (copy / "kernels").glob("*.py")}
    from_the_cache(copy)
    for name, expected in (("lanes", {"gelu": COMPILED, "adamw": LOADED}),
                           ("gelu", {"gelu": COMPILED, "adamw": LOADED}),
                           ("runtime", {"gelu": COMPILED, "adamw": COMPILED}),
                           ("rms_norm", {"gelu": LOADED, "adamw": LOADED}))[:edited]:
        edit(copy / "kernels" / f"{name}.py")
        assert from_the_cache(copy)[0] == expected, name
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")
    assert from_the_cache(copy)[0] == {"gelu": LOADED, "adamw": LOADED}


@needs_jit
def test_a_kernel_of_several_files_is_made_of_those_that_it_imports_at_any_depth():
    from kernels import cache
    folder = Path(kernels.__file__).parent
    made_of = {name: {path.relative_to(folder).as_posix() for path in cache.sources(folder / "titans" / f"{name}.py")}
               for name in ("chunk", "token")}
    assert {"titans/learn.py", "titans/products.py", "lanes.py", "runtime.py", "linking.py"} < made_of["chunk"]
    assert {"titans/products.py", "shared.py"} < made_of["token"] and "titans/learn.py" not in made_of["token"]
    assert not {"titans/__init__.py", "cache.py", "gelu.py"} & (made_of["chunk"] | made_of["token"])


@needs_jit
@pytest.mark.slow
def test_folders_of_former_versions_do_not_pile_up(copy):
    cache = importlib.import_module("kernels.cache")
    folder = copy / "kernels" / "__pycache__"
    folder.mkdir()
    for n in range(20):
        (folder / f"kernels.gelu-{n}").mkdir()
        os.utime(folder / f"kernels.gelu-{n}", (n, n))
    (folder / "kernels.adamw-0").mkdir()
    from_the_cache(copy)
    kept = {path.name for path in folder.glob("kernels.gelu-*")}
    assert len(kept) == cache.KEPT and {f"kernels.gelu-{n}" for n in range(20 - cache.KEPT + 1, 20)} < kept
    assert (folder / "kernels.adamw-0").exists()


@needs_jit
@pytest.mark.slow
@pytest.mark.parametrize("damage", [
    lambda content: content[:100], lambda content: b"", lambda content: content[:-1] + b"x"],
    ids=["cut", "empty", "changed"])
def test_a_damaged_file_of_the_cache_is_compiled_anew(copy, damage):
    from_the_cache(copy)
    for path in copy.rglob("*.bin"):
        path.write_bytes(damage(path.read_bytes()))
    found, said = from_the_cache(copy)
    assert found == {"gelu": COMPILED, "adamw": COMPILED} and SAID.fullmatch(said)
    assert from_the_cache(copy) == ({"gelu": LOADED, "adamw": LOADED}, "")


FULL = """
import os
def full(*args): raise OSError(28, "No space left on device")
os.replace = full
"""


@needs_jit
def test_a_full_disk_is_said_once_and_nothing_fails(copy):
    found, said = from_the_cache(copy, FULL + TWO_KERNELS)
    first, second = said.splitlines()
    assert found == {"gelu": COMPILED, "adamw": COMPILED} and SAID.fullmatch(first + "\n")
    assert re.fullmatch(r"compiled kernels are not kept in .*__pycache__ \(its disk is full\): .* again", second)
    assert not list(copy.rglob("*.bin")) and not list(copy.rglob("tmp*"))


@needs_jit
@pytest.mark.slow
def test_kernels_are_kept_where_numba_is_told_else_beside_the_sources_else_at_home(copy):
    beside, home, chosen = copy / "kernels" / "__pycache__", copy / "home" / "kernels", copy / "chosen" / "place"
    asks = "\nassert str(kernels.cache_folder()) == {!r}"
    from_the_cache(copy, TWO_KERNELS + asks.format(str(chosen)), NUMBA_CACHE_DIR=str(chosen))
    assert list(chosen.rglob("*.bin")) and not list(beside.rglob("*.bin"))
    from_the_cache(copy, TWO_KERNELS + asks.format(str(beside)))
    assert list(beside.rglob("*.bin")) and not home.exists()
    shutil.rmtree(beside)
    beside.write_text("no folder can be made here", encoding="utf-8")
    from_the_cache(copy, TWO_KERNELS + asks.format(str(home)), PYTHONDONTWRITEBYTECODE="1")
    assert list(home.rglob("*.bin"))


@needs_jit
@pytest.mark.slow
def test_where_no_folder_can_be_written_every_process_compiles_and_says_so(copy):
    ask = "\nassert kernels.cache_folder() is None"
    for _ in range(2):
        found, said = from_the_cache(copy, TWO_KERNELS + ask, NUMBA_CACHE_DIR="/proc/nothing")
        assert found == {"gelu": COMPILED, "adamw": COMPILED}
        assert re.fullmatch(r"compiling kernels, in every process \(no folder can be written\), about \d+ s\n", said)


# --- a second process that compiles --------------------------------------------------------------------------

AHEAD = """
import importlib, os, signal, sys, time
import numpy as np, kernels
from kernels import ahead, runtime
gelu = importlib.import_module("kernels.gelu")
ahead.cores = lambda: {cores}
x = np.ones(3, np.float32)
runtime.need_soon(gelu._backward, 0, 0, x, x, x)
runtime.need_soon(gelu._forward, 0, 0, x, x)
runtime.need_soon(gelu._backward, 0, 0, x, x, x)
helper = ahead._helper
print(helper and helper.pid, flush=True)
{then}
z, back = kernels.gelu.vjp(x)
back(z)
assert ahead._helper is None and not kernels.compiling()
print(*(sum(stats.values()) for loop in (gelu._forward, gelu._backward)
        for stats in (loop.stats.cache_hits, loop.stats.cache_misses)))
"""


@needs_jit
def test_what_is_needed_soon_is_compiled_by_a_second_process_and_by_this_one_while_it_waits(tmp_path):
    code = AHEAD.format(cores=2, then="")
    out, err = run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.splitlines()[1] == "0 1 1 0" and SAID.fullmatch(err)  # _backward was loaded
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == ("None\n1 0 1 0\n", "")  # nothing is asked for again


@needs_jit
@pytest.mark.parametrize("cores, before, then", [
    (1, "", ""),  # a second process would only take turns with this one
    (2, "import subprocess\ndef none(*args, **settings): raise OSError\nsubprocess.Popen = none\n", ""),
    pytest.param(2, "import sys\nsys.executable = None\n", "", marks=pytest.mark.slow),
    (2, "", "helper.kill()")])
def test_without_a_second_process_a_kernel_is_compiled_where_it_is_needed(tmp_path, cores, before, then):
    out, _ = run_python(before + AHEAD.format(cores=cores, then=then), NUMBA_CACHE_DIR=str(tmp_path))
    assert out.splitlines()[1] == "0 1 0 1"


@needs_jit
def test_no_second_process_is_started_where_nothing_can_be_kept():
    out, _ = run_python(AHEAD.format(cores=2, then=""), NUMBA_CACHE_DIR="/proc/nothing")
    assert out == "None\n0 1 0 1\n"


@needs_jit
def test_a_kernel_whose_source_lies_in_no_file_is_not_asked_of_a_second_process(monkeypatch):
    monkeypatch.setattr(ahead, "ask", lambda *asked: pytest.fail("what it makes could not be handed over"))
    found: dict = {}
    exec(compile("def loop(start, stop): ...", "/no/such/file.py", "exec"), {"__name__": "packed"}, found)
    loop = runtime.jit(found["loop"])
    try:
        runtime.need_soon(loop, 0, 0)
    finally:
        del runtime._loops[loop]


@needs_jit
def test_threads_that_wait_for_the_second_process_at_once_compile_each_loop_once(monkeypatch):
    compiled = []
    loop = SimpleNamespace(compile=lambda types: (time.sleep(0.001), compiled.append(types)))
    for _ in range(5):
        monkeypatch.setattr(ahead, "_helper", subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        ahead._here.extend((loop, i) for i in range(20))
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(ahead.wait) for _ in range(4)]
            while ahead._here:
                time.sleep(0.001)
            ahead.end()
        assert [one.result() for one in waiting] == [None] * 4
        assert compiled == list(range(20))
        compiled.clear()


@needs_jit
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_the_second_process_ends_with_the_first_however_that_ends(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = AHEAD.format(cores=2, then="os.kill(os.getpid(), signal.SIGKILL)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout
    started = time.monotonic()
    with pytest.raises(ProcessLookupError):
        while time.monotonic() - started < 60:
            os.kill(int(out), 0)
            time.sleep(0.05)
    assert not list(tmp_path.rglob("*.bin"))  # it was not done


# --- stopping while kernels compile -------------------------------------------------------------------------

SLOW = """
import signal, numpy as np, kernels
from kernels import runtime
def handler(number, frame):
    print("compiling", kernels.compiling(), flush=True)
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)
runtime._threads = {threads}
ones = np.ones((4, 64, 64), np.float32)
arrays = [ones] * 3 + [ones[..., 0] * 0] * 3 + [ones]
assert not kernels.compiling()
z, back = kernels.delta_rule.vjp(*arrays)
back(*z)
print("done")
"""


@needs_jit
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("threads", [1, 2])
def test_one_interrupt_while_kernels_compile_is_answered_at_once(tmp_path, threads, ended):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(threads=threads)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment)
    assert SAID.fullmatch(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    out, err, seconds = ended(process)
    assert out == "compiling True\n" and err.rstrip().endswith("KeyboardInterrupt")
    assert seconds < 2
