"""What PAPER.md promises: its names exist, what the code cites is in it, its counterexamples hold."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "PAPER.md").read_text(encoding="utf-8")

spec = importlib.util.spec_from_file_location("equation_index", ROOT / "docs" / "index.py")
assert spec and spec.loader
index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(index)

SOURCES = index.sources()
CODE = [source for source in SOURCES if not source.file.startswith("tests/")]
NAMES = set().union(*(source.names for source in SOURCES)) | {"docs/index.py"}


def plain(text: str) -> str:
    """One line, without the marks of comments that go on."""
    return re.sub(r"\s*\n\s*(# ?)?", " ", text)


# --- names and numbers --------------------------------------------------------------------------------------


def test_the_table_is_what_the_code_says():
    _, committed, _ = index.split(TEXT)
    assert committed == index.table(SOURCES), "PAPER.md is behind the code: run `python docs/index.py`"


def test_every_function_and_test_named_in_the_paper_exists():
    named = set(re.findall(r"`((?:\w+/)*\w+\.py(?:::[\w.]+)?)`", TEXT))
    missing = sorted(named - NAMES)
    assert not missing, (
        f"{missing} do not exist: correct the name in docs/index.py or PAPER.md, "
        "then run `python docs/index.py`"
    )


def test_every_equation_cited_in_code_is_in_the_index():
    known = set().union(*(index.numbers(row.numbers) for row in index.ROWS))
    for source in SOURCES:
        for place, cited in source.citations:
            assert cited <= known, (
                f"{place} cites {sorted(cited - known)}: give it a row in docs/index.py, "
                "then run `python docs/index.py`"
            )


@pytest.mark.parametrize("row", index.ROWS, ids=lambda row: row.numbers or row.formula.split(":")[0])
def test_every_row_is_computed_where_it_says_and_tested(row):
    if row.verdict.startswith("omitted: "):
        assert not index.places(row, SOURCES), f"{row.numbers} is said to be omitted and cited in the code"
        return
    root = [source for source in CODE if "/" not in source.file]
    cited = set().union(*(numbers for source in root for _, numbers in source.citations))
    missing = sorted(index.numbers(row.numbers) - cited)
    assert not missing, (
        f"no code cites {missing}: cite it where it is computed, as [{missing[0]}], or say 'omitted: why' "
        "in docs/index.py; then run `python docs/index.py`"
    )
    assert index.places(row, SOURCES) and index.tests(row, SOURCES)
    assert row.numbers or set(row.places.split()) <= NAMES
    assert re.fullmatch(r"exact|choice \d+(, \d+)*", row.verdict)


def test_no_number_has_two_rows():
    found = [number for row in index.ROWS for number in index.numbers(row.numbers)]
    assert len(found) == len(set(found))


def test_citations_are_read_as_they_are_written():
    assert index.numbers("A 10–12, 33; N 7-8, 17") == {"A 10", "A 11", "A 12", "A 33", "N 7", "N 8", "N 17"}
    assert index.numbers("A 75, Algorithm 1") == {"A 75", "Algorithm 1"}
    assert index.numbers("§7.3") == {"§ 7.3"}
    written = ["A\n  70–71, N 30", "§7.3"]
    assert index.CITATION.findall(f"S[A @ 1] [{written[0]}] x[N - 1] [{written[1]}]") == written


# --- choices ------------------------------------------------------------------------------------------------

PARTS = dict(re.findall(r"^### Choice (\d+)\n(.*?)(?=^##)", TEXT, re.M | re.S))  # number → what it says


def claims() -> list[tuple[str, str]]:
    """(place, the words that follow CHOICE there), for all that PAPER.md quotes."""
    quoted = re.findall(r"`([\w./:]+)` \((“.*?”(?:, “.*?”)*)\)", plain("\n".join(PARTS.values())))
    return [(place, words) for place, several in quoted for words in re.findall("“(.*?)”", several)]


def mentions() -> list[tuple[str, str, str]]:
    """(place, number if one is given, the words that follow) for every CHOICE in the code."""
    found = []
    for source in CODE:
        for match in re.finditer(r"\bCHOICE(?:S \(PAPER\.md\)| (\d+))?[:,.] *", source.text):
            rest = plain(source.text[match.end() :].split('"""')[0].split("\n\n")[0])
            items = rest.split("; ") if match[0].startswith("CHOICES") else [rest]
            found += [(source.place(match.start()), match[1] or "", words) for words in items]
    return found


def test_choices_are_numbered_from_one_without_gaps():
    assert [int(n) for n in PARTS] == list(range(1, len(PARTS) + 1)) and len(PARTS) > 30


def test_every_choice_mentioned_in_code_is_in_the_paper():
    known, found = claims(), mentions()
    assert len(found) > 20
    for place, number, words in found:
        if "/" in place:
            continue  # a room's choices are about its own experiments
        assert not number or f"`{place}`" in PARTS.get(number, ""), f"choice {number} does not name {place}"
        assert number or any(place == where and words.startswith(said) for where, said in known), (
            f"PAPER.md quotes no choice of {place} that begins “{words[:50]}”: add it to part 4")  # fmt: skip


def test_every_choice_quoted_in_the_paper_is_in_the_code():
    found = mentions()
    for place, said in claims():
        assert any(place == where and words.startswith(said) for where, _, words in found), (
            f"{place} has no CHOICE that begins “{said}”: correct part 4 of PAPER.md")  # fmt: skip


def test_every_choice_says_where_it_is_in_code_and_every_reference_to_one_exists():
    for number, part in PARTS.items():
        assert re.search(r"^In code: `", part, re.M), f"choice {number} does not say where it is"
    mentioned = set(re.findall(r"\(#choice-(\d+)\)", TEXT))
    assert mentioned <= set(PARTS)


def test_every_link_inside_the_paper_leads_somewhere():
    headings = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^##+ (.+)$", TEXT, re.M)}
    assert set(re.findall(r"\(#([\w-]+)\)", TEXT)) <= headings


# --- counterexamples to what is printed ---------------------------------------------------------------------

K, V, EYE = np.array([0.6, 0.8, 0.0]), np.array([1.0, -2.0]), np.eye(3)


def test_with_the_l2_objective_a_pair_written_for_ever_is_read_back_at_half():
    M = np.ones((2, 3))
    for _ in range(200):
        M = M @ (EYE - 0.3 * np.outer(K, K)) - 0.3 * np.outer(M @ K - V, K)
    assert np.allclose(M @ K, V / 2)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_with_frozen_errors_a_repeated_pair_swings_from_chunk_to_chunk(chunk):
    M, eta, away = np.ones((2, 3)), 0.1, []
    for _ in range(12):
        away.append(M @ K - V / 2)
        error = M @ K - V
        for _ in range(chunk):
            M = M @ (EYE - eta * np.outer(K, K)) - eta * np.outer(error, K)
    ratio = 2 * (1 - eta) ** chunk - 1
    assert np.allclose(away[1:], np.multiply(away[:-1], ratio))
    assert (ratio < -0.99) == (chunk == 64)


def test_dgd_is_stable_for_a_given_target_and_not_for_one_that_answers():
    eta = 1e3
    step = eta / (1 + eta)

    def after(surprise, steps=30):
        W = np.ones((2, 3))
        for _ in range(steps):
            W = W @ (EYE - step * np.outer(K, K)) + step * np.outer(surprise(W), K)
        return np.abs(W @ K).max()

    assert after(lambda W: V) < 3  # given
    assert after(lambda W: -0.5 * (W @ K - V)) < 3  # −∇_y of ½λ‖y − v‖², λ = ½
    assert after(lambda W: -3 * (W @ K - V)) > 1e10  # λ = 3


def test_a_step_made_for_short_inputs_diverges_on_long_ones():
    x, eta = 10 * K, 1.0
    for step, diverges in ((eta / (1 + eta), True), (eta / (1 + eta * x @ x), False)):
        W = np.ones((2, 3))
        for _ in range(20):
            W = W @ (EYE - step * np.outer(x, x)) + step * np.outer(V, x)
        assert (np.abs(W).max() > 1e20) == diverges


def test_literal_retention_wipes_out_the_initial_state_and_it_never_returns():
    W2, W1, sigma = np.full((4, 3), 0.5), np.full((2, 4), 0.5), lambda a: a / (1 + np.exp(-a))
    for _ in range(512):
        W2, W1 = 0.98 * W2, 0.98 * W1
    assert np.abs(W1 @ sigma(W2 @ K)).max() < 1e-8  # however it began
    W2, W1 = 0 * W2, 0 * W1  # then no error, however large, moves either layer
    error = W1 @ sigma(W2 @ K) - 100 * V
    assert not np.any(np.outer(error, sigma(W2 @ K))) and not np.any(W1.T @ error)


@pytest.mark.parametrize("C", [1, 4])
def test_the_printed_chunk_index_lets_a_token_see_later_ones(C):
    """M_{C·⌈t/C⌉} read at token t, t from 1; a linear attention is enough to show it."""
    T, rng = 8, np.random.default_rng(0)
    k, v, q = (rng.standard_normal((T, 3)) for _ in range(3))
    changed = v.copy()
    changed[C - 1] += 1  # the last token of the first chunk

    def reads(v, state_of):
        states = np.cumsum([np.zeros((3, 3)), *(np.outer(a, b) for a, b in zip(v, k, strict=True))], axis=0)
        return np.array([states[state_of(t)] @ q[t - 1] for t in range(1, T + 1)])

    for state_of, leaks in ((lambda t: C * -(-t // C), True), (lambda t: C * ((t - 1) // C), False)):
        same = np.array_equal(reads(v, state_of)[:C], reads(changed, state_of)[:C])
        assert same != leaks


@pytest.mark.parametrize("C", [1, 4])
def test_the_printed_sum_of_a_level_counts_some_steps_twice(C):
    """Σ_{t=i−C}^{i} at i = C, 2C, …: how often does each step count?"""
    printed, ours = (np.zeros(4 * C + 1, int) for _ in range(2))
    for i in range(C, 4 * C + 1, C):
        printed[i - C : i + 1] += 1
        ours[i - C + 1 : i + 1] += 1
    assert np.all(ours[1:] == 1) and np.all(printed[C : 4 * C : C] == 2)


def test_a_memory_that_teaches_itself_unbounded_targets_overflows():
    m = 2.0  # k = 1, v = m x, v̂ = m v, x = 1, η = 1: m ← m − (m − m²)
    for _ in range(10):
        m = m - (m - m * m)
    assert m > 1e300
    m = 2.0
    for _ in range(10):
        m = m - (m - np.tanh(m * np.tanh(m)))
    assert abs(m) <= 1


def orthogonal(M):
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    return U @ Vt


def test_the_printed_sums_of_m3_stop_learning():
    """A gradient turns round after 100 steps: the sum goes the old way for as long, an average for a few."""
    g, total, average, V = np.diag([1.0, 2.0]), 0.0, 0.0, 0.0
    wrong, sizes = {"sum": 0, "average": 0}, []
    for t in range(200):
        now = g if t < 100 else -g
        total, average, V = total + now, 0.9 * average + 0.1 * now, V + now * now
        sizes.append(1 / np.sqrt(V[0, 0]))
        if t >= 100:
            wrong["sum"] += orthogonal(total)[0, 0] > 0.5
            wrong["average"] += orthogonal(average)[0, 0] > 0.5
    assert wrong["sum"] > 95 and wrong["average"] < 10
    assert sizes[-1] < 0.1 * sizes[0]  # and the step fades like 1/√t


def test_the_printed_step_of_m3_grows_as_gradients_shrink():
    g = np.array([[1.0, 2.0], [-3.0, 1.0]])
    first, small = (np.linalg.norm(orthogonal(x) / np.sqrt(x * x)) for x in (g, g / 100))
    assert np.isclose(small, 100 * first)


def test_a_chain_without_inner_residuals_fades_with_every_level():
    rng, x = np.random.default_rng(0), np.random.default_rng(1).standard_normal(16)
    layers = [(rng.standard_normal((32, 16)) / 4, 0.1 * rng.standard_normal((16, 32)) / 6) for _ in range(4)]

    def level(h, layer):
        return layer[1] @ np.maximum(layer[0] @ h, 0)

    def norm(h):
        return h / np.sqrt(np.mean(h * h))

    around, each, sizes = norm(x), x, []
    for layer in layers:
        around, added = level(around, layer), level(norm(each), layer)
        each = each + added
        sizes.append((np.linalg.norm(around), np.linalg.norm(added), np.abs(x + around - each).max()))
    assert sizes[0][2] < 1e-12 and all(size[2] > 0.01 for size in sizes[1:])  # one level: the same function
    assert sizes[3][0] < 1e-2 * sizes[0][0] and sizes[3][1] > 0.3 * sizes[0][1]


def test_the_dot_objective_is_lowered_by_adding_the_target():
    for sign in (1, -1):
        M = np.zeros((2, 3))
        for _ in range(100):
            M = M @ (EYE - 0.3 * np.outer(K, K)) + sign * 0.3 * np.outer(V, K)
        assert np.allclose(M @ K, sign * V)
