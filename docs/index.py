"""Where is each equation computed?  Rewrites the two tables of PAPER.md that stand between its markers.

    python docs/index.py

A row says what the paper prints: the numbers, the formula, how far we follow it, the tests named for it.
Where it is computed is not written down here but found: a place is whatever function, class or table cites
one of the numbers, as `[A 56–57, 88; N 27–29]` in a docstring or a comment, and the table links to its line.
Tests that cite one join in. The numbers of the short edition follow from those of the long one, by `SHORT`.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "PAPER.md"
BEGIN, END = "<!-- equations: written by `python docs/index.py` -->", "<!-- end of equations -->"
ROOMS = ("apps", "gpu", "lessons", "tools", "corpora", "cluster", "benchmarks", "docs")  # may cite as well
LAST = 121  # the long edition's last equation
SHORT = {1: 6, 2: 7, 3: 8, 4: 8, 5: 9, 6: 9, 7: 10, 8: 11, 9: 12, 10: 13, 11: 13, 12: 14, 13: 15, 14: 16, 15: 17,
         16: 18, 17: 33, 18: 34, 19: 46, 20: 47, 21: 48, 22: 49, 23: 50, 24: 52, 25: 54, 26: 55, 27: 56, 28: 57, 29: 57,
         30: 70, 31: 71}  # equation of the short edition → of the long one


class Row(NamedTuple):
    """What the paper prints. `names` are those of the code for a formula that has no number."""

    numbers: str
    verdict: str  # "exact", "choice 3, 7", "definitional: our instance" or "omitted: why"
    formula: str
    tests: str = ""
    names: str = ""


TITANS = ("test_memory::test_titans_are_the_papers_for_every_setting "
          "test_memory::test_titans_are_the_papers_at_lengths_around_a_chunk")
RULES = ("test_memory::test_every_rule_is_the_one_in_the_papers_table "
         "test_kernels::test_the_rules_of_the_table_are_settings_of_the_family")
CLOSED = "test_optimizers::test_two_steps_have_their_closed_form"
LIMITS = "test_optimizers::test_limits_coincide"
ADA = ("test_states::test_an_ada_transformer_without_writes_is_attention_and_a_linear_mlp "
       "test_states::test_an_ada_transformer_writes_the_keys_and_values_of_its_attention")
COSTUMES = "test_optimizers::test_three_costumes_of_gradient_descent_agree"
PROXIMAL = "test_optimizers::test_momentum_is_a_proximal_step_of_its_memory"
TRANSFER = "definitional: [kinds of transfer](#kinds-of-transfer)"

ROWS = [
    Row("A 1–3", "exact",
        "W_{t+1} = W_t − η g_t = argmin_V ⟨g_t, V⟩ + ‖V − W_t‖²/(2η) = argmin_V Σ_{i≤t} ⟨g_i, V⟩ + ‖V − W_1‖²/(2η)",
        COSTUMES),
    Row("A 4", "definitional: A 28, 72 and 73 are its instances",
        "meta-learning: Φ* = argmin_Φ E_T ℓ(θ, T; Φ)"),
    Row("A 5", "choice 2",
        "M_t = α M_{t−1} + v_t φ(k_t)ᵀ,  y_t = M_t φ(q_t)",
        f"{RULES} test_memory::test_features_are_of_keys_and_queries_before_their_length"),
    Row("A 6", "definitional: every memory and every optimiser here",
        "M* = argmin_M L̃(M(K); V)"),
    Row("A 7", "exact",
        "W* = argmin_W L(W; data), by A 8",
        COSTUMES),
    Row("A 8", "exact",
        "W ← W − η ∇_y L ⊗ x",
        f"test_layers::test_a_tap_collects_the_layers_inputs_and_output_errors {COSTUMES}"),
    Row("A 9", "exact",
        "W ← argmin_V ⟨V x, ∇_y L⟩ + ‖V − W‖²/(2η)",
        COSTUMES),
    Row("A 10–13", "exact",
        "m ← m + η g,  W ← W − m  (momentum=1);  m = argmin_n −⟨n, g⟩ + ‖n − m‖²/(2η)",
        f"{CLOSED} {PROXIMAL}"),
    Row("A 14–18", "choice 2",
        "k = W_k x, v = W_v x, q = W_q x;  M_t = M_{t−1} + v_t k_tᵀ, a step of η = 1 on −⟨M k, v⟩;  y_t = M_t q_t",
        f"{RULES} test_kernels::test_hebbian_reads_are_linear_attention_over_the_past"),
    Row("A 19–20", "definitional: weights, memories, levels and momenta are the boxes; the sign, finding 18",
        "a nested system: for every box θ ← argmin_Φ ⟨Φ x, ∇_y L⟩ + ‖Φ − θ‖²/(2η), on its own data and frequency"),
    Row("A 21", "choice 2, 49",
        "AdaTransformer: y = W_t attention(k, v, q),  W_t = W_{t−1} + v_t k_tᵀ,  W_0 learned: a layer that adapts",
        ADA),
    Row("A 22–23", "exact",
        "Φ* = argmin_Φ E L(Φ; x, y), by A 1 on samples",
        COSTUMES),
    Row("A 24–26", TRANSFER,
        "direct, parametric: M⁰(·; Θ¹), M⁰(·; M¹(·)),  as in y = M_t(W_q x)"),
    Row("A 27", TRANSFER,
        "direct, non-parametric: M⁰(·; C¹)"),
    Row("A 28", TRANSFER,
        "initialisation: Θ¹_0 = argmin_Φ E_{C∼C⁰} ℓ(M¹(·; Φ), C)"),
    Row("A 29–31", "exact",
        "∂L/∂W_ℓ = δ_ℓ x̂_{ℓ−1}ᵀ,  δ_ℓ = J_φ(z_ℓ)ᵀ W_{ℓ+1}ᵀ δ_{ℓ+1};  "
        "W ← W − η δ x̂ᵀ = argmin_V ⟨V x̂, δ⟩ + ‖V − W‖²/(2η)",
        "test_optimizers::test_backpropagation_writes_the_error_of_every_layer_under_its_input"),
    Row("A 32", "exact",
        "W ← W − η g",
        COSTUMES),
    Row("A 33", "choice 20",
        "m ← μ m + η g,  W ← W − m",
        f"{PROXIMAL} {LIMITS}"),
    Row("A 34–37", "choice 20",
        "m by gradient descent on ⟨m x̂, δ⟩, for μ ≠ 1 with an ℓ₂ term; in general on any L̃(m; x̂, −δ)",
        f"{PROXIMAL} test_optimizers::test_delta_momentum_is_a_proximal_step_of_its_memory"),
    Row("A 38–41", "choice 45",
        "W ← W − η P⁻¹(g),  P ← P − ζ ∇_P L̃(P(ĝ); g)",
        "test_optimizers::test_a_preconditioner_descends_the_error_of_its_map_from_coordinates_to_gradients"),
    Row("A 42", "choice 27, 28",
        "W ← W + NS(m),  m ← μ m − η g",
        f"test_optimizers::test_muon_agrees_with_its_published_algorithm_over_ten_steps {LIMITS}"),
    Row("A 43–44", "choice 46",
        "L̃ = ‖OᵀO − I‖²,  O ← O − ζ (O − g + 2 O (OᵀO − I))  from  O_0 = g",
        "test_optimizers::test_newton_schulz_acts_on_singular_values_alone"),
    Row("A 45", "exact",
        "tasks L_i = E‖W x − y‖² with orthogonal gradients u_i, in turn: what is left of u_1?",
        "test_optimizers::test_what_is_left_in_momentum_spoils_a_task_that_sgd_would_keep"),
    Row("A 46–47", "choice 22",
        "m ← α m + η P g,  W ← W − m, from ⟨m gᵀ, P⟩  (delta momentum with decay=0)",
        "test_optimizers::test_delta_momentum_without_decay_is_preconditioned_momentum"),
    Row("A 48–49", "choice 21, 22",
        "m ← m (α I − gᵀg) + η P g,  W ← W − m, from ‖m gᵀ − P‖²",
        "test_optimizers::test_delta_momentum_is_the_printed_rule_for_small_gradients "
        "test_optimizers::test_delta_momentum_is_a_proximal_step_of_its_memory"),
    Row("A 50", "choice 23, 24, 25",
        "m ← α m − η ∇L(m; u, 1),  W ← W − m(u),  u = g,  m an MLP;  L = −⟨m(u), 1⟩; the text has + "
        "for both, L = ⟨m(u), 1⟩ and W ← W + m(u)",
        "test_optimizers::test_deep_momentum_follows_the_gradient_of_its_dot_objective_and_reads_its_jacobian"
        " test_optimizers::test_deep_momentum_trains_each_layer_by_a_proximal_step_of_the_l2_objective"),
    Row("A 51", "choice 26",
        "m ← α m + η P φ(g)",
        f"{CLOSED} "
        "test_optimizers::test_features_before_memory_equal_output_behind_it_when_nothing_is_remembered"),
    Row("A 52", "choice 27",
        "W ← W + σ(m(u)),  m ← α m − η ∇L(m; u, I)",
        f"{CLOSED} {LIMITS}"),
    Row("A 53", "choice 48",
        "ψ(r, θ) = r² + k (r − θ + a sin ωr)²  from (−3.5, 2)",
        "test_optimizers::test_landscapes_have_their_gradients"),
    Row("A 54–55", "exact",
        "W ← W − η ∇_y L ⊗ x = argmin_V ⟨V x, ∇_y L⟩ + ‖V − W‖²/(2η)",
        COSTUMES),
    Row("A 56–57", "choice 1, 31, 32",
        "W ← argmin_V ½‖V x − u‖² + ‖V − W‖²/(2η) = W (I − η′ x xᵀ) + η′ u xᵀ,  u = −∇_y L",
        "test_optimizers::test_dgd_with_one_token_is_the_papers_rank_one_rule "
        "test_optimizers::test_dgd_is_the_proximal_step_of_its_regression"),
    Row("A 58", "exact",
        "W ← W + η v ⊗ x,  v = f_W(x) = −∇_y L: a value that the memory makes for itself",
        COSTUMES),
    Row("A 59–60", "definitional: [rules of learning](#rules-of-learning)",
        "W ← argmin_V L̃(V; x, u) + Ret(V, {W_i}),  u = f_W(x)",
        "test_optimizers::test_rules_are_an_objective_and_a_retention"),
    Row("A 61", "definitional: the projections of every mixer",
        "k = W_k x, v = W_v x, q = W_q x"),
    Row("A 62", "exact",
        "softmax attention: argmin_m Σ_i s(k_i, q) ‖v_i − m‖² = Σ_i s_i v_i / Σ_i s_i",
        "test_layers::test_attention_is_a_regression_on_values_solved_anew_for_every_query"),
    Row("A 63", "exact",
        "the same over the last c tokens: sliding-window attention",
        "test_layers::test_windowed_attention_sees_the_last_tokens_only_however_the_text_is_cut "
        "test_layers::test_a_window_as_long_as_the_text_is_attention"),
    Row("A 64", "choice 2",
        "M_t = α M_{t−1} + η v_t φ(k_t)ᵀ, from −2⟨M k, v⟩; η = 1 here",
        f"{RULES} test_memory::test_features_are_of_keys_and_queries_before_their_length"),
    Row("A 65", "exact",
        "M_t = M_{t−1} (I − η k kᵀ) + η v kᵀ, from ‖M k − v‖²; printed with the factor on the left, finding 18",
        RULES),
    Row("A 66–67", "choice 54",
        "Oja: M_t = α M_{t−1} + η v (φ(k) − M_{t−1}ᵀ v)ᵀ, from −2⟨M k, v⟩ + ‖Mᵀ v‖²: the delta rule of Mᵀ, finding 20",
        "test_memory::test_ojas_rule_is_the_delta_rule_of_the_transpose"),
    Row("A 68", "choice 51",
        "Omega: M_t = α M_{t−1} − Σ_{t−c<i≤t} γ_{t,i} ∇L̃(M_{t−1}; φ(k_i), v_i)",
        "test_memory::test_omega_learns_from_the_last_pairs_at_every_token"),
    Row("A 69", "choice 2, 49",
        "AdaTransformer, A 21 again",
        ADA),
    Row("A 70", "choice 17",
        "y = MLP_k( … MLP_2(MLP_1(x)) … ), fast to slow as in Fig. 5, finding 19",
        "test_cms::test_a_chain_is_the_composition_of_its_residual_levels_fast_to_slow "
        "test_cms::test_one_level_behind_attention_is_a_transformer"),
    Row("A 71", "choice 14, 15, 16, 41, 53",
        "θ_ℓ ← θ_ℓ − Σ_{last C_ℓ tokens} η_t^ℓ f(θ_ℓ; x_t)  if i ≡ 0 (mod C_ℓ), else unchanged",
        "test_cms::test_in_training_a_level_moves_at_exactly_the_steps_its_clock_says "
        "test_cms::test_in_reading_a_level_moves_at_exactly_the_segments_its_clock_says "
        "test_optimizers::test_a_due_level_moves_by_the_sum_of_updates_at_its_frozen_weights"),
    Row("A 72", "choice 18",
        "nested: the slower level learns the initial state that the faster one restarts from, over its contexts",
        "test_cms::test_context_loss_is_its_explicit_loop "
        "test_cms::test_a_nested_level_returns_to_its_initial_state_at_the_end_of_its_context "
        "test_cms::test_the_gradient_of_context_loss_runs_through_its_inner_moves_or_holds_them_still"),
    Row("A 73", "choice 17, 18, 44",
        "sequential: all initial states are learned together, over the slowest level's contexts, in which A 71 runs",
        "test_cms::test_every_level_of_every_variant_receives_gradients_at_the_start "
        "test_cms::test_levels_that_move_in_the_context_are_weights_that_move "
        "test_cms::test_initial_states_and_rates_are_learned_through_the_moves"),
    Row("A 74", "choice 17, 44",
        "independent: y = Agg(MLP_1(x), …, MLP_k(x))",
        "test_cms::test_independent_levels_are_mixed_by_the_softmax_of_learned_weights"),
    Row("A 75, Algorithm 1", "choice 28, 29, 30, 42",
        "M₁ ← M₁ + β₁ g;  V ← V + β₂ g²;  every f steps M₂ ← M₂ + β₃ Σ_{last f} g;  θ ← θ − η (NS(M₁) + α "
        "NS(M₂))/√(V + ε); A 75 has − β₂ for + β₃, finding 10",
        f"{CLOSED} test_optimizers::test_m3_as_printed_adds_up_a_window_and_reads_it_from_the_step_after "
        f"test_optimizers::test_m3_ema_reads_slow_memory_from_the_step_after_its_window {LIMITS}"),
    Row("A 76–78", "choice 1, 2, 3, 4, 6, 8, 9, 10, 11, 13",
        "k = W_k x, v = W_v x, q = W_q x, η = W_η x, α = W_α x;  min L(M; k, v);  y_t = M_t q_t",
        "test_memory::test_plain_titans_are_one_memory_fed_by_fixed_projections"),
    Row("A 79–82",
        "omitted: superseded by A 83–85, where all have the key k_t, and each makes a target of its own",
        "□_t = M_□,t−1(x_t) for k, v, q, η, α, each trained on (□_t, v_t), the main memory on (k_t, v_t);  "
        "y_t = M_mem,t(q_t)"),
    Row("A 83", "choice 5, 9, 10, 13, 19",
        "y_t = M_mem,t−1(q_t);  k_t, v_t, η_t, α_t = M_□,t−1(x_t)",
        TITANS),
    Row("A 84", "choice 10",
        "v̂_□,t = M_□,t−1(v_t)",
        TITANS),
    Row("A 85", "choice 3, 5",
        "min L(M_□; k_t, v̂_□,t) for k, v, q, η, α, mem; “q_t = W_q x_t is the only non-adaptive projection”",
        TITANS),
    Row("A 86–87", "choice 5, 10",
        "A 83–84 again, for the rule of A 88",
        TITANS),
    Row("A 88", "choice 1, 3, 4, 8, 11, 50",
        "M_□ ← M_□ (α_t I − η_t k_t k_tᵀ) − η_t ∇L(M_□,t−1; k_t, v̂_□,t)",
        f"{TITANS} test_memory::test_chunks_of_one_token_read_alike_at_their_start_and_exactly "
        "test_memory::test_momentum_the_printed_step_and_other_errors_are_their_definitions "
        "test_memory::test_the_step_as_printed_is_the_plain_eta_and_reaches_an_eigenvalue_of_minus_one"),
    Row("A 89, 91", "choice 12, 13",
        "M(x) = x + W₁ σ(W₂ x)",
        TITANS),
    Row("A 90", "choice 4, 6, 7",
        "in a chunk y, k, v, η, α, v̂ and ∇L come from the memories at its start; (α_t I − η_t k_t k_tᵀ) token by token",
        f"{TITANS} test_memory::test_exact_reads_and_chunk_start_reads_differ_inside_a_chunk "
        "test_memory::test_every_memory_is_written_exactly_as_often_as_its_chunk_size_says "
        "test_memory::test_no_bit_of_an_output_depends_on_a_later_token"),
    Row("A 92", "choice 1, 8",
        "L = −⟨M k, v̂⟩:  M ← M (α I − η k kᵀ) + η v̂ kᵀ; the sign corrected, finding 12",
        RULES),
    Row("A 93", "choice 1, 3, 6, 8",
        "L = ½‖M k − v̂‖²:  M ← M (α I − η k kᵀ) − η (M_start k − v̂) kᵀ",
        f"{TITANS} test_memory::test_every_rule_is_the_one_in_the_papers_table"),
    Row("A 94–97", "choice 17, 40",
        "Hope: A 83–88, then y = MLP_k( … MLP_1(o) … ); attention for Hope-Attention",
        "test_cms::test_hope_is_titans_and_then_its_levels_in_a_chain "
        "test_cms::test_one_level_behind_attention_is_a_transformer "
        "test_hope::test_a_text_reads_the_same_however_it_is_cut_and_in_whatever_batch "
        "test_hope::test_gradients_of_the_whole_model_agree_with_finite_differences"),
    Row("A 98–99", "definitional: the implicit step, ours for ℓ₂",
        "θ ← argmin_Φ L(Φ; x) + ‖Φ − θ‖²/(2η)",
        "test_optimizers::test_an_implicit_step_minimises_the_proximal_objective"),
    Row("A 100", "choice 20",
        "A 33 again",
        PROXIMAL),
    Row("A 101–105", "choice 47",
        "argmin_m Σ_i ‖m g_i − P‖² + λ‖m‖² per element = P M̃/(H + λ), here λ = 0,  M̃ ← M̃ + β₁ g,  H ← H + β₂ g²: with "
        "P = Σ g² momentum, with P = √Σ g² Adam with sums (`AdaGrad`, momentum=1; with averages P varies: tests)",
        "test_optimizers::test_adamw_agrees_with_its_published_algorithm_over_ten_steps"),
    Row("A 106–111", "choice 47",
        "the same for matrices: H ← H + β₂ g gᵀ,  M̃ ← M̃ + β₁ g,  W ← W − (η/√β₂) H^(−½) M̃",
        f"{CLOSED} test_optimizers::test_full_adagrad_begins_with_an_orthogonal_step_and_is_the_diagonal_one_"
        "for_a_single_element"),
    Row("A 112", "exact",
        "A 55 again",
        COSTUMES),
    Row("A 113–121", "choice 1",
        "(I + η x xᵀ)⁻¹ = I − η′ x xᵀ,  η′ = η/(1 + η‖x‖²); printed with slips, finding 15",
        "test_optimizers::test_an_implicit_step_minimises_the_proximal_objective"),
    Row("§7.3", "exact",
        "level stacking: k trained MLPs start the k levels (`spread`; `independent` copies of one MLP are ours)",
        "test_cms::test_stacked_levels_leave_the_function_unchanged"),
    Row("", "exact",
        "gated delta rule: S_t = α S_{t−1} (I − β k kᵀ) + β v kᵀ",
        RULES, "memory.py::RULES"),
    Row("", "exact",
        "signed delta rule, with eigenvalues from −1: S_t = S_{t−1} (I − 2β k kᵀ) + 2β v kᵀ",
        "test_memory::test_every_rule_is_the_one_in_the_papers_table", "memory.py::RULES"),
    Row("", "exact",
        "chunk-parallel: (I + L) U = diag(c) V − diag(b·g_{t−1}) K S₀ᵀ,  o_t = g_{t−1} S₀ q_t + Σ_{i<t} "
        "(g_{t−1}/g_i)(q_t·k_i) u_i",
        "test_memory::test_every_form_is_the_product_of_rank_one_writes "
        "test_kernels::test_chunked_and_compiled_are_the_recurrence_forwards_and_backwards", "chunked"),
    Row("", "choice 4, 11",
        "layer by layer: W ← W (α I − η′ z zᵀ) − η′ δ zᵀ, z and δ the layer's own input and error",
        f"test_memory::test_the_errors_used_here_give_the_gradients_of_the_objective {TITANS}",
        "SelfModifyingTitans.errors SelfModifyingTitans.write"),
    Row("", "exact",
        "the Transformer: softmax attention, then one level with chunk size 1",
        "test_layers::test_attention_is_softmax_attention_written_by_hand "
        "test_cms::test_one_level_behind_attention_is_a_transformer", "CausalAttention transformer"),
    Row("", "exact",
        "Muon's quintic: X ← a X + (b X Xᵀ + c (X Xᵀ)²) X  from  X = M/‖M‖, in no equation of the paper",
        "test_optimizers::test_newton_schulz_acts_on_singular_values_alone", "newton_schulz"),
    Row("", "choice 33",
        "two time scales: W ← W − η (s_f m_fast + s_s m_slow)/√v, of g at a low rank with error feedback",
        f"{CLOSED} test_optimizers::test_low_rank_loses_nothing_for_good", "MultiTimescale low_rank"),
    Row("", "choice 39",
        "momentum in Titans (Table 6; from the Titans paper): S_t = β_t S_{t−1} − η_t ∇L,  "
        "M_t = M_{t−1} (α_t I − η_t k kᵀ) + S_t; in code N for S, S for M",
        "test_memory::test_momentum_in_chunks_is_momentum_token_by_token "
        "test_memory::test_momentum_the_printed_step_and_other_errors_are_their_definitions", "momentum_rule"),
    Row("", "exact",
        "other norms: ‖M k − v‖_p^p/p in place of half the squared error (§5)",
        "test_memory::test_momentum_the_printed_step_and_other_errors_are_their_definitions",
        "SelfModifyingTitans.errors"),
    Row("§7.1", "exact",
        "C_ℓ = max C / f_ℓ: chunk and frequency of every component, as in Fig. 5; and how far back gradients go",
        "test_cms::test_the_timetable_says_of_every_component_its_chunk_frequency_and_reach"),
]  # fmt: skip

# What the code says --------------------------------------------------------------------------------------

CITATION = re.compile(r"\[((?:[AN]\s+|§\s*|Algorithm\s+)\d[^][]*)\]")  # a line may end inside
NUMBER = re.compile(r"(?:([AN§]|Algorithm)\s*)?(\d+(?:\.\d+)?)(?:\s*[–-]\s*(\d+))?")


def numbers(text: str) -> set[str]:
    """"A 56–57, 88; N 27; Su 2021" → {"A 56", "A 57", "A 88", "N 27"}."""
    found, edition = set(), ""
    for part in re.sub(r"(Fig\.|Table) *\d+", "", text).split(";"):  # a part may be another's work
        for letter, first, last in NUMBER.findall(part) if re.match(r"\s*([AN§]|Algorithm)\s*\d", part) else ():
            edition = letter or edition
            found |= {f"{edition} {n}" for n in (range(int(first), int(last) + 1) if last else [first])}
    return found


def named(body: list, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every name that a module, and each class in it, defines, and every row of a table: ("Hope.learn", its node)."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from named(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from ((prefix + x.id, node) for x in ast.walk(target) if isinstance(x, ast.Name))
            if isinstance(node.value, ast.Dict) and isinstance(target, ast.Name):
                yield from ((f'{prefix}{target.id}["{key.value}"]', key) for key in node.value.keys
                            if isinstance(key, ast.Constant) and isinstance(key.value, str))
        else:  # if, try, with: what they define belongs to the module
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from named(getattr(node, part, None) or [], prefix)


class Source:
    """One file: its text, the lines of every name in it, and (place, numbers) of every citation."""

    def __init__(self, path: Path):
        self.file = path.relative_to(ROOT).as_posix()
        self.root = "/" not in self.file or self.file.startswith("kernels/")  # where equations are computed
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
    paths = sorted(ROOT.glob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))
    for room in (*ROOMS, "tests"):
        paths += sorted((ROOT / room).rglob("*.py"))
    return [Source(path) for path in paths if path != Path(__file__).resolve()]


# The tables ----------------------------------------------------------------------------------------------


def places(row: Row, code: list[Source]) -> list[str]:
    """Where a row is computed: what cites its numbers in the root, or failing that in another room.

    What cites the fewest others stands first, then what is shortest. A whole file counts only if nothing smaller in it
    or elsewhere does.
    """
    def rank(source: Source, place: str, said: set[str]) -> tuple[bool, int, int]:
        start, end = source.names[place]
        return not source.root, len({n for n in said - numbers(row.numbers) if n[0] != "N"}), end - start
    cited = sorted((*rank(source, place, said), place) for source in code if not source.file.startswith("tests/")
                   for place, said in source.citations if said & numbers(row.numbers))
    found = [place for other, *_, place in cited if not other] or [place for *_, place in cited]
    named = [place for source in code if source.root for place in source.names for name in row.names.split()
             if re.search(rf"(^|::|\.){re.escape(name)}$", place)]
    return list(dict.fromkeys(named + [place for place in found if "::" in place] or found))


def tests(row: Row, code: list[Source]) -> list[str]:
    """The tests that are named for a row, and those that cite it."""
    given = [f"tests/{name.replace('::', '.py::')}" for name in row.tests.split()]
    citing = [place for source in code for place, said in source.citations
              if "::test_" in place and said & numbers(row.numbers)]
    return list(dict.fromkeys(given + citing))


def order(row: Row) -> tuple[bool, bool, float]:
    """By number; then the sections, then what has no number."""
    found = [float(n.split()[1]) for n in numbers(row.numbers) if n.startswith(("A ", "§ "))]
    return not row.numbers.startswith("A"), not row.numbers, min(found, default=0)


def ranges(values: Iterable[int]) -> str:
    """{3, 4, 6} → "3–4, 6"."""
    runs: list[list[int]] = []
    for n in sorted(values):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def label(row: Row) -> str:
    """The numbers of both editions: "A 8, N 3–4"."""
    short = ranges(n for n, long in SHORT.items() if f"A {long}" in numbers(row.numbers))
    return ", ".join(filter(None, [row.numbers, short and f"N {short}"])) or "–"


def linked(row: Row) -> str:
    """How far a row is followed, with a link to each choice and finding."""
    if row.verdict.startswith("choice"):
        return re.sub(r"\d+", r"[\g<0>](#choice-\g<0>)", row.verdict)
    return re.sub(r"choice (\d+)", r"[\g<0>](#choice-\1)", row.verdict)


def anchor(row: Row) -> str:
    """Where links to a row lead: "a-88" """
    return re.sub(r"\W+", "-", row.numbers.split(",")[0].split("–")[0].lower().strip("§ "))


def link(place: str, code: list[Source]) -> str:
    """`memory.py::SelfModifyingTitans.write` → its last name, linked to its line."""
    file, _, name = place.partition("::")
    line = next(source.names[place][0] for source in code if place in source.names)
    return f"[`{file}::{name.split('.')[-1]}`]({file}#L{line})" if name else f"[`{file}`]({file})"


def table(code: list[Source]) -> str:
    """What stands between the markers."""
    rows = sorted(ROWS, key=order)
    lines = ["| equation | formula, restated | computed in | how |", "|---|---|---|---|"]
    for row in rows:
        where = "<br>".join(link(place, code) for place in places(row, code)) or "–"
        formula = row.formula.replace("|", r"\|")
        here = f'<a id="{anchor(row)}"></a>' if row.numbers.startswith("A") else ""
        lines.append(f"| {here}{label(row)} | {formula} | {where} | {linked(row)} |")
    short = (f"N {ranges(n for n in SHORT if SHORT[n] == long)} → A {long}" for long in dict.fromkeys(SHORT.values()))
    lines += ["", f"From the short edition: {' · '.join(short)}.", "", "### Tests by equation", "",
              "| equation | tests |", "|---|---|"]
    for row in rows:
        held = [place.partition("::") for place in tests(row, code)]
        if held:
            name = label(row) if row.numbers else row.formula.split(":")[0]
            lines.append(f"| {name} | {'<br>'.join(f'[`{test}`]({file})' for file, _, test in held)} |")
    return "\n".join(lines)


def split(text: str) -> tuple[str, str, str]:
    """PAPER.md before, between and after the markers. Raises ValueError without both markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"PAPER.md needs each of these lines once: {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    return before, between.strip("\n"), after


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    before, _, after = split(PAPER.read_text(encoding="utf-8"))
    PAPER.write_text(f"{before}{BEGIN}\n{table(sources())}\n{END}{after}", encoding="utf-8")
    print(f"PAPER.md: {len(ROWS)} rows")


if __name__ == "__main__":
    main()
