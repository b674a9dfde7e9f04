"""Who may import whom: the root reads from left to right, and every folder lists what it needs."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("config", "autograd", "functions", "kernels", "layers", "optimizers", "memory", "titans", "mixers", "cms",
         "state", "decode", "hope", "data", "shards", "train")
PACKAGES = {"numpy", "numba", "tqdm", "matplotlib"}
ROOMS = ("apps", "gpu", "lessons", "corpora", "cluster", "benchmarks")
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")
CALLED = {"python-dateutil": "dateutil", "pillow": "PIL", "scikit-learn": "sklearn", "pyyaml": "yaml",
          "cupy-cuda12x": "cupy"}
FOLDERS = [ROOT, *(ROOT / room for room in ROOMS if any((ROOT / room).glob("**/*.py")))]


def imports(*paths: Path) -> set[str]:
    """The top names of all imports that run, wherever they stand; those for a type checker only do not."""
    return {name.split(".")[0] for path in paths for name in running(ast.parse(path.read_text(encoding="utf-8")))}


def files_of(module: str) -> list[Path]:
    """A file of the root, or all files of a package of it."""
    return sorted((ROOT / module).rglob("*.py")) or [ROOT / f"{module}.py"]


def kernel_name(path: Path) -> str:
    """gelu, titans.chunk"""
    return ".".join(path.relative_to(ROOT / "kernels").with_suffix("").parts)


def running(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or "" if not node.level else "."
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for other in node.orelse:
            yield from running(other)
    else:
        for child in ast.iter_child_nodes(node):
            yield from running(child)


def listed(path: Path) -> set[str]:
    """The names under which the packages of a requirements file are imported."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    names = {re.split(r"[\s\[<>=!~;]", line)[0].lower() for line in lines if line and line[0] != "-"}
    return {CALLED.get(name, name.replace("-", "_")) for name in names}


def python_files(folder: Path) -> list[Path]:
    """The root's own files and those in tools/ and docs/; a room's files at any depth."""
    if folder != ROOT:
        return sorted(folder.rglob("*.py"))
    return sorted([*ROOT.glob("*.py"), *(path for room in ("kernels", "tools", "docs")
                                         for path in (ROOT / room).rglob("*.py"))])


def test_the_root_holds_the_files_of_the_reading_order_and_no_other():
    assert {path.stem for path in ROOT.glob("*.py")} | {"kernels"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_root_module_imports_only_what_stands_before_it(module):
    ours = imports(*files_of(module)) & set(ORDER)
    assert ours <= {*ORDER[:ORDER.index(module)], *(["kernels"] if module == "kernels" else [])}


def test_kernels_stand_on_nothing_of_ours_and_on_each_other_without_a_circle():
    below: dict[str, set[str]] = {}
    for path in files_of("kernels"):
        names = list(running(ast.parse(path.read_text(encoding="utf-8"))))
        assert not {name.split(".")[0] for name in names} & (set(ORDER) - {"kernels"})
        assert "kernels" not in names or path.stem == "__init__"  # by the file: what it is made of is found so
        below[kernel_name(path)] = {name.removeprefix("kernels.") for name in names if name.startswith("kernels.")}
    assert not below["cache"] | below["linking"] | below["ahead"]
    assert below["runtime"] == {"ahead", "cache", "linking"} and below["lanes"] == {"runtime"}
    assert {kernel_name(path) for path in files_of("kernels") if "numba" in imports(path)} == {
        "cache", "linking", "records", "runtime", "lanes", "shared", "transpose"}
    known: set[str] = set()
    while ready := {name for name in below.keys() - known if below[name] <= known}:
        known |= ready
    assert known == set(below)


@pytest.mark.parametrize("path", files_of("kernels"), ids=kernel_name)
def test_a_kernel_is_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_in_the_root_is_short_or_says_in_its_head_why_it_is_long(path):
    text = path.read_text(encoding="utf-8")
    head = " ".join(str(ast.get_docstring(ast.parse(text))).split())
    assert len(text.splitlines()) <= 500 or re.search(r"long,? because", head, re.IGNORECASE)


@pytest.mark.parametrize("module", ORDER)
def test_a_root_module_needs_only_python_and_the_four_packages(module):
    assert imports(*files_of(module)) - {*ORDER, "tools"} - sys.stdlib_module_names <= PACKAGES


@pytest.mark.parametrize("module", ORDER)
def test_no_root_module_imports_a_room(module):
    assert not imports(*files_of(module)) & set(ROOMS)


def test_only_train_stands_to_the_right_of_the_tools():
    assert [module for module in ORDER if "tools" in imports(*files_of(module))] == ["train"]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_imports_the_root_left_of_train_and_other_tools_and_says_in_its_first_line_what_it_answers(tool):
    path = ROOT / "tools" / f"{tool}.py"
    ours = imports(path) - sys.stdlib_module_names - PACKAGES
    assert ours <= {*ORDER[:-1], "tools"}
    assert "?" in path.read_text(encoding="utf-8").splitlines()[0]


def test_the_root_requires_the_four_packages_and_what_its_tests_need_and_gives_lower_bounds():
    assert listed(ROOT / "requirements.txt") == PACKAGES | {"pytest", "hypothesis"}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[a-z]+>=[0-9.]+", line)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name if folder != ROOT else "root")
def test_every_folder_lists_the_packages_it_imports(folder):
    files = python_files(folder)
    ours = {".", *ORDER, *ROOMS, "tools", *(path.stem for path in files)}
    missing = set().union(*map(imports, files)) - sys.stdlib_module_names - ours
    missing -= listed(ROOT / "requirements.txt")
    if folder != ROOT:
        missing -= set().union(*map(listed, folder.rglob("requirements.txt")))
    assert not missing, f"{folder.name}/requirements.txt does not list {', '.join(sorted(missing))}"


def test_an_import_for_the_type_checker_is_not_counted_and_one_inside_a_function_is(tmp_path):
    source = ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hope\nelse:\n    import cms\n"
              "def f():\n    from matplotlib.figure import Figure\n    return Figure\n")
    (tmp_path / "example.py").write_text(source, encoding="utf-8")
    assert imports(tmp_path / "example.py") == {"typing", "cms", "matplotlib"}
