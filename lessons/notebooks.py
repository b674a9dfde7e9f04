"""How does a lesson become a notebook?  Its cells are copied, and run from top to bottom in a fresh kernel.

    python lessons/notebooks.py              all lessons, several minutes on one core
    python lessons/notebooks.py 3_family     these
    python lessons/notebooks.py --text       copy text alone, where no code has changed; what was run is kept
    python lessons/notebooks.py --check      only say which notebooks are not of the cells of their scripts

A script has its cells behind lines `# %%`; those behind `# %% [markdown]` are text, each line after `# `.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from tools.folder import write_text  # noqa: E402

LESSONS = sorted(HERE.glob("[0-9]_*.py"))
SECONDS = 600  # that a cell may take, most of it once, to compile kernels


def cells(script: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) of every cell of a script; ValueError for text before the first."""
    before, *parts = re.split(r"^# %%(.*)$", script, flags=re.M)
    if before.strip():
        raise ValueError(f"a lesson begins with a cell, # %%, and not with {before.strip().splitlines()[0]!r}")
    found = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        if kind.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.M)))
        else:
            found.append(("code", body.strip("\n")))
    return found


def sources(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    """The same of a notebook."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def made(script: Path) -> dict[str, Any]:
    """The notebook of a script, run."""
    import nbformat  # of lessons/requirements.txt: only who makes notebooks needs them
    from nbclient import NotebookClient

    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(
        cells=[new[kind](text) for kind, text in cells(script.read_text(encoding="utf-8"))],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    for n, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{n}"  # by place: the same cells are the same file
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3",
                   resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it was run
        if cell.cell_type == "code":
            cell.outputs = whole(cell.outputs)
    notebook.metadata.pop("language_info", None)
    return notebook


def whole(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed in one piece, however it came; without stderr, which says when kernels compile."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1]["text"] += output["text"]
        elif output.get("name") != "stderr":
            kept.append(output)
    return kept


def retold(script: Path) -> dict[str, Any]:
    """The notebook of a script with its text made new and its outputs kept; ValueError if code has changed."""
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    wanted, run = cells(script.read_text(encoding="utf-8")), [c for c in notebook["cells"] if c["cell_type"] == "code"]
    if [text for kind, text in wanted if kind == "code"] != ["".join(cell["source"]) for cell in run]:
        raise ValueError(f"the code of {script.name} has changed since its notebook was run: run it without --text")
    told = iter(run)
    notebook["cells"] = [{"cell_type": "markdown", "metadata": {}, "source": text} if kind == "markdown" else next(told)
                         for kind, text in wanted]
    for n, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{n}"
    return notebook


def behind() -> list[str]:
    """The lessons whose notebook is missing, or is not of the cells of the script."""
    return [script.stem for script in LESSONS if not (path := script.with_suffix(".ipynb")).exists()
            or sources(json.loads(path.read_text(encoding="utf-8"))) != cells(script.read_text(encoding="utf-8"))]


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the notebooks of lessons, with their outputs.")
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help=", ".join(path.stem for path in LESSONS))
    parser.add_argument("--check", action="store_true", help="run nothing, and say which are behind")
    parser.add_argument("--text", action="store_true", help="run nothing, and copy text alone")
    wanted = parser.parse_args()
    if unknown := set(wanted.lessons) - {path.stem for path in LESSONS}:
        parser.error(f"no lesson {', '.join(sorted(unknown))}; there are {', '.join(path.stem for path in LESSONS)}")
    if wanted.check:
        print("\n".join(f"{name}: the notebook is not of the script" for name in behind()) or "all as their scripts")
        return bool(behind())
    for script in LESSONS:
        if not wanted.lessons or script.stem in wanted.lessons:
            started = time.perf_counter()
            try:
                notebook = retold(script) if wanted.text else made(script)
            except ValueError as problem:
                parser.error(str(problem))
            text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
            write_text(path := script.with_suffix(".ipynb"), text)
            seconds = time.perf_counter() - started
            print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
