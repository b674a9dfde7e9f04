"""The course: lessons run, exercises can be solved, the usual mistakes are named, notebooks are of their scripts."""

import ast
import importlib
import inspect
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "lessons"
sys.path.append(str(FOLDER))  # as for a lesson, which is run from there

check, solutions, notebooks = (importlib.import_module(name) for name in ("check", "solutions", "notebooks"))
LESSONS = {path.stem: path.read_text(encoding="utf-8") for path in notebooks.LESSONS}
QUICK = ("1_gradient",)  # the others take longer than a few seconds
EACH = pytest.mark.parametrize("lesson", LESSONS)

# --- lessons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
                                    for name in LESSONS])
def test_a_lesson_runs_from_top_to_bottom_in_two_minutes_of_one_core(lesson):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": "", "OMP_NUM_THREADS": "1",
                        "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore:FigureCanvasAgg", str(FOLDER / f"{lesson}.py")], cwd=ROOT,
                          capture_output=True, encoding="utf-8", env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 120
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.split(":")[0] in check.EXERCISES)
    assert said.keys() == asked_in(lesson) and all("there is still a blank" in words for words in said.values())
    for number in re.findall(r"largest difference: *([-+.\de]+)", done.stdout):  # between ours and the project's
        assert float(number) < (1e-4 if lesson.startswith(("0", "8")) else 1e-9)  # in float32 there


@EACH
def test_a_lesson_says_what_one_will_know_the_time_it_takes_and_its_equations(lesson):
    kind, head = notebooks.cells(LESSONS[lesson])[0]
    assert kind == "markdown" and head.startswith(f"# {lesson[0]}. ")
    for words in ("**You will know**", "**Time**", "**You need**"):
        assert words in head
    assert lesson[0] in "09" or re.search(r"\*\*Equations\*\* \[A \d", head)
    assert LESSONS[lesson].count("plt.show()") >= (1 if lesson[0] == "0" else 2)


@EACH
def test_a_lesson_has_three_to_six_exercises_and_asks_those_that_are_meant_for_it(lesson):
    asked = asked_in(lesson)
    assert 3 <= len(asked) <= 6
    assert asked == {name for name, exercise in check.EXERCISES.items() if exercise.lesson == int(lesson[0])}


@EACH
def test_files_that_a_lesson_points_to_are_there(lesson):
    texts = [text for kind, text in notebooks.cells(LESSONS[lesson]) if kind == "markdown"]
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(texts)):
        assert (FOLDER / link).exists(), link


def asked_in(lesson):
    return set(re.findall(r"^check\.(\w+)\(\1\)$", LESSONS[lesson], re.M))


def test_the_lesson_on_claims_reads_whatever_claims_there_are(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "docs" / "claims"
    folder.mkdir(parents=True)
    for name, found in {"machines": ["no claim"], "short": {"claim": "short", "holds": "yes"},
                        "new": {"claim": "new", "paper": "nothing", "here": "1 ± 2", "holds": "a: no; b: not shown",
                                "sweep": {"a": {"1": 0.5, "10": 0.7, "100": 0.1}, "b": {"1": 2.0}}, "parameters": {},
                                "scores": {"a": [[1, 2]] * 5, "b": [[2, 3]] * 5, "words": "none"}}}.items():
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    exec(LESSONS["9_claims"], {})
    importlib.import_module("matplotlib.pyplot").close("all")
    said = capsys.readouterr().out
    assert "altogether: yes 1, not shown 1, no 1" in said and "new: 0 of 1 at the edge" in said
    assert "machines" not in said


# --- exercises ------------------------------------------------------------------------------------------------

NAMES = pytest.mark.parametrize("name", check.EXERCISES)


@NAMES
def test_a_solution_passes_its_checker(name):
    assert check.judge(name, getattr(solutions, name)) == (True, f"right, on {check.TRIALS} random inputs.")


@NAMES
def test_a_blank_fails_with_a_sentence(name):
    lesson, = [text for stem, text in LESSONS.items() if int(stem[0]) == check.EXERCISES[name].lesson]
    tree = ast.parse(lesson)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert any(isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(functions[0]))
    known = {}
    exec(compile(ast.Module([*imports, *functions], []), name, "exec"), known)
    right, words = check.judge(name, known[name])
    assert not right and words.startswith("there is still a blank (...) in it") and words.endswith(".")


@NAMES
def test_every_named_mistake_is_one_and_is_told_from_the_others(name):
    mistakes = check.EXERCISES[name].mistakes
    assert len(mistakes) >= 3
    for words, mistake in mistakes.items():
        right, said = check.judge(name, mistake)
        assert not right and said.endswith(f" It looks as if {words}."), said


SLIPS = [  # in a solution, as somebody would make them; what is said of it
    ("bits_per_byte", "np.log2(", "np.log(", "natural logarithm"),
    ("bits_per_byte", "np.mean(", "np.sum(", "added up"),
    ("tempered", "logits / temperature", "logits * temperature", "multiplied"),
    ("tempered", "p / np.sum(p)", "p", "add up to 1"),
    ("central_difference", "f(x - eps)", "f(x)", "times what it should be|largest error"),
    ("central_difference", "(2 * eps)", "eps", "2ε apart"),
    ("times_rules", "g * y, g * x", "g * x, g * y", "changed places"),
    ("times_rules", "g * y, g * x", "y, x", "cotangent"),
    ("tanh_rule", "z * z", "x * x", "made of x"),
    ("linear_rules", "g.T @ x", "x.T @ g", "transposed"),
    ("linear_rules", "g.T @ x", "np.mean([np.outer(a, b) for a, b in zip(g, x)], axis=0)", "mean over the tokens"),
    ("bias_rule", "axis=0", "axis=1", "wrong axis"),
    ("second_derivative", "second.data", "first.data", "first derivative"),
    ("gradient_step", "np.outer(error, x)", "np.outer(x, error)", "ValueError"),
    ("gradient_step", "W - eta", "W + eta", "up the gradient"),
    ("gradient_step", "eta * np", "np", "η were missing"),
    ("ftrl", "np.sum(", "np.mean(", "averaged"),
    ("ftrl", "W1 - ", "-", "W₁ were forgotten"),
    ("proximal_step", "1 + eta * (x @ x)", "1 + eta", "‖x‖ = 1 only"),
    ("proximal_step", "eta / (1 + eta * (x @ x))", "eta", "plain η"),
    ("momentum_step", "eta * g", "(1 - mu) * eta * g", "average"),
    ("momentum_step", "mu * m + eta * g", "m + eta * g", "nothing faded"),
    ("momentum_step", "return W - m, m", "return [W - m, m]", "without brackets"),
    ("share_of_last", "1 - mu", "mu", "times what|largest error"),
    ("share_of_last", "mu ** n", "mu ** (n + 1)", "too many"),
    ("retention_write", "alpha * S", "S", "decay were missing"),
    ("retention_write", "np.outer(v, k)", "(1 - alpha) * np.outer(v, k)", "average"),
    ("delta_write", "v - S @ k", "v", "already answers"),
    ("delta_write", "S + eta", "S - eta", "sign"),
    ("read_then_write", "o = S @ q\n    return o, S + np.outer(v, k)", "S = S + np.outer(v, k)\n    return S @ q, S",
     "read after the write"),
    ("read_then_write", "S @ q", "S @ k", "at the key"),
    ("dgd_write", "alpha * S", "S", "decay were missing"),
    ("dgd_write", "eta / (1 + eta)", "eta", "plain η"),
    ("chunk_writes", "np.tril(K @ K.T, -1)", "np.triu(K @ K.T, 1)", "future leaked"),
    ("chunk_writes", "K.T, -1)", "K.T)", "own write"),
    ("chunk_writes", "V - K @ S.T", "V", "empty at the chunk's start"),
    ("memory_read", "x + W1", "W1", "residual"),
    ("memory_gradients", " * (s + h * (1 - s))", "", "slope of σ"),
    ("memory_gradients", "k + W1 @ h - v", "W1 @ h - v", "residual"),
    ("memory_gradients", "np.outer(inner, k), np.outer(delta, h)", "np.outer(k, inner), np.outer(h, delta)",
     "transposed"),
    ("clip_error", "min(1.0, 1 / np.sqrt(np.mean(delta * delta)))", "(1 / np.sqrt(np.mean(delta * delta)))",
     "small errors"),
    ("layer_write", "(S + M0) @ z", "S @ z", "what M₀ answers"),
    ("layer_write", "(z @ z)", "1", "‖z‖²"),
    ("momentum_write", "np.outer(S @ k, k) + N, N", "np.outer(S @ k, k) + eta * np.outer(v, k), N", "largest error"),
    ("momentum_write", "beta * N", "N", "N did not fade"),
    ("parity_write", "2 * bit", "bit", "wiped out"),
    ("self_target", "memory_read(W2, W1, v)", "memory_read(W2, W1, k)", "of the key"),
    ("pull_to_start", "M0 + alpha * (M - M0)", "alpha * M", "training has found"),
    ("half_life", "np.log(0.5) / np.log(alpha)", "1 / (1 - alpha)", "mean age"),
    ("bounded_rate", "+ b)", ")", "half of η_max"),
    ("swing_factor", "2 * (1 - eta) ** C - 1", "(1 - 2 * eta) ** C", "anew at every token"),
    ("due_levels", "i % C == 0", "C % i == 0", "other way round"),
    ("due_levels", "i % C == 0", "i % C != 0", "rest"),
    ("moved_by", "i - C:i]", "i - C - 1:i]", "C \\+ 1"),
    ("moved_by", "np.sum(", "np.mean(", "mean"),
    ("frequencies", "max(chunks) / C", "1 / C", "per step"),
    ("frequencies", "max(chunks) / C", "min(chunks) / C", "slowest"),
    ("forgetting", "fall[:-1]", "fall", "came last"),
    ("forgetting", "np.max(accuracy, axis=0)", "accuracy[0]", "first moment"),
    ("adagrad_step", "np.sqrt(V)", "V", "not by its root"),
    ("look_ahead", "mu * m + (1 - mu) * g, m", "m, m", "look ahead"),
    ("newton_schulz_step", "X - 0.5", "X + 0.5", "largest error"),
    ("newton_schulz_step", "0.5 * ", "", "the step were 1"),
    ("slow_memory", "end - f:end", "end - f - 1 if end > f else 0:end", "f \\+ 1"),
    ("slow_memory", "np.sum(gradients[end - f:end], axis=0)", "np.mean(gradients[end - f:end], axis=0)", "mean"),
    ("block", "x = x + mixer", "x = mixer", "around the mixer"),
    ("block", "level(norm(x))", "level(x)", "before the levels"),
    ("tied_logits", "norm(x)", "x", "norm were forgotten"),
    ("attention_state", "2 * ", "", "only keys"),
    ("attention_state", " * blocks", "", "one block"),
    ("interval", "np.std(values, ddof=1)", "np.std(values)", "n − 1"),
    ("interval", " / np.sqrt(len(values))", "", "√n is missing"),
    ("paired", "a - b", "b - a", "other way round"),
    ("verdict", "return 0", "return -1", "called a no"),
]


@pytest.mark.parametrize("name, old, new, words", SLIPS, ids=lambda part: None)
def test_a_slip_in_a_solution_is_recognised(name, old, new, words):
    source = inspect.getsource(getattr(solutions, name))
    assert old in source
    known = dict(vars(solutions))
    exec(source.replace(old, new), known)
    right, said = check.judge(name, known[name])
    assert not right and re.search(words, said), said


def test_every_exercise_has_a_slip():
    assert {name for name, *_ in SLIPS} == set(check.EXERCISES)


# --- what is said when no mistake is known --------------------------------------------------------------------

def said(answer, name="retention_write"):
    right, words = check.judge(name, answer)
    assert not right and words[0].islower() and words[-1] in ".?"
    return words


def test_what_is_wrong_with_a_form_is_said():
    assert "gives back nothing" in said(lambda S, k, v, alpha: None)
    assert "(4, 3) where (3, 4) is expected" in said(lambda S, k, v, alpha: np.zeros((4, 3)))
    assert "gives back 2 and is asked for 1" in said(lambda S, k, v, alpha: (S, S))
    assert "str, which is no array" in said(lambda S, k, v, alpha: "S")
    assert "stopped with ZeroDivisionError: division by zero" in said(lambda S, k, v, alpha: 1 / 0)
    assert "not finite" in said(lambda S, k, v, alpha: S * np.nan)


def test_who_writes_into_what_was_given_is_told_so():
    def answer(S, k, v, alpha):
        S *= alpha
        return S + np.outer(v, k)
    assert "writes into what it was given" in said(answer)


def test_a_wrong_sign_and_a_wrong_factor_are_seen_and_how_far_off_it_is_is_said():
    assert "Only the sign is wrong" in said(lambda S, k, v, alpha: -alpha * S - np.outer(v, k))
    assert "3 times what it should be" in said(lambda S, k, v, alpha: 3 * (alpha * S + np.outer(v, k)))
    assert "largest error is 100% of" in said(lambda S, k, v, alpha: 0 * S)


def test_no_checker_says_the_answer():
    for name, exercise in check.EXERCISES.items():
        right = inspect.getsource(getattr(solutions, name)).splitlines()[-1].strip().removeprefix("return ")
        assert len(right) < 12 or not any(right in words for words in exercise.mistakes), name


def test_operations_that_an_answer_defines_are_forgotten():
    from autograd import OPS, op

    before = set(OPS)

    def answer(g, x):
        return op(lambda x: (x.data, (lambda g: g,)), name="of an answer")(x).data
    check.judge("tanh_rule", answer)
    assert set(OPS) == before


# --- notebooks ------------------------------------------------------------------------------------------------

@EACH
def test_a_notebook_has_the_cells_of_its_script_has_run_and_is_small(lesson):
    path = FOLDER / f"{lesson}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebooks.sources(notebook) == notebooks.cells(LESSONS[lesson]), f"run python lessons/notebooks.py {lesson}"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [n + 1 for n in range(len(code))]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == LESSONS[lesson].count("plt.show()") and path.stat().st_size < 500_000


def test_a_script_without_a_first_cell_is_no_lesson():
    assert notebooks.cells("# %% [markdown]\n# # A\n#\n# b\n\n# %%\nx = 1\n") == [
        ("markdown", "# A\n\nb"), ("code", "x = 1")]
    with pytest.raises(ValueError, match="begins with a cell"):
        notebooks.cells("x = 1\n# %%\n")


def test_the_command_says_which_notebooks_are_behind_and_which_lessons_there_are(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "--check"])
    assert notebooks.main() == 0 and capsys.readouterr().out == "all as their scripts\n"
    (tmp_path / "1_new.py").write_text("# %%\nx = 1\n", encoding="utf-8")
    monkeypatch.setattr(notebooks, "LESSONS", [tmp_path / "1_new.py"])
    assert notebooks.main() == 1 and capsys.readouterr().out == "1_new: the notebook is not of the script\n"
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "2_old"])
    with pytest.raises(SystemExit):
        notebooks.main()
    assert "no lesson 2_old; there are 1_new" in capsys.readouterr().err


def test_new_text_is_copied_and_what_was_run_is_kept_unless_code_has_changed(tmp_path):
    lesson = "2_weight"
    old = json.loads((FOLDER / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    (tmp_path / f"{lesson}.ipynb").write_text(json.dumps(old), encoding="utf-8")
    script = tmp_path / f"{lesson}.py"
    script.write_text(LESSONS[lesson].replace("# %% [markdown]", "# %% [markdown]\n# New.\n#", 1), encoding="utf-8")
    new = notebooks.retold(script)
    assert notebooks.sources(new) == notebooks.cells(script.read_text(encoding="utf-8"))
    assert new["cells"][0]["source"].startswith("New.") and new["cells"][1:] == old["cells"][1:]
    script.write_text(LESSONS[lesson].replace("default_rng(0)", "default_rng(1)"), encoding="utf-8")
    with pytest.raises(ValueError, match="the code of 2_weight"):
        notebooks.retold(script)


def test_a_notebook_is_made_by_the_command_and_gives_what_it_gave(tmp_path):
    pytest.importorskip("nbclient", reason="notebooks are made with lessons/requirements.txt")
    pytest.importorskip("ipykernel", reason="notebooks are made with lessons/requirements.txt")
    lesson = FOLDER / "2_weight.py"
    kept = json.loads(lesson.with_suffix(".ipynb").read_text(encoding="utf-8"))

    def told(notebook):
        said = ["".join(output["text"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
                for output in cell["outputs"] if output.get("name") == "stdout"]
        return [re.sub(r"-?\d[\d.]*(e[-+]\d+)?", "#", text) for text in said]
    notebook = notebooks.made(lesson)
    importlib.import_module("nbformat").validate(notebook)
    made = json.loads(json.dumps(notebook))
    assert notebooks.sources(made) == notebooks.sources(kept)
    assert told(made) == told(kept)


# --- pages ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", ["README.md", "TEACHING.md"])
def test_a_page_of_the_course_points_to_what_is_there_and_to_every_lesson(page):
    text = (FOLDER / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (FOLDER / link).exists(), link
    assert all(lesson in text for lesson in LESSONS)
