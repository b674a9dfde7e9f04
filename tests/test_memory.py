"""What memory.py promises: three forms of one rule, and self-modifying Titans as the paper writes them."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memory as rules
import titans
from autograd import Tensor, check_grad, concatenate, grad, no_grad, tree_leaves, tree_map
from autograd import sum as total
from config import MIXERS, Config
from hope import make_mixer
from memory import FORMS, RULES, STEPS, delta_rule, half_lives, momentum_rule, oja, proximal
from titans import FEW, LONGEST, Span

MEMORIES = [name for name in MIXERS if name != "attention"]
FAST = ("chunked", "fused")
VARIETIES = list(product(("mlp", "matrix"), ("l2", "dot")))  # memory, objective


MOMENTUM = pytest.mark.parametrize("momentum", [False, pytest.param(True, marks=pytest.mark.slow)])  # other kernels


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def unit(x: np.ndarray) -> np.ndarray:
    """x/‖x‖; the guard tells where a decayed memory's key has all but vanished."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def close(x, y, tolerance: float = 1e-10) -> bool:
    return np.allclose(x, y, rtol=tolerance, atol=tolerance)


# --- the rule and its three forms ---------------------------------------------------------------------------


def rule_inputs(T: int, lead: tuple[int, ...] = (2, 3), d_k: int = 5, d_v: int = 4) -> list[np.ndarray]:
    """q, k, v, log_a, b, c, S with b‖k‖² ≤ 1, as every rule has it."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((*lead, T, d)) for d in (d_k, d_k, d_v))
    log_a, b, c = -rng.random((*lead, T)) / 5, rng.random((*lead, T)), rng.random((*lead, T))
    return [q, unit(k), v, log_a, b, c, rng.standard_normal((*lead, d_v, d_k))]


def rule_by_hand(q, k, v, log_a, b, c, S):
    """o_t = S q_t, then S ← S(a I − b k kᵀ) + c v kᵀ, one sequence, one token at a time."""
    o, last = np.full(v.shape, np.nan), np.full(S.shape, np.nan)
    for n in np.ndindex(S.shape[:-2]):
        W = S[n]
        for t in range(k.shape[-2]):
            o[n][t] = W @ q[n][t]
            K, V = np.outer(k[n][t], k[n][t]), np.outer(v[n][t], k[n][t])
            W = W @ (np.exp(log_a[n][t]) * np.eye(len(K)) - b[n][t] * K) + c[n][t] * V
        last[n] = W
    return o, last


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 7, 63, 64, 65, 130])
def test_every_form_is_the_product_of_rank_one_writes(form, T):
    inputs = rule_inputs(T)
    o, S = delta_rule(*map(Tensor, inputs), form=form)
    expected = rule_by_hand(*inputs)
    assert o.shape == expected[0].shape and close(o.data, expected[0]) and close(S.data, expected[1])


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("T", [1, 7, 63, 64, 65])
def test_the_fast_forms_have_the_gradients_of_the_recurrent_one_for_all_seven_inputs(form, T):
    inputs = rule_inputs(T)
    cotangents = [Tensor(draw(1, 2, 3, T, 4)), Tensor(draw(2, 2, 3, 4, 5))]

    def gradients(form: str) -> list[np.ndarray]:
        leaves = [Tensor(x, requires_grad=True) for x in inputs]
        return [g.data for g in grad(FORMS[form](*leaves), leaves, cotangents)]

    for name, g, expected in zip(
        ["q", "k", "v", "log_a", "b", "c", "S"], gradients(form), gradients("recurrent"), strict=True
    ):
        assert close(g, expected), name


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_every_form_agree_with_finite_differences(form):
    check_grad(lambda *inputs: delta_rule(*inputs, form=form), *rule_inputs(3, (1,), 2, 2), order=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [0, 3])
def test_without_queries_the_writes_are_the_same_and_nothing_is_read(form, T):
    q, *rest = map(Tensor, rule_inputs(T))
    o, S = delta_rule(None, *rest, form=form)
    assert o is None and close(S.data, delta_rule(q, *rest, form="recurrent")[1].data)
    check_grad(lambda *xs: delta_rule(None, *xs, form=form)[1], *rule_inputs(3, (1,), 2, 2)[1:], order=2)


@pytest.mark.parametrize("form", FORMS)
def test_no_token_leaves_the_state_as_it_was(form):
    inputs = rule_inputs(0)
    o, S = delta_rule(*map(Tensor, inputs), form=form)
    assert o.shape == (2, 3, 0, 4) and np.array_equal(S.data, inputs[6])


def test_chunks_inside_the_chunked_form_change_nothing():
    inputs = rule_inputs(13)
    whole = FORMS["chunked"](*map(Tensor, inputs))
    for chunk in (1, 4, 13):
        for x, y in zip(FORMS["chunked"](*map(Tensor, inputs), chunk=chunk), whole, strict=True):
            assert close(x.data, y.data)
    check_grad(lambda *xs: FORMS["chunked"](*xs, chunk=2), *rule_inputs(3, (1,), 2, 1), order=2)


@pytest.mark.parametrize("form", FORMS)
def test_strong_decay_overflows_nowhere(form):
    """g_i/g_t = e^(30·63) is beyond any float; it stands where the mask removes it."""
    inputs = [x.astype(np.float32) for x in rule_inputs(64)]
    inputs[3][...] = -30
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    o, S = delta_rule(*leaves, form=form)
    assert close(o.data, rule_by_hand(*inputs)[0], 1e-4)
    assert all(np.all(np.isfinite(g.data)) for g in grad([o, S], leaves, [Tensor(o.data), Tensor(S.data)]))


@pytest.mark.parametrize("form", FORMS)
def test_a_retention_of_exactly_nothing_is_the_definition(form):
    inputs = rule_inputs(70)
    inputs[3][..., [0, 5, 66, 69]] = -np.inf
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    o, S = delta_rule(*leaves, form=form)
    assert close(o.data, rule_by_hand(*inputs)[0], 1e-10)
    assert all(np.all(np.isfinite(g.data)) for g in grad([o, S], leaves, [Tensor(o.data), Tensor(S.data)]))


@pytest.mark.parametrize("form", FORMS)
def test_a_memory_forgets_nothing_at_retention_one_in_single_precision(form):
    inputs = rule_inputs(65, (1,))
    inputs[3][...] = -1e-9  # half-life of a billion tokens
    inputs[4][...] = inputs[5][...] = 0
    _, S = delta_rule(*(Tensor(x.astype(np.float32)) for x in inputs), form=form)
    assert close(S.data, inputs[6], 1e-6)


@given(eta=st.floats(0, 1e3), scale=st.floats(1e-3, 30))
def test_delta_gradient_descent_minimises_its_proximal_objective(eta, scale):
    """W(I − η′xxᵀ) + η′uxᵀ = argmin_V ½‖Vx − u‖² + ‖V − W‖²/(2η), for any length of x [A 56–57, 113–121]."""
    W, x, u = draw(0, 3, 4), draw(1, 4) * scale, draw(2, 3)
    step = proximal(Tensor(np.float64(eta)), x @ x).data
    V = W @ (np.eye(4) - step * np.outer(x, x)) + step * np.outer(u, x)
    exact = np.linalg.solve(np.eye(4) + eta * np.outer(x, x), (W + eta * np.outer(u, x)).T).T
    assert np.abs(V - exact).max() < 1e-6 * (1 + np.abs(u).max() / scale)
    assert np.linalg.norm(V @ x - u) <= np.linalg.norm(W @ x - u) * (1 + 1e-9) + 1e-9


# --- matrix memories: the table of rules --------------------------------------------------------------------

TABLE = {  # (a, b, c) of each rule, from α, β = η, and for dgd the exact step η′ = η/(1 + η) [A 57], since ‖k‖ = 1
    "linear": lambda alpha, eta: (1, 0, 1),
    "retention": lambda alpha, eta: (alpha, 0, 1),
    "delta": lambda alpha, eta: (1, eta, eta),
    "signed": lambda alpha, eta: (1, 2 * eta, 2 * eta),
    "gated": lambda alpha, eta: (alpha, alpha * eta, eta),
    "dgd": lambda alpha, eta: (alpha, eta / (1 + eta), eta / (1 + eta)),
    "dgd-l2": lambda alpha, eta: (alpha, 2 * eta / (1 + eta), eta / (1 + eta)),  # u = v − S k
    "oja": lambda alpha, eta: (alpha, eta, eta),  # of the transpose
}
PRINTED = TABLE | {  # with the plain η of [A 88–96], as long as no eigenvalue falls below −1
    "dgd": lambda alpha, eta: (alpha, eta, eta),
    "dgd-l2": lambda alpha, eta: (alpha, 2 * min(eta, (1 + alpha) / 2), min(eta, (1 + alpha) / 2)),
}
PHI = {"identity": lambda x: x, "relu": lambda x: np.maximum(x, 0), "square": lambda x: x * x,
       "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))}  # fmt: skip


SMALL = Config(width=8, heads=2, layers=1, segment=16, vocabulary=11, hidden=8, chunks=(1,), eta_max=0.9,
               eta_start=0.4, memory_chunk=4, projection_chunk=4, form="chunked")  # fmt: skip


def small(**settings) -> Config:
    return replace(SMALL, **settings)


def shaken(config: Config, seed: int = 0):
    """The mixer of a config in float64, away from its start: nothing is small or symmetric."""
    rng = np.random.default_rng(seed)
    mixer = make_mixer(rng, config).astype(np.float64)
    for name, p in mixer.named_parameters():
        p.data += 0.4 * rng.standard_normal(p.shape)
        if name == "bias.alpha":
            p.data = rng.uniform(0.5, 2.5, p.shape)
    return mixer


def convolved(P: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    w, y = P["conv.weight"], np.zeros_like(x)
    for t, i in product(range(len(x)), range(len(w))):
        if i <= t:
            y[t] += w[i] * x[t - i]
    return y


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + 1e-6)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def matrix_by_hand(mixer, x: np.ndarray, table: dict = TABLE, phi: str = "identity", omega_window: int = 3
                   ) -> np.ndarray:
    """One sequence x (T,D) through a `MatrixMemory`, one head and one token at a time."""
    mixer_phi = PHI[phi]
    past: dict[int, list] = {h: [] for h in range(mixer.heads)}
    P = {name: p.data for name, p in mixer.named_parameters()}
    x = convolved(P, x)
    d, reads = x.shape[1] // mixer.heads, np.full(x.shape, np.nan)
    for h in range(mixer.heads):
        rows, S = slice(h * d, (h + 1) * d), P["initial"][h]
        for t in range(len(x)):
            q, k, v = (P[f"projection.{name}.weight"][rows] @ x[t] for name in "qkv")
            q, k, v = unit(mixer_phi(q)), unit(mixer_phi(k)), rms(v)
            gate = [
                logistic(P[f"gate.{name}.weight"][h] @ x[t] + P[f"bias.{name}"][h])
                if name in mixer.gate
                else np.nan
                for name in ("alpha", "eta")
            ]
            reads[t, rows] = rms(S @ q)
            if mixer.rule == "omega":
                past[h] = [*past[h][1 - omega_window:], (k, v, gate[1] / omega_window)] if omega_window > 1 else [
                    (k, v, gate[1])]
                S = gate[0] * S - sum(gamma * np.outer(S @ k - v, k) for k, v, gamma in past[h])
                continue
            a, b, c = table[mixer.rule](*gate)
            if mixer.rule == "oja":
                v = unit(v)
                S = a * S + c * np.outer(v, k - S.T @ v)
                continue
            S = S @ (a * np.eye(d) - b * np.outer(k, k)) + c * np.outer(v, k)
    return reads @ P["output.weight"].T


def test_the_table_here_has_every_rule():
    assert set(TABLE) == set(RULES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_the_one_in_the_papers_table(rule, form):
    mixer, x = shaken(small(mixer=rule, form=form)), draw(1, 2, 20, 8)
    y, _ = mixer(Tensor(x))
    assert close(y.data, [matrix_by_hand(mixer, sequence) for sequence in x])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["dgd", "dgd-l2"])
def test_the_step_as_printed_is_the_plain_eta_and_reaches_an_eigenvalue_of_minus_one(rule, form):
    mixer, x = shaken(small(mixer=rule, form=form, step="printed")), draw(1, 2, 20, 8)
    assert close(mixer(Tensor(x))[0].data, [matrix_by_hand(mixer, sequence, PRINTED) for sequence in x])
    gates = Tensor(np.log(np.array([1.0, 0.5]))), Tensor(np.ones(2))
    (log_a, b, _), (_, exact, _) = (RULES[rule](*gates, STEPS[step]) for step in ("printed", "proximal"))
    along = np.exp(log_a.data) - b.data
    assert np.all(along > -1) and abs(along[0] - (-1 if rule == "dgd-l2" else 0)) < 1e-9
    assert np.all(np.exp(log_a.data) - exact.data > -1)  # the exact step never gets there


@pytest.mark.parametrize("features", PHI)
def test_features_are_of_keys_and_queries_before_their_length(features):
    mixer, x = shaken(small(mixer="retention", features=features)), draw(1, 2, 9, 8)
    assert close(mixer(Tensor(x))[0].data, [matrix_by_hand(mixer, sequence, phi=features) for sequence in x])


@pytest.mark.parametrize("window", [1, 3])
def test_omega_learns_from_the_last_pairs_at_every_token(window):
    mixer, x = shaken(small(mixer="omega", omega_window=window)), draw(1, 2, 11, 8)
    whole, _ = mixer(Tensor(x))
    assert close(whole.data, [matrix_by_hand(mixer, sequence, omega_window=window) for sequence in x])
    state, parts = None, []
    for a, b in ((0, 1), (1, 4), (4, 11)):
        y, state = mixer(Tensor(x[:, a:b]), state)
        parts.append(y.data)
    assert close(np.concatenate(parts, 1), whole.data)


def test_ojas_rule_is_the_delta_rule_of_the_transpose():
    """[A 66–67]: S ← S + η v(k − Sᵀv)ᵀ is Sᵀ ← Sᵀ(I − η v vᵀ) + η k vᵀ: key and value have changed places."""
    S, k, v, eta = draw(0, 4, 5), draw(1, 5), unit(draw(2, 4)), 0.7
    delta_rule_of_the_transpose = S.T @ (np.eye(4) - eta * np.outer(v, v)) + eta * np.outer(k, v)
    assert close((S + eta * np.outer(v, k - S.T @ v)).T, delta_rule_of_the_transpose)
    inputs = [draw(i, 1, 1, 9, n) for i, n in enumerate((5, 5, 4))]
    gates = [np.zeros((1, 1, 9)), *(draw(5, 1, 1, 9) ** 2 % 1 for _ in range(2))]
    check_grad(lambda *xs: oja(*xs, chunk=4), *inputs, *gates, draw(3, 1, 1, 4, 5), order=1)


# --- momentum ------------------------------------------------------------------------------------------------


def momentum_inputs(T: int, lead=(2, 3), d_k: int = 5, d_v: int = 4) -> list[np.ndarray]:
    q, k, v, log_a, b, c, S = rule_inputs(T, lead, d_k, d_v)
    return [q, k, v, draw(31, *v.shape), log_a, b, c, -(draw(32, *log_a.shape) ** 2), S, draw(33, *S.shape)]


@pytest.mark.parametrize("T", [0, 1, 7, 64, 65, 130])
def test_momentum_in_chunks_is_momentum_token_by_token(T):
    inputs = [Tensor(x, requires_grad=True) for x in momentum_inputs(T)]
    S, N = (x.data[0, 0] for x in inputs[8:])
    for t in range(T):
        k, v, once, a, b, c, beta = (x.data[0, 0, t] for x in inputs[1:8])
        N = np.exp(beta) * N + c * np.outer(v, k)
        S = S @ (np.exp(a) * np.eye(5) - b * np.outer(k, k)) + np.outer(once, k) + N
    found = {form: momentum_rule(*inputs, form=form) for form in ("recurrent", "chunked")}
    assert close(found["recurrent"][1].data[0, 0], S) and close(found["recurrent"][2].data[0, 0], N)
    bars = [Tensor(draw(50 + i, *z.shape)) for i, z in enumerate(found["chunked"])]
    for a, b in zip(*([z.data for z in outs] + [g.data for g in grad(outs, inputs, bars)] for outs in found.values()),
                    strict=True):  # fmt: skip
        assert close(a, b)


def test_momentum_with_a_retention_of_exactly_nothing_is_the_definition():
    inputs = momentum_inputs(70)
    for gate in (4, 7):
        inputs[gate][..., [0, 5, 66, 69]] = -np.inf
    found = {}
    for form in ("recurrent", "chunked"):
        leaves = [Tensor(x, requires_grad=True) for x in inputs]
        out = momentum_rule(*leaves, form=form)
        found[form] = [z.data for z in out] + [g.data for g in grad(list(out), leaves, [Tensor(z.data) for z in out])]
    for a, b in zip(*found.values(), strict=True):
        assert np.all(np.isfinite(a)) and close(a, b, 1e-8)


def test_derivatives_of_momentum_agree_with_finite_differences():
    check_grad(lambda *xs: momentum_rule(*xs), *momentum_inputs(3, (1,), 2, 2), order=2)


def test_without_momentum_the_rule_is_the_delta_rule():
    q, k, v, once, log_a, b, c, _, S, N = map(Tensor, momentum_inputs(70))
    never = Tensor(np.full(log_a.shape, -1e3))  # β = 0
    o, S_T, N_T = momentum_rule(q, k, v, once * 0, log_a, b, c, never, S, N)
    expected = delta_rule(q, k, v, log_a, b, c, S)
    assert close(o.data, expected[0].data) and close(S_T.data, expected[1].data)
    last = c[..., -1, None, None] * v[..., -1, :, None] @ k[..., -1, None, :]
    assert close(N_T.data, last.data)
    assert momentum_rule(None, k, v, once, log_a, b, c, never, S, N)[0] is None


def test_half_lives_spread_geometrically_from_16_to_4096_tokens():
    for heads in (2, 3, 9):
        lives = np.log(0.5) / np.log(logistic(half_lives(heads).astype(np.float64)))
        assert np.allclose(lives, np.geomspace(16, 4096, heads), rtol=2e-3)
    assert half_lives(1).shape == (1,)


# --- self-modifying Titans [A 83–93], in loops --------------------------------------------------------------


def answer(layers: list | None, z: np.ndarray, skip) -> np.ndarray:
    """M(z): z + W₁σ(W₂z), or W z. `skip` stands for z: r·z in a scalar memory, 0 in a matrix one."""
    if layers is None:
        return skip
    if len(layers) == 1:
        return skip + layers[0] @ z
    a = layers[0] @ z
    return skip + layers[1] @ (a * logistic(a))


def layer_errors(layers: list, k: np.ndarray, error: np.ndarray) -> list[tuple]:
    """(input z, output error δ) of each layer, for the error of M(k): ∂L/∂W = δ zᵀ."""
    if len(layers) == 1:
        return [(k, error)]
    a = layers[0] @ k
    s = logistic(a)
    return [(k, (layers[1].T @ error) * (s + a * s * (1 - s))), (a * s, error)]


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("objective", ["l2", "dot"])
def test_the_errors_used_here_give_the_gradients_of_the_objective(objective, hidden):
    layers = [draw(1, hidden, 4), draw(2, 4, hidden)] if hidden else [draw(1, 4, 4)]
    k, target = draw(3, 4), draw(4, 4)

    def loss() -> float:
        made = answer(layers, k, k)
        return np.sum((made - target) ** 2) / 2 if objective == "l2" else -made @ target

    error = answer(layers, k, k) - target if objective == "l2" else -target
    for W, (z, delta) in zip(layers, layer_errors(layers, k, error), strict=True):
        for at in np.ndindex(W.shape):
            W[at] += 1e-5
            above = loss()
            W[at] -= 2e-5
            assert (above - loss()) / 2e-5 == pytest.approx(delta[at[0]] * z[at[1]], abs=1e-8)
            W[at] += 1e-5


def titans_by_hand(mixer, x: np.ndarray) -> tuple[np.ndarray, dict]:
    """One sequence x (T,D), one head, one token at a time, on whole weights W, not on their drift.

    W ← W(αI − η′zzᵀ) − η′δzᵀ   [ + (1 − α)M₀ where retention pulls to the initial state M₀ ]
    """
    config, P = mixer.config, {name: p.data for name, p in mixer.named_parameters()}
    x = convolved(P, x)
    d, reads, ends = x.shape[1] // mixer.heads, np.full(x.shape, np.nan), {}
    depth = 1 if config.memory == "matrix" else 2

    for h in range(mixer.heads):
        M0 = {name: [P[f"initial.{name}.{i}"][h] for i in range(depth)] for name in config.adaptive}
        W, start = {name: list(layers) for name, layers in M0.items()}, {}
        N = {name: [np.zeros_like(layer) for layer in layers] for name, layers in M0.items()}

        def M(name, layers, z, h=h):
            if name in ("eta", "alpha", "beta"):
                return answer(layers, z, P[f"readout.{name}"][h] @ z)
            return answer(layers, z, 0 if depth == 1 and layers is not None else z)

        for t in range(len(x)):
            for name in config.adaptive:
                if t % (config.memory_chunk if name == "memory" else config.projection_chunk) == 0:
                    start[name] = list(W[name])
            rows = slice(h * d, (h + 1) * d)
            fed = {name: P[f"projection.{name}.weight"][rows] @ x[t] for name in ("q", "k", "v", "gate")}
            q, k, v = (M(name, start.get(name), fed[name]) for name in "qkv")
            q, k, v = unit(q), unit(k), rms(v)
            eta, alpha = (
                logistic(M(name, start.get(name), fed["gate"])[0] + P[f"bias.{name}"][h])
                for name in ("eta", "alpha")
            )
            eta *= config.eta_max
            beta = 0.0
            if config.momentum:
                beta = logistic(M("beta", None, fed["gate"])[0] + P["bias.beta"][h])
            reads[t, rows] = rms(M("memory", W["memory"] if config.reads == "exact" else start["memory"], q))

            for name in config.adaptive:
                layers = start[name]
                target = M(name, layers, v)
                target = np.tanh(target) if name in ("eta", "alpha") else rms(target)
                if config.targets == "value" and name not in ("eta", "alpha"):
                    target = v
                error = M(name, layers, k) - target if config.objective == "l2" else -target
                if config.objective == "l2":
                    error = np.sign(error) * np.abs(error) ** (config.error_power - 1)
                for i, (z, delta) in enumerate(layer_errors(layers, k, error)):
                    longest = len(delta) if name == "memory" else 1
                    delta = delta / max(1, np.sqrt(delta @ delta / longest))
                    step = eta / (1 + eta * z @ z)
                    if config.step == "printed":
                        step = min(eta, (1 + alpha) / ((2 if config.objective == "l2" else 1) * z @ z))
                    N[name][i] = beta * N[name][i] - step * np.outer(delta, z)
                    kept = W[name][i] @ (alpha * np.eye(len(z)) - step * np.outer(z, z))
                    pull = (1 - alpha) * M0[name][i] if config.retention == "initial" else 0
                    W[name][i] = kept + N[name][i] + pull
        for name in config.adaptive:
            for i in range(depth):
                ends[name, i, h] = W[name][i]
    return reads @ P["output.weight"].T, ends


def weights_of(mixer, state, sequence: int) -> dict:
    """(memory, layer, head) → the weights a sequence has arrived at."""
    pull = mixer.config.retention == "initial"
    return {
        (name, i, h): S.data[sequence, h] + (mixer.initial[name][i].data[h] if pull else 0)
        for name, layers in state.drift.items()
        for i, S in enumerate(layers)
        for h in range(mixer.heads)
    }


def assert_is_the_papers(config: Config, T: int) -> None:
    mixer, x = shaken(config), draw(1, 2, T, config.width)
    y, state = mixer(Tensor(x))
    for n in range(2):
        expected, ends = titans_by_hand(mixer, x[n])
        assert close(y.data[n], expected, 1e-8)
        found = weights_of(mixer, state, n)
        assert set(found) == set(ends) and all(close(found[key], ends[key], 1e-8) for key in ends)


FIVE = ("k", "v", "eta", "alpha", "memory")
SETTINGS = {"objective": ("l2", "dot"), "memory": ("mlp", "matrix"), "retention": ("initial", "zero"),
            "reads": ("exact", "chunk"), "targets": ("self", "value")}  # fmt: skip
EVERY = [dict(zip(SETTINGS, choice, strict=True)) for choice in product(*SETTINGS.values())]
CHUNKS = [(4, 4), (1, 1), (8, 2), (2, 8), (6, 4), (5, 7), (64, 64)]  # of the main memory, of the projections
ADAPTIVE = [FIVE, (*FIVE, "q"), ("memory",), ("memory", "alpha"), ("eta", "v", "memory")]


@pytest.mark.parametrize("n", range(len(EVERY)), ids=["-".join(setting.values()) for setting in EVERY])
def test_titans_are_the_papers_for_every_setting(n):
    for form, adaptive, (memory, projection) in (
        ("fused", ADAPTIVE[n % 5], CHUNKS[n % 7]),
        (("recurrent", "chunked")[n % 2], ADAPTIVE[n % 2], CHUNKS[(n + 3) % 7]),
    ):
        chunks = {"memory_chunk": memory, "projection_chunk": projection, "memory_hidden": 3 * (n % 2)}
        assert_is_the_papers(small(**EVERY[n], form=form, adaptive=adaptive, **chunks), T=13)


STEPPED: list[dict[str, Any]] = [
    {"momentum": True}, {"step": "printed"}, {"momentum": True, "step": "printed", "eta_max": 1.0},
    {"error_power": 3.0}, {"error_power": 4.0, "momentum": True}]  # fmt: skip


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
def test_an_error_of_nothing_has_a_derivative_of_nothing_whatever_its_power(power):
    mixer = small(error_power=power, objective="l2", form="chunked")
    x = Tensor(np.zeros((1, 6, 8)), requires_grad=True)  # every value, and so every error of the main memory, is 0
    made = make_mixer(np.random.default_rng(0), mixer).astype(np.float64)
    assert all(np.all(np.isfinite(g.data)) for g in grad(total(made(x)[0]), [x, *made.parameters()]))


def own_kernels(setting: dict[str, Any]) -> list[Any]:
    """The mark of a setting with momentum where that is compiled: these kernels are its own."""
    return [pytest.mark.slow] if setting.get("momentum") and setting.get("form") == "fused" else []


@pytest.mark.parametrize(("setting", "form"), [
    pytest.param(setting, form, marks=own_kernels({**setting, "form": form}), id="-".join([*setting, form]))
    for setting in STEPPED for form in FORMS])
def test_momentum_the_printed_step_and_other_errors_are_their_definitions(setting, form):
    for n, (memory, projection) in enumerate(CHUNKS[:4]):
        chunks = {"memory_chunk": memory, "projection_chunk": projection}
        assert_is_the_papers(small(**{**EVERY[7 * n + 3], "objective": "l2"}, **setting, form=form,
                                   adaptive=ADAPTIVE[n % 2], **chunks), T=11)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 7, 63, 64, 65])
def test_titans_are_the_papers_at_lengths_around_a_chunk(T, form):
    assert_is_the_papers(small(memory_chunk=64, projection_chunk=32, form=form), T)


@pytest.mark.parametrize("form", FAST)
def test_plain_titans_are_one_memory_fed_by_fixed_projections(form):
    assert make_mixer(None, small(mixer="plain-titans")).config.adaptive == ("memory",)
    assert_is_the_papers(small(mixer="plain-titans", form=form), T=9)


def test_chunks_of_one_token_read_alike_at_their_start_and_exactly():
    x = Tensor(draw(1, 2, 9, 8))
    exact, chunk = (shaken(small(memory_chunk=1, reads=reads))(x)[0].data for reads in ("exact", "chunk"))
    assert close(exact, chunk)


def test_exact_reads_and_chunk_start_reads_differ_inside_a_chunk():
    x = Tensor(draw(1, 1, 8, 8))
    exact, chunk = (shaken(small(reads=reads))(x)[0].data for reads in ("exact", "chunk"))
    assert [t for t in range(8) if close(exact[:, t], chunk[:, t])] == [0, 4]


def test_a_matrix_memory_of_given_values_is_delta_gradient_descent():
    """Titans' matrix case with the dot objective and retention to zero is the rule "dgd" [A 92]."""
    titans = shaken(small(adaptive=("memory",), memory="matrix", objective="dot", targets="value",
                          retention="zero", eta_max=1.0))  # fmt: skip
    dgd, W = shaken(small(mixer="dgd"), seed=1), titans.state_dict()
    for name in set(W) & set(dgd.state_dict()):  # convolution, feeds, biases and output go by the same names
        dgd.state_dict()[name][...] = W[name]
    dgd.initial.data[...] = W["initial.memory.0"]
    for name in ("eta", "alpha"):
        gate = W["projection.gate.weight"].reshape(2, 4, 8)
        dgd.gate[name].weight.data[...] = np.einsum("hoi,hij->hj", W[f"readout.{name}"], gate)
    x = Tensor(draw(3, 2, 11, 8))
    assert close(titans(x)[0].data, dgd(x)[0].data)


def test_retention_pulls_to_the_initial_state_or_literally_to_zero():
    x = Tensor(draw(1, 1, 40, 8))
    for retention in ("initial", "zero"):
        mixer = shaken(small(retention=retention, targets="value"))
        for name in ("eta", "alpha"):
            mixer.readout[name].data *= 0
            for layer in mixer.initial[name]:
                layer.data *= 0
        mixer.bias["eta"].data[...], mixer.bias["alpha"].data[...] = -50, 0  # write nothing, α = ½
        _, state = mixer(x)
        kept = weights_of(mixer, state, 0)["memory", 1, 0]
        assert close(kept, mixer.initial["memory"][1].data[0] * (1 if retention == "initial" else 0.5**40))


# --- gradients through the whole mixer ----------------------------------------------------------------------


def assert_gradients(loss, parameters: dict, tolerance: float = 1e-6) -> None:
    """∂loss/∂p against central differences, for each p along one random direction of all its elements."""
    exact = grad(loss(), list(parameters.values()))
    for n, ((name, p), g) in enumerate(zip(parameters.items(), exact, strict=True)):
        middle, direction, sides = p.data, draw(n, *p.shape), []
        for eps in (1e-5, -1e-5):
            p.data = middle + eps * direction
            with no_grad():
                sides.append(loss().item())
        p.data = middle
        numeric, found = (sides[0] - sides[1]) / 2e-5, float(np.sum(g.data * direction))
        assert abs(numeric - found) < tolerance * (1 + abs(numeric)), (name, found, numeric)
        assert np.any(g.data), name


GRADIENTS: list[dict[str, Any]] = [
    {},
    {"form": "fused"},
    {"objective": "dot", "memory": "matrix"},
    {"retention": "zero", "reads": "chunk"},
    {"retention": "zero", "momentum": True, "form": "fused"},
    {"reads": "chunk", "memory_chunk": 6, "projection_chunk": 4, "form": "fused"},
    {"targets": "value", "memory_chunk": 6, "memory_hidden": 3},
    {"adaptive": (*FIVE, "q"), "memory_chunk": 2, "form": "fused"},
    *({**setting, "form": form} for setting in STEPPED for form in FAST),
    {"mixer": "plain-titans"},
    {"mixer": "omega"},
    *({"mixer": rule, "form": form} for rule in RULES for form in FAST),
]


@pytest.mark.parametrize("setting", [
    pytest.param(setting, marks=own_kernels(setting), id="-".join(map(str, setting.values())) or "default")
    for setting in GRADIENTS])
def test_gradients_of_the_whole_mixer_pass_through_every_write(setting):
    mixer, x = shaken(small(**setting)), Tensor(draw(1, 1, 10, 8), requires_grad=True)
    assert_gradients(
        lambda: total(mixer(x)[0] * draw(2, 1, 10, 8)), {**dict(mixer.named_parameters()), "x": x}
    )


@pytest.mark.parametrize("form", FAST)
def test_second_derivatives_pass_through_the_writes_too(form):
    mixer = shaken(small(memory_chunk=2, projection_chunk=2, form=form))
    names = ["initial.memory.0", "initial.k.1", "projection.v.weight", "bias.alpha"]
    parameters = [p for name, p in mixer.named_parameters() if name in names]

    def squared():
        y, _ = mixer(Tensor(draw(1, 1, 5, 8)))
        first = grad(total(y * draw(2, 1, 5, 8)), parameters, create_graph=True)
        return total(concatenate([(g * g).reshape(-1) for g in first]))

    exact = grad(squared(), parameters)
    for p, g in zip(parameters, exact, strict=True):
        middle, direction = p.data, draw(7, *p.shape)
        sides = []
        for eps in (1e-5, -1e-5):
            p.data = middle + eps * direction
            sides.append(squared().item())
        p.data = middle
        numeric, found = (sides[0] - sides[1]) / 2e-5, float(np.sum(g.data * direction))
        assert abs(numeric - found) < 1e-5 * (1 + abs(numeric))


@pytest.mark.parametrize("reads", ["exact", "chunk"])
@pytest.mark.parametrize("form", FAST)
def test_without_gradients_through_writes_they_are_constants(form, reads):
    """Then each token's output is read, differentiably, from a state that merely is as it is."""
    x = draw(1, 2, 10, 8)
    through, still = (shaken(small(through_writes=flag, form=form, reads=reads)) for flag in (True, False))
    assert close(through(Tensor(x))[0].data, still(Tensor(x))[0].data)
    flowing, found = (grad(mixer(Tensor(x))[0].sum(), mixer.parameters()) for mixer in (through, still))

    state, pieces = None, 0
    for t in range(10):
        y, state = through(Tensor(x[:, t : t + 1]), state)
        state = tree_map(Tensor.detach, state)
        pieces = pieces + y.sum()
    constant = grad(pieces, through.parameters())
    for (name, _), f, g, c in zip(through.named_parameters(), flowing, found, constant, strict=True):
        assert close(g.data, c.data), name
        assert not name.startswith("initial") or not close(f.data, c.data), name


# --- the kernel of a chunk against its definition -----------------------------------------------------------


def outcome(mixer, x: np.ndarray, lengths) -> list[np.ndarray]:
    """What is read, the last drifts, and the cotangents of x and every parameter from all of these."""
    whole, t, found = Tensor(x, requires_grad=True), 0, []
    state: Any = None
    for n in lengths:
        y, state = mixer(whole[:, t : t + n], state)
        t += n
        found.append(y)
    for layers in [*state.drift.values(), *state.momentum.values()]:
        found += layers
    bars = [Tensor(draw(90 + i, *y.shape).astype(x.dtype)) for i, y in enumerate(found)]
    return [z.data for z in found] + [g.data for g in grad(found, [whole, *mixer.parameters()], bars)]


def assert_fused_is_chunked(x: np.ndarray, lengths, tolerance: float = 1e-10, **setting) -> None:
    fused, chunked = (shaken(small(form=form, **setting)).astype(x.dtype) for form in ("fused", "chunked"))
    for a, b in zip(outcome(fused, x, lengths), outcome(chunked, x, lengths), strict=True):
        assert a.dtype == b.dtype and np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


@pytest.mark.parametrize("objective, targets", [*product(("l2", "dot"), ("self", "value"))])
@pytest.mark.parametrize("T", [1, 7, 63, 64, 65])
@MOMENTUM
def test_the_kernel_of_a_chunk_is_its_definition_forwards_and_backwards(T, objective, targets, momentum):
    setting = {"momentum": True, "step": "printed", "eta_max": 1.5} if momentum else {}
    assert_fused_is_chunked(draw(1, 2, T, 8), [T], memory_chunk=64, projection_chunk=64,
                            objective=objective, targets=targets, **setting)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{}, {"step": "printed", "eta_max": 1.5}], ids=["proximal", "printed"])
@pytest.mark.parametrize("lengths", [[1] * 20, [20], [3, 1, 16]], ids=str)
def test_momentum_travels_with_the_state_however_a_sequence_is_split(lengths, setting):
    fused, recurrent = (shaken(small(momentum=True, memory_chunk=8, projection_chunk=4, form=form, **setting))
                        for form in ("fused", "recurrent"))
    found, expected = reading(fused, draw(1, 2, 20, 8), lengths), reading(recurrent, draw(1, 2, 20, 8), [20])
    assert close(found[0], expected[0])
    assert all(close(a, b) for a, b in zip(leaves(found[1]), leaves(expected[1]), strict=True))


@pytest.mark.parametrize("step", STEPS)
@MOMENTUM
@settings(max_examples=12)
@given(names=st.sets(st.sampled_from([*FIVE[:-1], "q"])), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
       chunks=st.sampled_from(CHUNKS), hidden=st.integers(0, 9), eta_max=st.sampled_from([0.9, 4.0]),
       objective=st.sampled_from(SETTINGS["objective"]), targets=st.sampled_from(SETTINGS["targets"]))  # fmt: skip
def test_the_kernel_is_right_for_any_memories_split_and_hidden_size(
        momentum, step, names, lengths, chunks, hidden, eta_max, objective, targets):
    x = draw(1, 2, sum(lengths), 8)
    assert_fused_is_chunked(x, lengths, adaptive=(*sorted(names), "memory"), memory_chunk=chunks[0],
                            projection_chunk=chunks[1], memory_hidden=hidden, eta_max=eta_max, momentum=momentum,
                            step=step, objective=objective, targets=targets)  # fmt: skip


@MOMENTUM
def test_the_kernel_is_right_in_single_precision_and_at_the_width_of_its_registers(momentum):
    x = draw(1, 1, 70, 64).astype(np.float32)
    for parts in ([70], [1] * 5 + [65]):
        assert_fused_is_chunked(x, parts, 1e-3, width=64, heads=1, memory_chunk=64, projection_chunk=64,
                                momentum=momentum)  # fmt: skip


def test_a_chunk_longer_than_the_kernels_is_cut_and_reads_the_same():
    mixer, x = shaken(small(memory_chunk=200, projection_chunk=150)), draw(1, 1, 160, 8)
    recurrent = shaken(small(memory_chunk=200, projection_chunk=150, form="recurrent"))
    assert close(reading(mixer, x, [160])[0], reading(recurrent, x, [160])[0])


@given(T=st.integers(1, 200), position=st.integers(0, 99), chunks=st.tuples(*[st.integers(1, 70)] * 2),
       training=st.booleans())
def test_spans_end_with_every_chunk_and_know_what_errors_see(T, position, chunks, training):
    mixer = make_mixer(None, Config(width=4, heads=1, layers=1, memory_chunk=chunks[0], projection_chunk=chunks[1]))
    sizes = {"k": chunks[1], "memory": chunks[0]}
    begun = {name: position - position % C for name, C in sizes.items()}  # where the present chunk began
    end = position + T
    while position < end:
        with nullcontext() if training else no_grad():
            spans = mixer.cut(end - position, position, [name for name in sizes if begun[name] < position])
        assert training or len(spans) <= FEW
        starts = [position]
        for span in spans:
            n, seen = span.tokens, span.seen
            assert 1 <= n <= LONGEST and set(seen) == set(mixer.config.adaptive)
            for name, C in sizes.items():
                assert (position + n - 1) // C == position // C  # all its tokens lie in one chunk
                since = begun[name] if seen[name] < 0 else starts[seen[name]]
                assert since == position - position % C
            position += n
            starts.append(position)
        begun = {name: position - position % C for name, C in sizes.items()}
        assert all(at <= starts[0] or at == position for at in begun.values())  # none lies between
    assert position == end


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch():
    mixer = make_mixer(np.random.default_rng(0), Config(width=128, heads=2, layers=1, form="fused"))
    asked = {name: draw(i, 3, 2, 64, 64).astype(np.float32) for i, name in enumerate(mixer.projection)}

    def run(n) -> list[np.ndarray]:
        drift = mixer.start(Tensor(np.zeros((len(asked["q"][n]), 1, 128), np.float32))).drift
        inputs = {name: Tensor(z[n], requires_grad=True) for name, z in asked.items()}
        o, after, _ = mixer.read(inputs, [Span(64, dict.fromkeys(drift, 0))], {}, drift, {})
        outputs = [o, *(S for layers in after.values() for S in layers)]
        return [z.data for z in outputs] + [g.data for g in grad(outputs, [*inputs.values()], outputs)]

    together = run(slice(0, 3))
    for n in range(3):
        assert all(np.array_equal(a[n], b[0]) for a, b in zip(together, run(slice(n, n + 1)), strict=True))


@pytest.mark.parametrize("name", ["titans", *RULES])
def test_a_state_of_another_batch_is_refused_by_its_numbers(name):
    mixer = shaken(small(mixer=name))
    _, state = mixer(Tensor(draw(1, 3, 4, 8)))
    with pytest.raises(ValueError, match="read 3 sequences and the input has 2"):
        mixer(Tensor(draw(1, 2, 4, 8)), state)


@pytest.mark.parametrize("choices", [
    *({"mixer": mixer, "form": form} for mixer in MIXERS for form in ("fused", "chunked")),
    {"mixer": "attention", "window": 4}], ids=str)
def test_a_state_keeps_no_segment_alive(choices):
    with no_grad():
        _, state = make_mixer(np.random.default_rng(0), small(**choices))(Tensor(draw(1, 2, 120, 8).astype(np.float32)))
    arrays = [x.data for x in tree_leaves(state)]
    held = {id(x): x.nbytes for x in (x if x.base is None else x.base for x in arrays)}
    assert sum(held.values()) <= 1.2 * sum(x.nbytes for x in arrays) + 1000


def test_the_trace_shows_every_rule_and_when_each_memory_moves(capsys):
    rules.main()
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(rule) for line in lines) for rule in RULES)
    titans.main()
    moved = [line.split("   ")[-1] for line in capsys.readouterr().out.splitlines()[-8:]]
    assert [("memory" in m, "alpha" in m) for m in moved] == [(t % 4 == 0, t % 2 == 0) for t in range(1, 9)]


# --- state --------------------------------------------------------------------------------------------------


def reading(mixer, x: np.ndarray, lengths) -> tuple[np.ndarray, Any]:
    state, parts, t = None, [], 0
    with no_grad():
        for n in lengths:
            y, state = mixer(Tensor(x[:, t : t + n]), state)
            parts.append(y.data)
            t += n
    return np.concatenate(parts, axis=1), state


def leaves(state) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    tree_map(lambda t: found.append(t.data), state)
    return found


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("form", FAST)
def test_any_split_of_a_sequence_reads_the_same_and_leaves_the_same_state(name, form):
    mixer = shaken(small(mixer=name, form=form, memory_chunk=6, projection_chunk=4))

    @settings(max_examples=6)
    @given(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    def holds(lengths):
        x = draw(1, 2, sum(lengths), 8)
        whole, state = reading(mixer, x, [sum(lengths)])
        parts, split = reading(mixer, x, lengths)
        assert close(whole, parts) and all(
            close(a, b) for a, b in zip(leaves(state), leaves(split), strict=True)
        )
        assert mixer.position(state) == mixer.position(split)

    holds()
    x = draw(1, 2, 15, 8)
    assert close(reading(mixer, x, [15])[0], reading(mixer, x, [1] * 15)[0])


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("form", FAST)
def test_every_sequence_of_a_batch_has_its_own_state(name, form):
    mixer, x = shaken(small(mixer=name, form=form)), draw(1, 3, 11, 8)
    together, state = reading(mixer, x, [4, 7])
    for n in range(3):
        alone, own = reading(mixer, x[n : n + 1], [4, 7])
        assert close(together[n], alone[0])
        assert all(close(a[n], b[0]) for a, b in zip(leaves(state), leaves(own), strict=True))


@pytest.mark.parametrize("name, reads", [*product(MEMORIES, ["exact"]), ("titans", "chunk")])
@pytest.mark.parametrize("form", FORMS)
def test_no_bit_of_an_output_depends_on_a_later_token(name, reads, form):
    mixer, x = shaken(small(mixer=name, form=form, reads=reads, memory_chunk=8)), draw(1, 2, 11, 8)
    y, _ = reading(mixer, x, [11])
    for t in range(11):
        other = x.copy()
        other[0, t] += 1e3
        z, _ = reading(mixer, other, [11])
        assert np.array_equal(z[0, :t], y[0, :t]) and np.array_equal(z[1], y[1])
        assert not np.array_equal(z[0, t], y[0, t])


@pytest.mark.parametrize("form", FORMS)
def test_no_bit_depends_on_a_later_token_even_where_keys_are_long(form):
    """Long inputs make a chunk's triangular system badly scaled: no row may trade places with a later one."""
    mixer, x = shaken(small(form=form, eta_max=4.0, memory_chunk=16, projection_chunk=16)), draw(1, 1, 16, 8)
    for layers in mixer.initial.values():
        for layer in layers:
            layer.data *= 5
    y, _ = reading(mixer, x, [16])
    for t in range(1, 16):
        for change in (1e-3, 1e3):
            other = x.copy()
            other[0, t] *= change
            assert np.array_equal(reading(mixer, other, [16])[0][0, :t], y[0, :t])


@pytest.mark.parametrize("chunks", [(4, 4), (1, 3), (8, 2), (6, 4)])
def test_every_memory_is_written_exactly_as_often_as_its_chunk_size_says(chunks):
    config = small(memory_chunk=chunks[0], projection_chunk=chunks[1], adaptive=(*FIVE, "q"))
    mixer, x, state = shaken(config), draw(1, 1, 24, 8), None
    moved: dict[str, list[int]] = {name: [] for name in config.adaptive}
    before = mixer.start(Tensor(x[:, :1])).drift
    for t in range(24):
        _, state = mixer(Tensor(x[:, t : t + 1]), state)
        seen = {**state.drift, **state.chunk_start}
        for name, layers in seen.items():
            changed = [not np.array_equal(a.data, b.data) for a, b in zip(layers, before[name], strict=True)]
            assert len(set(changed)) == 1
            if changed[0]:
                moved[name].append(t + 1)
        before = seen
    for name, steps in moved.items():
        period = chunks[0] if name == "memory" else chunks[1]
        assert steps == list(range(period, 25, period))


# --- it does not blow up ------------------------------------------------------------------------------------


def sensitivity(mixer, T: int = 1024) -> float:
    """The length of ∂⟨c, y_T⟩/∂x_1 for a random unit vector c."""
    x = Tensor(draw(3, 1, T, mixer.config.width).astype(np.float32), requires_grad=True)
    c = unit(draw(4, mixer.config.width)).astype(np.float32)
    (g,) = grad(total(mixer(x)[0][0, -1] * c), [x])
    return float(np.linalg.norm(g.data[0, 0]))


WIDE = Config(width=16, heads=2, layers=1)
SLOWLY = [pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 16, 32)]


@pytest.mark.parametrize("memory, objective", VARIETIES)
@pytest.mark.parametrize("chunk", [*SLOWLY, 64, 128])
def test_the_gradient_across_1024_tokens_neither_vanishes_nor_explodes(chunk, memory, objective):
    config = replace(WIDE, objective=objective, memory=memory, memory_chunk=chunk, projection_chunk=chunk)
    assert 1e-6 < sensitivity(make_mixer(np.random.default_rng(0), config)) < 1e1


@pytest.mark.parametrize("chunk", [4, 64])
def test_the_gradient_stays_bounded_where_memories_write_strongly_from_the_start(chunk):
    config = Config(width=64, heads=2, layers=1, eta_max=0.5, eta_start=0.13, memory_chunk=chunk,
                    projection_chunk=chunk)
    assert sensitivity(make_mixer(np.random.default_rng(0), config)) < 1


def largest_weight(config: Config, tokens: int, gate: float = 0.0) -> float:
    """The largest number in the state while reading normal noise, inner learning rates pushed by `gate`."""
    mixer: Any = make_mixer(np.random.default_rng(0), config)
    rng = np.random.default_rng(1)
    state, largest = None, 0.0
    if gate:
        mixer.bias["eta"].data += gate
    with no_grad():
        while tokens > 0:
            x = rng.standard_normal((1, min(tokens, 2048), config.width), dtype=np.float32)
            y, state = mixer(Tensor(x), state)
            tokens -= 2048
            assert np.all(np.isfinite(y.data))
            largest = max([largest, *(float(np.abs(a).max()) for a in leaves(state))])
    return largest


@pytest.mark.parametrize("memory, objective", VARIETIES)
def test_the_state_stays_bounded_at_a_large_inner_learning_rate(memory, objective):
    config = replace(WIDE, eta_max=4.0, objective=objective, memory=memory)
    assert largest_weight(config, 2048, gate=4.0) < 20


@pytest.mark.slow
@pytest.mark.parametrize("eta_max, gate", [(0.1, 0.0), (0.5, 4.0), (4.0, 4.0)])
@pytest.mark.parametrize("memory, objective", VARIETIES)
def test_the_state_is_bounded_after_100000_tokens(memory, objective, eta_max, gate):
    config = replace(WIDE, eta_max=eta_max, memory=memory, objective=objective)
    assert largest_weight(config, 100_000, gate) < 20


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("memory, objective", VARIETIES)
def test_the_state_is_bounded_in_short_chunks(memory, objective, chunk):
    config = replace(WIDE, eta_max=4.0, memory=memory, objective=objective, memory_chunk=chunk)
    config = replace(config, projection_chunk=chunk)
    assert largest_weight(config, 4096, gate=4.0) < 20


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_matrix_memories_are_bounded_after_100000_tokens_or_grow_no_faster_than_they_come(rule):
    bound = {"linear": 100_000, "retention": 2 * 4096}.get(rule, 50)
    assert largest_weight(replace(WIDE, mixer=rule), 100_000) < bound
