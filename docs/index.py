"""Where is each equation computed?  Rewrites the equation index of PAPER.md, between its two markers.

    python docs/index.py

A row says what the paper prints: the numbers, the formula, how far we follow it, the tests named for it.
Where it is computed is not written down here but found: a place is whatever function, class or table cites
one of the numbers, as `[A 56–57, 88; N 27–29]` in a docstring or a comment. Tests that cite one join in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "PAPER.md"
BEGIN, END = "<!-- equations: written by `python docs/index.py` -->", "<!-- end of equations -->"
ROOMS = ("apps", "gpu", "lessons", "benchmarks")  # may cite; a row is computed in the root


class Row(NamedTuple):
    """What the paper prints. `places` names the code of a formula that has no number."""

    numbers: str
    verdict: str  # "exact", "choice 3, 7" or "omitted: why"
    formula: str
    tests: str = ""
    places: str = ""


TITANS = ("test_memory::test_titans_are_the_papers_for_every_setting "
          "test_memory::test_titans_are_the_papers_at_lengths_around_a_chunk")
RULES = ("test_memory::test_every_rule_is_the_one_in_the_papers_table "
         "test_kernels::test_the_rules_of_the_table_are_settings_of_the_family")
CLOSED = "test_optimizers::test_two_steps_have_their_closed_form"
LIMITS = "test_optimizers::test_limits_coincide"

ROWS = [
    Row("A 1–3", "exact",
        "W_{t+1} = W_t − η g_t = argmin_V ⟨g_t, V⟩ + ‖V − W_t‖²/(2η) = "
        "argmin_V Σ_{i≤t} ⟨g_i, V⟩ + ‖V − W_1‖²/(2η)",
        "test_optimizers::test_three_costumes_of_gradient_descent_agree"),
    Row("A 5", "exact",
        "S_t = α S_{t−1} + v_t k_tᵀ",
        RULES),
    Row("A 6, N 1", "omitted: the definition; the rules below are its cases",
        "M* = argmin_M L̃(M(K); V)"),
    Row("A 8, N 3", "exact",
        "W ← W − η ∇_y L ⊗ x",
        "test_layers::test_a_tap_collects_the_layers_inputs_and_output_errors "
        "test_optimizers::test_three_costumes_of_gradient_descent_agree"),
    Row("A 9, N 4–5", "exact",
        "W ← argmin_V ⟨V x, ∇_y L⟩ + ‖V − W‖²/(2η)",
        "test_optimizers::test_three_costumes_of_gradient_descent_agree"),
    Row("A 10–13, N 7–10", "choice 20",
        "m ← μ m + η g,  W ← W − m;  m itself a proximal step on −⟨m, g⟩",
        f"{CLOSED} test_optimizers::test_momentum_is_a_proximal_step_of_its_memory"),
    Row("A 14–18, 64; N 12–15", "choice 2",
        "S_t = S_{t−1} + v_t k_tᵀ,  o = S q",
        f"{RULES} test_kernels::test_hebbian_reads_are_linear_attention_over_the_past"),
    Row("A 33, N 17", "choice 20",
        "m_{t+1} = μ m_t + η g_t: a memory of the gradients, without values",
        f"test_optimizers::test_momentum_is_a_proximal_step_of_its_memory {LIMITS}"),
    Row("A 42", "choice 28",
        "W ← W − η NS(m)",
        f"test_optimizers::test_muon_agrees_with_its_published_algorithm_over_ten_steps {LIMITS}"),
    Row("A 43–44", "exact",
        "O ← a O + (b O Oᵀ + c (O Oᵀ)²) O  from  O₀ = M/‖M‖_F",
        "test_optimizers::test_newton_schulz_acts_on_singular_values_alone"),
    Row("A 48–49, N 22", "choice 21, 22",
        "m ← m (α I − gᵀg) + η P g,  W ← W − m",
        "test_optimizers::test_delta_momentum_is_the_printed_rule_for_small_gradients "
        "test_optimizers::test_delta_momentum_is_a_proximal_step_of_its_memory"),
    Row("A 50, N 23", "choice 23, 24, 25",
        "m ← α m − η ∇L(m; u, I),  W ← W − m(u),  u = g,  m an MLP",
        "test_optimizers::test_deep_momentum_follows_the_gradient_of_its_dot_objective_and_reads_its_jacobian"
        " test_optimizers::test_deep_momentum_trains_each_layer_by_a_proximal_step_of_the_l2_objective"),
    Row("A 51", "choice 26",
        "m ← μ m + η φ(g)",
        f"{CLOSED} "
        "test_optimizers::test_features_before_memory_equal_output_behind_it_when_nothing_is_remembered"),
    Row("A 52, N 24", "choice 27",
        "W ← W − η σ(m(u))",
        f"{CLOSED} {LIMITS}"),
    Row("A 56–57, N 27–29", "choice 1, 31, 32",
        "W ← argmin_V ½‖V x − u‖² + ‖V − W‖²/(2η) = W (I − η′ x xᵀ) + η′ u xᵀ,  u = −∇_y L",
        "test_optimizers::test_dgd_with_one_token_is_the_papers_rank_one_rule "
        "test_optimizers::test_dgd_is_the_proximal_step_of_its_regression"),
    Row("A 65", "exact",
        "S_t = S_{t−1} (I − β k kᵀ) + β v kᵀ",
        RULES),
    Row("A 70, N 30", "choice 17",
        "y = MLP_k( … MLP_2(MLP_1(x)) … )",
        "test_cms::test_a_chain_is_the_composition_of_its_residual_levels_fast_to_slow "
        "test_cms::test_one_level_behind_attention_is_a_transformer"),
    Row("A 71, N 31", "choice 14, 15, 16",
        "θ_ℓ ← θ_ℓ − Σ_{last C_ℓ steps} η f(θ_ℓ; x)  if i ≡ 0 (mod C_ℓ), else unchanged",
        "test_cms::test_in_training_a_level_moves_at_exactly_the_steps_its_clock_says "
        "test_cms::test_in_reading_a_level_moves_at_exactly_the_segments_its_clock_says "
        "test_optimizers::test_a_due_level_moves_by_the_sum_of_updates_at_its_frozen_weights"),
    Row("A 72", "choice 18",
        "nested: the slower level learns the initial state that the faster one restarts from",
        "test_cms::test_context_loss_is_its_explicit_loop "
        "test_cms::test_a_nested_level_returns_to_its_initial_state_at_the_end_of_its_context "
        "test_cms::test_the_gradient_of_context_loss_runs_through_its_inner_moves_or_holds_them_still"),
    Row("A 73", "choice 17",
        "sequential: the initial states of all levels are learned together, by backpropagation",
        "test_cms::test_every_level_of_every_variant_receives_gradients_at_the_start"),
    Row("A 74", "choice 17",
        "independent: y = Agg(MLP_1(x), …, MLP_k(x))",
        "test_cms::test_independent_levels_are_mixed_by_the_softmax_of_learned_weights"),
    Row("A 75, Algorithm 1", "choice 28, 29, 30",
        "M₁ ← M₁ + β₁ g;  V ← V + β₂ g²;  every f steps M₂ ← M₂ + β₃ Σ_{last f} g;  θ ← θ − η (NS(M₁) + α "
        "NS(M₂))/(√V + ε)",
        f"{CLOSED} test_optimizers::test_m3_ema_reads_slow_memory_from_the_step_after_its_window {LIMITS}"),
    Row("A 76–78", "choice 2",
        "k = W_k x, v = W_v x, q = W_q x, η = W_η x, α = W_α x: only the main memory learns",
        "test_memory::test_plain_titans_are_one_memory_fed_by_fixed_projections"),
    Row("A 79–82",
        'omitted: superseded by A 83; targets="value" is the same but for η and α, '
        "which cannot take a vector",
        "every projection a memory, all of them writing the same pair (k_t, v_t)"),
    Row("A 83", "choice 10",
        "o_t = M_memory,t−1(q_t),  v̂_□,t = M_□,t−1(v_t),  min L(M_□; k_t, v̂_□,t)",
        TITANS),
    Row("A 84–85", "choice 5, 9, 10, 13, 19",
        "k_t = M_k(x_t), v_t = M_v(x_t), η_t = M_η(x_t), α_t = M_α(x_t), q_t = W_q x_t",
        TITANS),
    Row("A 86–87", "choice 5, 10",
        "the same o, v̂, k and v, under the rule of A 88",
        TITANS),
    Row("A 88", "choice 1, 3, 4, 8, 11",
        "M_□ ← M_□ (α_t I − η_t k_t k_tᵀ) − η_t ∇L(M_□; k_t, v̂_□,t)",
        f"{TITANS} test_memory::test_chunks_of_one_token_read_alike_at_their_start_and_exactly"),
    Row("A 89", "choice 12, 13",
        "M(x) = x + W₁ σ(W₂ x)",
        TITANS),
    Row("A 90", "choice 6, 7",
        "in a chunk, o, k, v, η and α come from the memories as they were at its start",
        f"{TITANS} test_memory::test_exact_reads_and_chunk_start_reads_differ_inside_a_chunk "
        "test_memory::test_every_memory_is_written_exactly_as_often_as_its_chunk_size_says"),
    Row("A 91", "choice 4, 6",
        "in a chunk, v̂ and ∇L come from its start, and M_□,t−1 (α_t I − η_t k_t k_tᵀ) token by token",
        f"{TITANS} test_memory::test_no_bit_of_an_output_depends_on_a_later_token"),
    Row("A 92", "choice 1, 8",
        "L = −⟨M k, v̂⟩:  M ← M (α I − η k kᵀ) + η v̂ kᵀ",
        RULES),
    Row("A 93", "choice 1, 3, 6, 8",
        "L = ½‖M k − v̂‖²:  M ← M (α I − η k kᵀ) − η (M_start k − v̂) kᵀ",
        f"{TITANS} test_memory::test_every_rule_is_the_one_in_the_papers_table"),
    Row("A 94–97", "choice 17",
        "Hope: A 83–88, then y = MLP_k( … MLP_1(o) … ); attention for Hope-Attention",
        "test_hope::test_a_text_reads_the_same_however_it_is_cut_and_in_whatever_batch "
        "test_hope::test_gradients_of_the_whole_model_agree_with_finite_differences"),
    Row("A 101–105", "exact",
        "Adam: m̂/√v̂ is the best element-wise memory of the gradients under ℓ₂ regression",
        "test_optimizers::test_adamw_agrees_with_its_published_algorithm_over_ten_steps"),
    Row("A 106–111", "exact",
        "AdaGrad, likewise: g/√V,  V ← V + g²",
        CLOSED),
    Row("A 113–121", "choice 1",
        "(I + η x xᵀ)⁻¹ = I − η′ x xᵀ,  η′ = η/(1 + η‖x‖²)",
        "test_optimizers::test_an_implicit_step_minimises_the_proximal_objective"),
    Row("N 20–21", "choice 22",
        "m ← α m + η P g, W ← W − m: momentum with values P (delta momentum with decay=0)",
        "test_optimizers::test_delta_momentum_with_preconditioner_has_its_closed_form"),
    Row("§7.3", "exact",
        "every level starts from the MLP of a trained model",
        "test_cms::test_stacked_levels_leave_the_function_unchanged"),
    Row("", "exact",
        "gated delta rule: S_t = α S_{t−1} (I − β k kᵀ) + β v kᵀ",
        RULES,
        "memory.py::RULES kernels.py::delta_rule_recurrent"),
    Row("", "exact",
        "signed delta rule, with eigenvalues from −1: S_t = S_{t−1} (I − 2β k kᵀ) + 2β v kᵀ",
        "test_memory::test_every_rule_is_the_one_in_the_papers_table",
        "memory.py::RULES kernels.py::delta_rule_recurrent"),
    Row("", "exact",
        "chunk-parallel: (I + L) U = diag(c) V − diag(b·g_{t−1}) K S₀ᵀ,  o_t = g_{t−1} S₀ q_t + Σ_{i<t} "
        "(g_{t−1}/g_i)(q_t·k_i) u_i",
        "test_memory::test_every_form_is_the_product_of_rank_one_writes "
        "test_kernels::test_chunked_and_compiled_are_the_recurrence_forwards_and_backwards",
        "memory.py::chunked kernels.py::delta_rule_chunked kernels.py::delta_rule"),
    Row("", "choice 4, 11",
        "layer by layer: W ← W (α I − η′ z zᵀ) − η′ δ zᵀ, z and δ the layer's own input and error",
        f"test_memory::test_the_errors_used_here_give_the_gradients_of_the_objective {TITANS}",
        "memory.py::SelfModifyingTitans.errors memory.py::SelfModifyingTitans.write"),
    Row("", "exact",
        "the Transformer: softmax attention, then one level with chunk size 1",
        "test_layers::test_attention_is_softmax_attention_written_by_hand "
        "test_cms::test_one_level_behind_attention_is_a_transformer",
        "layers.py::CausalAttention hope.py::Config.transformer"),
    Row("", "choice 33",
        "two time scales: W ← W − η (s_f m_fast + s_s m_slow)/√v, of a low-rank digest of g",
        f"{CLOSED} test_optimizers::test_low_rank_loses_nothing_for_good",
        "optimizers.py::MultiTimescale optimizers.py::low_rank"),
]  # fmt: skip

# What the code says --------------------------------------------------------------------------------------

CITATION = re.compile(r"\[((?:[AN]\s+|§\s*|Algorithm\s+)\d[^][]*)\]")  # a line may end inside
NUMBER = re.compile(r"(?:([AN§]|Algorithm)\s*)?(\d+(?:\.\d+)?)(?:\s*[–-]\s*(\d+))?")


def numbers(text: str) -> set[str]:
    """"A 56–57, 88; N 27" → {"A 56", "A 57", "A 88", "N 27"}."""
    found, edition = set(), ""
    for letter, first, last in NUMBER.findall(text):
        edition = letter or edition
        found |= {f"{edition} {n}" for n in (range(int(first), int(last) + 1) if last else [first])}
    return found


def named(body: list, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every name that a module, and each class in it, defines: ("Hope.learn", its node)."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from named(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from ((prefix + x.id, node) for x in ast.walk(target) if isinstance(x, ast.Name))
        else:  # if, try, with: what they define belongs to the module
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from named(getattr(node, part, None) or [], prefix)


class Source:
    """One file: its text, the lines of every name in it, and (place, numbers) of every citation."""

    def __init__(self, path: Path):
        self.file = path.relative_to(ROOT).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.names = {f"{self.file}::{name}": (node.lineno, node.end_lineno)  # type: ignore[attr-defined]
                      for name, node in named(ast.parse(self.text).body)} | {self.file: (0, 10**9)}
        self.citations = [(self.place(match.start()), numbers(match[1]))
                          for match in CITATION.finditer(self.text)]

    def place(self, offset: int) -> str:
        """The innermost name around a position in the text; the file's own name outside of all."""
        line = self.text.count("\n", 0, offset) + 1
        return max((start, name) for name, (start, end) in self.names.items() if start <= line <= end)[1]


def sources() -> list[Source]:
    """The root modules first, in a fixed order, then the other rooms and the tests."""
    paths = sorted(ROOT.glob("*.py"))
    for room in (*ROOMS, "tests"):
        paths += sorted((ROOT / room).rglob("*.py"))
    return [Source(path) for path in paths]


# The table -----------------------------------------------------------------------------------------------

def places(row: Row, code: list[Source]) -> list[str]:
    """Where the root computes a row: what cites its numbers; a whole file only if nothing smaller does."""
    found = [place for source in code if "/" not in source.file for place, cited in source.citations
             if cited & numbers(row.numbers)]
    found = row.places.split() + [place for place in found if "::" in place] or found
    return list(dict.fromkeys(found))


def tests(row: Row, code: list[Source]) -> list[str]:
    """The tests that are named for a row, and those that cite it."""
    given = [f"tests/{name.replace('::', '.py::')}" for name in row.tests.split()]
    citing = [place for source in code for place, cited in source.citations
              if "::test_" in place and cited & numbers(row.numbers)]
    return list(dict.fromkeys(given + citing))


def order(row: Row) -> tuple[bool, bool, float]:
    """By number: the long edition, then what only the short one counts, then what has no number."""
    first = {edition: [float(n[2:]) for n in numbers(row.numbers) if n.startswith(f"{edition} ")]
             for edition in "AN§"}
    return not first["A"], not row.numbers, min(first["A"] or first["N"] or first["§"], default=0)


def verdict(row: Row) -> str:
    """How far a row is followed, with a link to each choice."""
    linked = re.sub(r"\d+", r"[\g<0>](#choice-\g<0>)", row.verdict)
    return linked if row.verdict.startswith("choice") else row.verdict


def missing(known: set[str], edition: str) -> str:
    """The numbers of an edition, up to the last one known, that are not known: "4, 7, 19–32"."""
    have = sorted(int(n[2:]) for n in known if n.startswith(f"{edition} "))
    gaps = [(a + 1, b - 1) for a, b in zip([0, *have], have, strict=False) if b - a > 1]
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in gaps)


def table(code: list[Source]) -> str:
    """What stands between the markers."""
    rows = sorted(ROWS, key=order)
    lines = ["| equation | formula, restated | computed in | tested by | how |", "|---|---|---|---|---|"]
    for row in rows:
        where, held = ("<br>".join(f"`{name}`" for name in f(row, code)) or "–" for f in (places, tests))
        cells = row.numbers or "–", row.formula.replace("|", r"\|"), where, held, verdict(row)
        lines.append(f"| {' | '.join(cells)} |")
    known = set().union(*(numbers(row.numbers) for row in rows))
    short = sorted(((n, row) for row in rows for n in numbers(row.numbers) if n[0] == "N"),
                   key=lambda pair: int(pair[0][2:]))
    lines += ["", "From the short edition: " + " · ".join(
        f"{n} → {re.split('[,;] ?N', row.numbers)[0] if row.numbers[0] == 'A' else 'its own row'}"
        for n, row in short) + "."]
    lines += ["", f"Numbers without a row: A {missing(known, 'A')}; N {missing(known, 'N')}. "
              "We have no formula for them that we could restate, so nothing is claimed about them."]
    return "\n".join(lines)


def split(text: str) -> tuple[str, str, str]:
    """PAPER.md before, between and after the markers. Raises ValueError without both markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"PAPER.md needs each of these lines once: {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    return before, between.strip("\n"), after


def main() -> None:
    before, _, after = split(PAPER.read_text(encoding="utf-8"))
    PAPER.write_text(f"{before}{BEGIN}\n{table(sources())}\n{END}{after}", encoding="utf-8")
    print(f"PAPER.md: {len(ROWS)} rows")


if __name__ == "__main__":
    main()
