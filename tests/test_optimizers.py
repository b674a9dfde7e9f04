"""Every rung of the ladder against its definition, limits, symmetries, clock and saved self."""

import importlib.util
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose as close
from numpy.testing import assert_array_equal as same

import optimizers
from autograd import Tensor, tanh, tensor
from kernels import runtime
from optimizers import CUBIC, OPTIMIZERS, build, clip_grad_norm, implicit, low_rank, newton_schulz, schedule

spec = importlib.util.spec_from_file_location("ladder", Path(__file__).resolve().parent.parent / "docs" / "ladder.py")
assert spec and spec.loader
ladder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ladder)

READINGS = ("updates", "gradients")
every_rung = pytest.mark.parametrize("name", OPTIMIZERS)
few = settings(max_examples=20, deadline=None)


def rng(seed=0):
    return np.random.default_rng(seed)


def parameter(data, dtype=np.float64):
    return SimpleNamespace(data=np.array(data, dtype=dtype), grad=None, name="weight", tap=None)


def feed(optimizer, p, g, X=None):
    """One step of a single parameter on g, with inputs X if it listens; what was added."""
    before, p.grad = p.data.copy(), np.array(g)
    if X is not None and p.tap is not None:
        p.tap.append((X, None))
    optimizer.step()
    return p.data - before


def deltas(name, W, gradients, inputs=None, lr=0.1, **options):
    p = parameter(W)
    optimizer = build(name, [p], lr, **options)
    inputs = inputs or [None] * len(gradients)
    return np.array([feed(optimizer, p, g, X) for g, X in zip(gradients, inputs, strict=True)])


def draw(*shape, count=None, seed=0):
    g = rng(seed).standard_normal((count or 1, *shape))
    return g if count else g[0]


def minimise(f, shape):
    """Where a quadratic f is least, from its values alone: differences of step one are exact."""
    n = math.prod(shape)
    unit = np.eye(n).reshape(n, *shape)
    f0, f1 = f(np.zeros(shape)), np.array([f(e) for e in unit])
    hessian = np.array([[f(a + b) for b in unit] for a in unit]) - f1[:, None] - f1[None] + f0
    gradient = f1 - f0 - np.diag(hessian) / 2
    return -np.linalg.solve(hessian, gradient).reshape(shape)


def on_singular_values(g, f):
    U, s, V = np.linalg.svd(g, full_matrices=False)
    return U * f(s) @ V


def quintic(s, steps):
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def orthogonal(M, steps=5):
    return on_singular_values(M, lambda s: quintic(s / np.sqrt(np.sum(s**2)), steps))


# Two steps by hand. Each entry: options, and (W, g1, g2, X1, X2, lr) -> the two updates.


def hand_sgd(W, g1, g2, X1, X2, lr):
    return -lr * g1, -lr * g2


def hand_momentum(W, g1, g2, X1, X2, lr):
    return -lr * g1, -lr * (0.8 * g1 + g2)


def hand_adagrad(W, g1, g2, X1, X2, lr):
    return -lr * np.sign(g1), -lr * g2 / np.hypot(g1, g2)


def hand_adamw(W, g1, g2, X1, X2, lr):
    m, v = (0.8 * 0.2 * g1 + 0.2 * g2) / (1 - 0.8**2), (0.6 * 0.4 * g1**2 + 0.4 * g2**2) / (1 - 0.6**2)
    return -lr * np.sign(g1), -lr * m / np.sqrt(v)


def hand_preconditioned(W, g1, g2, X1, X2, lr):
    polar, root = (lambda g, f=f: on_singular_values(g, f) for f in (np.ones_like, np.sqrt))
    tall = W.shape[0] > W.shape[1]
    g1, g2 = (g.T if tall else g for g in (g1, g2))
    P1, P2 = (root(g) @ root(g).T for g in (g1, g2))  # (ggᵀ)^½
    rate = 0.3 / (1 - 0.7**2)
    first, second = polar(g1), np.linalg.solve((1 - rate) * P1 + rate * P2, g2)
    return (-lr * first.T, -lr * second.T) if tall else (-lr * first, -lr * second)


def hand_delta_momentum(W, g1, g2, X1, X2, lr):
    eye = np.eye(W.shape[1])
    m1 = lr * g1 @ np.linalg.inv(eye + 0.5 * g1.T @ g1)
    m2 = 0.8 * m1 - (0.5 * m1 @ g2.T @ g2 - lr * g2) @ np.linalg.inv(eye + 0.5 * g2.T @ g2)
    return -m1, -m2


def hand_deep_momentum(W, g1, g2, X1, X2, lr):
    out, n = W.shape
    row = np.sqrt(2 / n) * np.cos(np.pi / n * 0.5 * (np.arange(n) + 0.5))
    first = [row, -row]  # the two hidden units at the start
    W2 = np.array([[lr * max(unit @ g1[r], 0) for unit in first] for r in range(out)])

    def recall(units, g, r):  # what the hidden units add to row r
        return sum(W2[r, j] * (units[j] @ g[r] > 0) * units[j] for j in (0, 1))

    m1 = np.array([lr * g1[r] + recall(first, g1, r) for r in range(out)])
    moved = [
        first[j] + lr * sum(W2[r, j] * (first[j] @ g2[r] > 0) * g2[r] for r in range(out)) for j in (0, 1)
    ]
    W2 = np.array([[0.8 * W2[r, j] + lr * max(first[j] @ g2[r], 0) for j in (0, 1)] for r in range(out)])
    m2 = np.array([lr * (0.8 * g1[r] + g2[r]) + recall(moved, g2, r) for r in range(out)])
    return -m1, -m2


def hand_higher_order(W, g1, g2, X1, X2, lr):
    phi1, phi2 = (np.linalg.norm(g) * orthogonal(g, 2) for g in (g1, g2))
    return -lr * phi1, -lr * (0.8 * phi1 + phi2)


def hand_nonlinear(W, g1, g2, X1, X2, lr):
    return -lr * np.sign(g1), -lr * np.sign(0.8 * g1 + g2)


def hand_muon(W, g1, g2, X1, X2, lr):
    s = np.sqrt(max(1, W.shape[0] / W.shape[1]))
    m2 = 0.8 * 0.2 * g1 + 0.2 * g2
    return -lr * s * orthogonal(g1), -lr * s * orthogonal(0.2 * g2 + 0.8 * m2)


def hand_m3(W, g1, g2, X1, X2, lr):
    V = 0.4 * g1**2
    first = orthogonal(0.8 * g1) / np.sqrt(V)
    second = (orthogonal(0.8 * (g1 + g2)) + 0.5 * orthogonal(0.7 * g1)) / np.sqrt(V + 0.4 * g2**2)
    return -lr * first, -lr * second


def hand_dgd(W, g1, g2, X1, X2, lr):
    updates = []
    for g, X in ((g1, X1), (g2, X2)):
        S = X.T @ X / len(X)
        new = 0.9 * W - lr * (g + W @ S) @ np.linalg.inv(np.eye(W.shape[1]) + lr * S)
        updates.append(new - W)
        W = new
    return updates


def hand_multi_timescale(W, g1, g2, X1, X2, lr):
    n = W.shape[1]
    q = g1 @ np.cos(np.pi / n * 0.5 * (np.arange(n) + 0.5))
    d1 = np.outer(q, q @ g1) / (q @ q)
    rest = g1 - d1 + g2
    q = rest @ (g1.T @ q)
    d2 = np.outer(q, q @ rest) / (q @ q)
    fast, slow = (0.8 * 0.2 * d1 + 0.2 * d2) / (1 - 0.8**2), (0.9 * 0.1 * d1 + 0.1 * d2) / (1 - 0.9**2)
    v = (0.6 * 0.4 * d1**2 + 0.4 * d2**2) / (1 - 0.6**2)
    return -lr * 1.5 * np.sign(d1), -lr * (fast + 0.5 * slow) / np.sqrt(v)


M3_SUM = {"reading": "sum", "momentum": 0.8, "beta2": 0.4, "beta3": 0.7, "slow_period": 1, "eps": 0.0}
TWO_EMAS = {"fast_ema": 0.8, "slow_ema": 0.9, "slow_lr_scale": 0.5, "rank": 1, "beta2": 0.6, "eps": 0.0}
BY_HAND: dict = {
    "sgd": ({}, hand_sgd),
    "momentum": ({"momentum": 0.8}, hand_momentum),
    "adagrad": ({"eps": 0.0}, hand_adagrad),
    "adamw": ({"beta1": 0.8, "beta2": 0.6, "eps": 0.0}, hand_adamw),
    "preconditioned": ({"rate": 0.3}, hand_preconditioned),
    "delta_momentum": ({"momentum": 0.8, "decay": 0.5}, hand_delta_momentum),
    "deep_momentum": ({"momentum": 0.8, "hidden": 2}, hand_deep_momentum),
    "higher_order": ({"momentum": 0.8, "order": 2}, hand_higher_order),
    "nonlinear": ({"momentum": 0.8, "output": "sign"}, hand_nonlinear),
    "muon": ({"momentum": 0.8}, hand_muon),
    "m3": (M3_SUM, hand_m3),
    "dgd": ({"retention": 0.9}, hand_dgd),
    "multi_timescale": (TWO_EMAS, hand_multi_timescale),
}


@every_rung
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4, 4)])
def test_two_steps_have_their_closed_form(name, shape):
    options, hand = BY_HAND[name]
    W, (g1, g2) = draw(*shape), draw(*shape, count=2, seed=1)
    X1, X2 = draw(2, shape[1], seed=2), draw(7, shape[1], seed=3)
    got = deltas(name, W, [g1, g2], [X1, X2], lr=0.3, **options)
    close(got, hand(W, g1, g2, X1, X2, 0.3), rtol=2e-5, atol=1e-6)


def test_every_rung_is_in_every_table():
    for table in (BY_HAND, TURNS, SCALES):
        assert set(table) == set(OPTIMIZERS)


def test_delta_momentum_with_preconditioner_has_its_closed_form():
    g1, g2 = draw(3, 4, count=2)
    P1, P2 = g1 / np.abs(g1), g2 / np.sqrt((0.6 * 0.4 * g1**2 + 0.4 * g2**2) / (1 - 0.6**2))
    m1 = 0.1 * P1 @ np.linalg.inv(np.eye(4) + g1.T @ g1)
    m2 = 0.8 * m1 - (m1 @ g2.T @ g2 - 0.1 * P2) @ np.linalg.inv(np.eye(4) + g2.T @ g2)
    options = {"momentum": 0.8, "precondition": True, "beta2": 0.6, "eps": 0.0}
    close(deltas("delta_momentum", np.zeros((3, 4)), [g1, g2], **options), [-m1, -m2])


def test_delta_momentum_without_decay_is_preconditioned_momentum():
    """[A 46–47]: m ← αm + ηPg"""
    g1, g2 = draw(3, 4, count=2)
    P1, P2 = g1 / np.abs(g1), g2 / np.sqrt((0.6 * 0.4 * g1**2 + 0.4 * g2**2) / (1 - 0.6**2))
    options = {"momentum": 0.8, "decay": 0.0, "precondition": True, "beta2": 0.6, "eps": 0.0}
    close(deltas("delta_momentum", np.zeros((3, 4)), [g1, g2], **options), [-0.1 * P1, -0.1 * (0.8 * P1 + P2)])


def test_m3_as_printed_adds_up_a_window_and_reads_it_from_the_step_after():
    """Algorithm 1: M₁ ← M₁ + β₁g, V ← V + β₂g², every two steps M₂ ← M₂ + β₃ Σ g."""
    g = draw(3, 4, count=5)
    M1, V, M2, O2, options = 0, 0, 0, 0, {**M3_SUM, "slow_period": 2, "slow_weight": 0.3}
    got = deltas("m3", np.zeros((3, 4)), g, **options)
    for t in range(5):
        M1, V = M1 + 0.8 * g[t], V + 0.4 * g[t] ** 2
        close(got[t], -0.1 * (orthogonal(M1) + 0.3 * O2) / np.sqrt(V), rtol=1e-4)
        if t % 2:
            M2 = M2 + 0.7 * (g[t - 1] + g[t])
            O2 = orthogonal(M2)


def test_m3_ema_reads_slow_memory_from_the_step_after_its_window():
    g = draw(3, 4, count=5)
    M1, V, O2, got = 0, 0, 0, deltas("m3", np.zeros((3, 4)), g, slow_period=2, slow_weight=0.3, beta3=0.7)
    for t in range(5):
        M1, V = 0.95 * M1 + 0.05 * g[t], 0.999 * V + 0.001 * g[t] ** 2
        step = orthogonal(M1) + 0.3 * O2
        shaped = step / np.sqrt(V)
        close(got[t] / -0.1, shaped * np.linalg.norm(step) / np.linalg.norm(shaped), rtol=1e-4)
        if t == 1:
            M2 = 0.3 * (g[0] + g[1]) / 2
        if t == 3:
            M2 = 0.7 * M2 + 0.3 * (g[2] + g[3]) / 2
        if t in (1, 3):
            O2 = orthogonal(M2)


def test_multi_timescale_restarts_the_fast_memory_from_the_slow_one():
    g = draw(3, 4, count=4)
    p = parameter(np.zeros((3, 4)))
    optimizer = build("multi_timescale", [p], 0.1, sync=3)
    for t in range(3):
        feed(optimizer, p, g[t])
    state = optimizer.state[0]
    close(state["fast"] / (1 - 0.9**3), state["slow"] / (1 - 0.99**3))
    never = deltas("multi_timescale", np.zeros((3, 4)), g, sync=0)
    same(never[:3], deltas("multi_timescale", np.zeros((3, 4)), g, sync=3)[:3])
    assert np.abs(never[3] - feed(optimizer, p, g[3])).max() > 1e-3


# Limits that must coincide.


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4,), (2, 3, 4)])
@pytest.mark.parametrize(
    ("one", "other", "rtol"),
    [
        (("momentum", {"momentum": 0.0}), ("sgd", {}), 0),
        (("momentum", {"momentum": 0.0, "nesterov": True}), ("sgd", {}), 0),
        (("delta_momentum", {"decay": 0.0}), ("momentum", {}), 0),
        (("deep_momentum", {"hidden": 0}), ("momentum", {}), 0),
        (("deep_momentum", {"hidden": 0, "objective": "l2"}), ("delta_momentum", {"decay": 0.1}), 1e-9),
        (("higher_order", {"order": 0}), ("momentum", {}), 0),
        (("nonlinear", {"output": "linear", "lr": 1.0}), ("momentum", {}), 1e-12),
        (("dgd", {}), ("sgd", {}), 0),
        (("multi_timescale", {"slow_lr_scale": 0.0, "sync": 0}), ("adamw", {}), 1e-9),
        (("nonlinear", {"momentum": 0.95}), ("muon", {"nesterov": False, "scale": False}), 0),
        (("m3", {"slow_weight": 0.0, "variance": False}), ("muon", {"nesterov": False, "scale": False}), 0),
    ],
    ids=lambda case: case[0] if isinstance(case, tuple) else "",
)
def test_limits_coincide(one, other, rtol, shape):
    if shape == (4,) and other[0] == "muon":
        shape = (1, 4)  # Muon hands vectors to AdamW
    W, g = draw(*shape), draw(*shape, count=6, seed=1)
    a, b = (deltas(name, W, g, **{"lr": 0.1, **options}) for name, options in (one, other))
    close(a, b, rtol=rtol, atol=rtol)


def test_features_before_memory_equal_output_behind_it_when_nothing_is_remembered():
    g = draw(3, 5)
    before = deltas("higher_order", g, [g], order=5)[0] / np.linalg.norm(g)
    close(before, deltas("muon", g, [g], momentum=0.0, scale=False)[0], rtol=1e-9)


def test_dgd_becomes_sgd_as_the_learning_rate_vanishes():
    W, g, X = draw(3, 4), draw(3, 4, seed=1), draw(6, 4, seed=2)
    for forget in (0.0, 1.0):
        limit = -(g + forget * W @ X.T @ X / 6)
        far, near = (deltas("dgd", W, [g], [X], lr=lr, forget=forget)[0] / lr - limit for lr in (1e-2, 1e-4))
        assert np.abs(near).max() < 1e-2 and np.abs(near).max() < 2e-2 * np.abs(far).max()


def test_dgd_rests_where_the_gradient_is_what_it_forgets():
    W, X = draw(3, 4), draw(6, 4, seed=2)
    close(deltas("dgd", W, [-W @ X.T @ X / 6], [X], lr=3.0), 0, atol=1e-14)
    assert np.abs(deltas("dgd", W, [np.zeros((3, 4))], [X], lr=3.0)).max() > 0.1
    same(deltas("dgd", W, [np.zeros((3, 4))], [X], lr=3.0, forget=0.0)[0], 0)


def test_dgd_with_one_token_is_the_papers_rank_one_rule():
    W, x, u = draw(3, 4), draw(4, seed=1), draw(3, seed=2)
    rate = 0.7 / (1 + 0.7 * x @ x)
    new = W @ (0.9 * np.eye(4) - rate * np.outer(x, x)) + rate * np.outer(u, x)
    close(W + deltas("dgd", W, [-np.outer(u, x)], [x[None]], lr=0.7, retention=0.9)[0], new)


def test_dgd_at_any_learning_rate_stays_between_the_weight_and_the_regression():
    W, X, u = draw(3, 4), draw(9, 4, seed=1), draw(9, 3, seed=2)
    goal = np.linalg.lstsq(X, u, rcond=None)[0].T
    far = W + deltas("dgd", W, [-u.T @ X / 9], [X], lr=1e9)[0]
    close(far, goal, atol=1e-6)


def test_dgd_ignores_the_batch_length_when_tokens_repeat():
    W, g, X = draw(3, 4), draw(3, 4, seed=1), draw(5, 4, seed=2)
    close(deltas("dgd", W, [g], [X]), deltas("dgd", W, [g], [np.tile(X, (3, 1))]))


# The proximal definitions, minimised from their values alone.


@few
@given(N=st.integers(1, 5), n=st.integers(1, 5), eta=st.floats(0, 50), seed=st.integers(0, 99))
def test_an_implicit_step_minimises_the_proximal_objective(N, n, eta, seed):
    X, u, W = draw(N, n, seed=seed), draw(N, 2, seed=seed + 1), draw(2, n, seed=seed + 2)
    found = minimise(lambda V: eta * np.sum((X @ V.T - u) ** 2) / 2 + np.sum((V - W) ** 2) / 2, (2, n))
    gradient = (X @ W.T - u).T @ X
    close(W - eta * implicit(gradient, X, eta), found, atol=1e-7)


def test_implicit_treats_a_stack_as_each_matrix_alone():
    for N in (2, 6):
        grad, X = draw(3, 4, count=2), draw(N, 4, count=2, seed=1)
        close(implicit(grad, X, 0.7), [implicit(a, b, 0.7) for a, b in zip(grad, X, strict=True)])


def test_three_costumes_of_gradient_descent_agree():
    """Gradient step, steepest descent, follow-the-regularised-leader [A 1-3], for constant η."""
    A, eta, W1 = draw(2, 2), 0.05, draw(2, 3, seed=1)
    p, W, past = parameter(W1), W1, []
    optimizer = build("sgd", [p], eta)
    for _ in range(5):
        g = A.T @ A @ W
        past.append(g)
        feed(optimizer, p, g)
        at = W
        W = minimise(lambda V, at=at, g=g: np.sum(g * V) + np.sum((V - at) ** 2) / (2 * eta), (2, 3))
        leader = minimise(lambda V: np.sum(sum(past) * V) + np.sum((V - W1) ** 2) / (2 * eta), (2, 3))
        close(p.data, W, rtol=1e-11)
        close(p.data, leader, rtol=1e-11)


def test_momentum_is_a_proximal_step_of_its_memory():
    g, eta, m = draw(2, 3, count=3), 0.1, np.zeros((2, 3))
    for delta, now in zip(deltas("momentum", g[0], g, lr=eta), g, strict=True):
        faded = 0.9 * m
        m = minimise(lambda n, now=now, m=faded: -np.sum(n * now) + np.sum((n - m) ** 2) / (2 * eta), (2, 3))
        close(-delta, m, rtol=1e-11)


def test_rules_are_an_objective_and_a_retention():
    """W ← argmin_V L̃(V; x, u) + Ret(V, W) [A 59–60]: the table of PAPER.md, minimised from its values alone."""
    W, x, u, eta, alpha = draw(2, 3), draw(3, seed=1), draw(2, seed=2), 0.4, 0.9

    def dot(V):
        return -u @ V @ x

    def regression(V):
        return np.sum((V @ x - u) ** 2) / 2

    for objective, kept, name, options in [
        (dot, 1, "sgd", {}),
        (dot, alpha, "sgd", {"weight_decay": (1 - alpha) / eta}),
        (regression, 1, "dgd", {}),
    ]:
        best = minimise(lambda V, f=objective, a=kept: f(V) + np.sum((V - a * W) ** 2) / (2 * eta), (2, 3))
        close(W + deltas(name, W, [-np.outer(u, x)], [x[None]], lr=eta, **options)[0], best, rtol=1e-9)


def test_backpropagation_writes_the_error_of_every_layer_under_its_input():
    """δ_ℓ = J_φ(z_ℓ)ᵀ W_{ℓ+1}ᵀ δ_{ℓ+1}; the step is argmin_V ⟨V x̂, δ⟩ + ‖V − W‖²/(2η) [A 29–31]."""
    W1, W2, x, y, eta = draw(4, 3), draw(2, 4, seed=1), draw(3, seed=2), draw(2, seed=3), 0.3
    one, two = (tensor(W, requires_grad=True) for W in (W1, W2))
    error = tanh(x[None] @ one.mT) @ two.mT - y
    ((error * error).sum() * 0.5).backward()
    hidden = np.tanh(W1 @ x)
    top = W2 @ hidden - y
    below = (1 - hidden**2) * (W2.T @ top)
    for p, W, delta, key in ((one, W1, below, x), (two, W2, top, hidden)):
        close(p.grad, np.outer(delta, key), rtol=1e-10)
        best = minimise(lambda V, d=delta, x=key, W=W: d @ V @ x + np.sum((V - W) ** 2) / (2 * eta), W.shape)
        close(W + deltas("sgd", W, [p.grad], lr=eta)[0], best, rtol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_delta_momentum_is_a_proximal_step_of_its_memory(shape):
    g, eta, beta, m = draw(*shape, count=3), 0.1, 0.6, np.zeros(shape)

    def objective(n, now, m):
        return beta * np.sum((n @ now.T) ** 2) / 2 - eta * np.sum(n * now) + np.sum((n - m) ** 2) / 2

    for delta, now in zip(deltas("delta_momentum", g[0], g, lr=eta, decay=beta), g, strict=True):
        m = (0.9 - 1) * m + minimise(lambda n, now=now, m=m: objective(n, now, m), shape)
        close(-delta, m, rtol=1e-10)


@pytest.mark.parametrize("forget", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("N", [1, 2, 3, 8])
def test_dgd_is_the_proximal_step_of_its_regression(N, forget):
    W, X, u, eta = draw(2, 3), draw(N, 3, seed=1), draw(N, 2, seed=2), 0.8
    target = u + (1 - forget) * X @ W.T
    new = minimise(lambda V: np.sum((X @ V.T - target) ** 2) / N + np.sum((V - W) ** 2) / eta, (2, 3))
    close(W + deltas("dgd", W, [-u.T @ X / N], [X], lr=eta, forget=forget)[0], new, rtol=1e-10)


def test_deep_momentum_trains_each_layer_by_a_proximal_step_of_the_l2_objective():
    g, eta, shape = draw(2, 3, count=3), 0.5, (2, 3)
    p = parameter(np.zeros(shape))
    optimizer = build("deep_momentum", [p], eta, momentum=0.8, hidden=4, objective="l2")
    start = np.concatenate([optimizers.cosine_basis(2, g), -optimizers.cosine_basis(2, g)])
    feed(optimizer, p, g[0]), feed(optimizer, p, g[1])
    top, W1 = optimizer.state[0]["top"], start + optimizer.state[0]["moved"]
    z = g[2] @ W1.T
    Z, gate = np.concatenate([g[2], np.maximum(z, 0)], axis=1), z > 0
    error = np.eye(2) - Z @ top.T
    feed(optimizer, p, g[2])

    new = minimise(lambda A: np.sum((Z @ A.T - np.eye(2)) ** 2) + np.sum((A - top) ** 2) / eta, top.shape)
    close(optimizer.state[0]["top"], new - 0.2 * top, rtol=1e-9)
    local = g[2] @ W1.T + (error @ top[:, 3:]) * gate  # what the hidden layer should have answered
    new = minimise(lambda B: np.sum((g[2] @ B.T - local) ** 2) + np.sum((B - W1) ** 2) / eta, W1.shape)
    close(start + optimizer.state[0]["moved"], new - 0.2 * (W1 - start), rtol=1e-9)


def test_deep_momentum_follows_the_gradient_of_its_dot_objective_and_reads_its_jacobian():
    g, n, hidden, h = draw(3, 4, count=4), 4, 6, 1e-6
    start = np.concatenate([optimizers.cosine_basis(3, g), -optimizers.cosine_basis(3, g)])

    def score(theta, now):  # Σ_r ⟨m(g_r), e_r⟩, with m in one flat vector
        top, W1 = theta[: 3 * (n + hidden)].reshape(3, -1), theta[3 * (n + hidden) :].reshape(hidden, n)
        return np.trace(now @ top[:, :n].T + np.maximum(now @ W1.T, 0) @ top[:, n:].T)

    def slope(f, at):
        steps = h * np.eye(at.size).reshape(at.size, *at.shape)
        return np.array([f(at + d) - f(at - d) for d in steps]).reshape(at.shape) / (2 * h)

    p = parameter(np.zeros((3, 4)))
    optimizer = build("deep_momentum", [p], 0.2, momentum=0.8, hidden=hidden)
    rest = np.concatenate([np.zeros(3 * (n + hidden)), start.ravel()])
    theta = rest
    for now in g:
        delta = feed(optimizer, p, now)
        theta = rest + 0.8 * (theta - rest) + 0.2 * slope(lambda t, now=now: score(t, now), theta)
        state = optimizer.state[0]
        close(theta, [*state["top"].ravel(), *(start + state["moved"]).ravel()], atol=1e-8)
        close(-delta, slope(lambda u, t=theta: score(t, u), now), atol=1e-8)


@pytest.mark.parametrize("t", [1, 2, 7])
@pytest.mark.parametrize(
    ("name", "beta1", "beta2"), [("adagrad", 0, 1), ("adamw", 0.9, 0.9), ("adamw", 0.8, 0.99)]
)
def test_adam_and_adagrad_are_optimal_elementwise_memories_of_the_l2_objective(name, beta1, beta2, t):
    """argmin_m Σ_i w_i (m g_i − P_i)², P_i = √V c_i/w_i [A 101–105]: w_i is how much g_i² still counts, c_i
    how much g_i does. AdaGrad counts every square in full, and of the directions only the newest."""
    g = draw(5, count=t)
    age = t - 1 - np.arange(t)
    if name == "adagrad":
        c, w, options = (age == 0) * 1.0, np.ones(t), {"eps": 0.0}
    else:
        c, w = ((1 - b) * b**age / (1 - b**t) for b in (beta1, beta2))
        options = {"beta1": beta1, "beta2": beta2, "eps": 0.0}
    P = (c / w)[:, None] * np.sqrt(w @ g**2)
    root = np.sqrt(w)
    best = [np.linalg.lstsq((root * g[:, k])[:, None], root * P[:, k], rcond=None)[0][0] for k in range(5)]
    close(deltas(name, np.zeros(5), g, lr=0.1, **options)[-1], -0.1 * np.array(best), rtol=1e-11)


@pytest.mark.parametrize("t", [1, 4])
def test_momentum_is_the_optimal_memory_of_the_sum_of_squares(t):
    """argmin_m Σ_i (m g_i − P)², P = Σ g²: m* = Σ g, momentum that never fades [A 104]."""
    g = draw(5, count=t)
    best = [np.linalg.lstsq(g[:, k : k + 1], np.full(t, g[:, k] @ g[:, k]), rcond=None)[0][0] for k in range(5)]
    close(deltas("momentum", g[0], g, lr=0.3, momentum=1.0)[-1], -0.3 * np.array(best), rtol=1e-11)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4,), (2, 3, 4)])
def test_full_adagrad_is_printed_with_sums_that_only_scale_eta(shape):
    """H ← H + β₂ggᵀ, M̃ ← M̃ + β₁g, W ← W − (η/√β₂) H^(−½) M̃, and element-wise H ← H + β₂g² [A 105–111]."""
    g, eta, beta1, beta2 = draw(*shape, count=3), 0.2, 0.7, 0.3
    columns = g if len(shape) > 1 else g[..., None]
    H, M, squares = 0, 0, 0
    for G in columns:
        H, M, squares = H + beta2 * G @ np.swapaxes(G, -2, -1), M + beta1 * G, squares + beta2 * G**2
    values, U = np.linalg.eigh(H)
    root = np.where(values > 1e-9, np.abs(values) ** -0.5, 0)
    printed = -eta / np.sqrt(beta2) * (U * root[..., None, :]) @ np.swapaxes(U, -2, -1) @ M
    lr = eta * beta1 / beta2
    full = deltas("adagrad", g[0], g, lr=lr, full=True, momentum=1.0)[-1]
    close(full, printed.reshape(shape), rtol=1e-7)
    elementwise = -eta / np.sqrt(beta2) * M / np.sqrt(squares)
    close(deltas("adagrad", g[0], g, lr=lr, momentum=1.0, eps=0.0)[-1], elementwise.reshape(shape), rtol=1e-10)


def test_full_adagrad_begins_with_an_orthogonal_step_and_is_the_diagonal_one_for_a_single_element():
    g = draw(3, 5)
    polar = on_singular_values(g, np.ones_like)
    close(deltas("adagrad", g, [g], full=True)[0], -0.1 * polar, rtol=1e-6)
    close(deltas("adagrad", g, [g], full=True)[0], -0.1 * newton_schulz(g, 30, CUBIC), rtol=1e-6)
    scalars = draw(1, count=4)
    close(deltas("adagrad", scalars[0], scalars, full=True), deltas("adagrad", scalars[0], scalars), rtol=1e-7)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_a_preconditioner_descends_the_error_of_its_map_from_coordinates_to_gradients(shape):
    """P ← P − ζ ∇½‖Pĝ − g‖², W ← W − ηP⁻¹g [A 38–41], differentiated numerically at every step."""
    zeta, lr, h, tall = 0.3, 0.1, 1e-6, shape[0] > shape[1]

    def slope(P, unit, G, product):
        steps = h * np.eye(P.size).reshape(P.size, *P.shape)
        loss = [[np.sum((product(P + s * d, unit) - G) ** 2) / 2 for s in (1, -1)] for d in steps]
        return (np.array(loss) @ [1, -1] / (2 * h)).reshape(P.shape)

    for matrix, coordinates, product, inverse in [
        (True, lambda g: on_singular_values(g, np.ones_like), np.matmul, np.linalg.solve),
        (False, np.sign, np.multiply, lambda P, g: g / P),
    ]:
        g = draw(*shape, count=4)
        got = deltas("preconditioned", g[0], g, lr=lr, rate=zeta, matrix=matrix, eps=0.0)
        G = np.swapaxes(g, 1, 2) if tall else g
        P = np.zeros((3, 3) if matrix else (3, 5))
        for t, now in enumerate(G, 1):
            P = P - zeta / (1 - (1 - zeta) ** t) * slope(P, coordinates(now), now, product)
            step = -lr * inverse(P, now)
            close(got[t - 1], step.T if tall else step, rtol=1e-5, atol=1e-8)


def test_a_preconditioner_without_memory_leaves_the_directions_and_the_signs_alone():
    g = draw(3, 5, count=2)
    close(deltas("preconditioned", g[0], g, rate=1.0)[1], -0.1 * on_singular_values(g[1], np.ones_like), rtol=1e-6)
    close(deltas("preconditioned", g[0], g, rate=1.0, matrix=False, eps=0.0)[1], -0.1 * np.sign(g[1]))


@pytest.mark.parametrize("name", ["preconditioned", "adagrad"])
def test_directions_that_no_gradient_had_are_left_alone(name):
    options = {"full": True} if name == "adagrad" else {}
    a, b = draw(4, seed=1), draw(6, count=3, seed=2)
    got = deltas(name, draw(4, 6), [np.outer(a, row) for row in b], **options)
    away = np.eye(4) - np.outer(a, a) / (a @ a)
    assert np.isfinite(got).all() and np.abs(away @ got).max() < 1e-6 and np.abs(got).max() > 1e-3


def test_delta_momentum_is_the_printed_rule_for_small_gradients():
    m, g, gap = draw(3, 4), draw(3, 4, seed=1), []
    for size in (1e-2, 5e-3):
        p = parameter(np.zeros((3, 4)))
        optimizer = build("delta_momentum", [p], 0.1)
        optimizer.state[0]["m"], small = m.copy(), size * g
        printed = m @ (0.9 * np.eye(4) - small.T @ small) + 0.1 * small
        gap.append(np.abs(-feed(optimizer, p, small) - printed).max())
    assert gap[0] < 1e-6 and gap[1] < gap[0] / 7  # third order in g


def test_delta_momentum_cannot_diverge_where_the_printed_rule_does():
    g, printed = 30 * draw(3, 4), np.zeros((3, 4))
    for _ in range(50):
        printed = printed @ (0.9 * np.eye(4) - g.T @ g) + 0.1 * g
    assert np.abs(printed).max() > 1e50
    assert np.abs(deltas("delta_momentum", g, [g] * 50)).max() < 0.1


@pytest.mark.parametrize("kind", ["varied", "repeated"])
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (6, 6), (3, 8)])
def test_delta_momentum_stays_bounded_in_float32_for_gradients_of_any_size(kind, shape):
    for size in (1e4, 1e8):
        g = size * draw(*shape, count=60)
        g = g if kind == "varied" else [np.outer(g[0, :, 0], g[1, 0]) / size] * 60
        p = parameter(np.zeros(shape), np.float32)
        optimizer = build("delta_momentum", [p], 1e-3)
        for now in g:
            feed(optimizer, p, now.astype(np.float32))
        assert np.abs(p.data).max() < 1e-2 * size / 1e4


# Published definitions, written a second time.


def test_nesterov_momentum_agrees_with_pytorchs_algorithm_over_ten_steps():
    g, lr, theta, buffer = draw(4, 3, count=10), 0.02, draw(4, 3, seed=1), 0
    p = parameter(theta)
    optimizer = build("momentum", [p], lr, momentum=0.8, nesterov=True)
    for now in g:
        feed(optimizer, p, now)
        buffer = 0.8 * buffer + now
        theta = theta - lr * (now + 0.8 * buffer)
        close(p.data, theta, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_agrees_with_its_published_algorithm_over_ten_steps(decay):
    g, lr, theta = draw(4, 3, count=10), 0.02, draw(4, 3, seed=1)
    p, m, v = parameter(theta), np.zeros((4, 3)), np.zeros((4, 3))
    optimizer = build("adamw", [p], lr, weight_decay=decay)
    for t in range(1, 11):
        feed(optimizer, p, g[t - 1])
        theta = theta - lr * decay * theta
        m, v = 0.9 * m + (1 - 0.9) * g[t - 1], 0.999 * v + (1 - 0.999) * g[t - 1] ** 2
        theta = theta - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        close(p.data, theta, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (4, 4), (2, 6, 3)])
def test_muon_agrees_with_its_published_algorithm_over_ten_steps(shape):
    g, lr, theta, buffer = draw(*shape, count=10), 0.02, draw(*shape, seed=1), np.zeros(shape)
    p = parameter(theta)
    optimizer = build("muon", [p], lr, weight_decay=0.1)
    for t in range(10):
        feed(optimizer, p, g[t])
        buffer = buffer + (1 - 0.95) * (g[t] - buffer)
        X = g[t] + 0.95 * (buffer - g[t])
        flip = shape[-2] > shape[-1]
        X = np.swapaxes(X, -2, -1) if flip else X
        X = X / (np.sqrt((X**2).sum((-2, -1), keepdims=True)) + 1e-7)
        for _ in range(5):
            A = X @ np.swapaxes(X, -2, -1)
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        X = np.swapaxes(X, -2, -1) if flip else X
        theta = theta * (1 - lr * 0.1) - lr * max(1, shape[-2] / shape[-1]) ** 0.5 * X
        close(p.data, theta, rtol=1e-10)


# The shared pieces.


@few
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_newton_schulz_acts_on_singular_values_alone(rows, columns, seed):
    M = draw(rows, columns, seed=seed)
    close(newton_schulz(M), orthogonal(M), atol=1e-5)
    polar = on_singular_values(M, np.ones_like)
    condition = np.linalg.cond(M)
    if condition < 50:
        close(newton_schulz(M, 30, CUBIC), polar, atol=1e-6)
        values = np.linalg.svd(newton_schulz(M, 8), compute_uv=False)
        assert values.min() > 0.65 and values.max() < 1.25


def test_cubic_newton_schulz_is_gradient_descent_on_the_distance_from_orthogonality():
    """X ← X − ζ∇¼‖XᵀX − I‖², ζ = ½ [A 43–44]."""
    M = draw(3, 3)
    X, h = M / np.linalg.norm(M), 1e-6
    for _ in range(4):
        steps = h * np.eye(9).reshape(9, 3, 3)
        loss = [[np.sum(((X + s * d).T @ (X + s * d) - np.eye(3)) ** 2) / 4 for s in (1, -1)] for d in steps]
        X = X - (np.array(loss) @ [1, -1] / (2 * h)).reshape(3, 3) / 2
    close(newton_schulz(M, 4, CUBIC), X, atol=1e-6)


def test_newton_schulz_leaves_zero_alone_and_treats_a_stack_as_each_matrix_alone():
    same(newton_schulz(np.zeros((3, 4))), 0)
    M = draw(3, 4, count=2)
    close(newton_schulz(M), [newton_schulz(m) for m in M], rtol=1e-12)


@few
@given(out=st.integers(2, 6), n=st.integers(2, 6), rank=st.integers(1, 5), seed=st.integers(0, 99))
def test_low_rank_loses_nothing_for_good(out, n, rank, seed):
    g, state = draw(out, n, count=5, seed=seed), {}
    compressed = [low_rank(x, state, rank) for x in g]
    close(sum(compressed) + state.get("error", 0), sum(g), atol=1e-9)
    assert all(np.linalg.matrix_rank(x, tol=1e-8) <= min(rank, out, n) for x in compressed)


def test_low_rank_keeps_what_has_the_rank_and_finds_the_main_directions():
    a, b = draw(6, 2), draw(2, 5, seed=1)
    close(low_rank(a @ b, {}, 2), a @ b, atol=1e-12)
    g, state = on_singular_values(draw(6, 5), lambda s: np.array([9, 6, 0.3, 0.2, 0.1])), {}
    for _ in range(4):
        state.pop("error", None)
        compressed = low_rank(g, state, 2)
    close(compressed, on_singular_values(g, lambda s: s * (s > 1)), atol=1e-4)


def test_cosine_basis_is_orthonormal():
    for n in (1, 2, 7):
        basis = optimizers.cosine_basis(n, np.zeros(n))
        close(basis @ basis.T, np.eye(n), atol=1e-12)


# Symmetries. None: the rung has none, and that is a claim too.

TURNS: dict = {
    "sgd": {}, "momentum": {}, "adagrad": None, "adamw": None, "preconditioned": {}, "delta_momentum": {},
    "deep_momentum": None, "higher_order": {}, "nonlinear": {}, "muon": {}, "m3": None, "dgd": {},
    "multi_timescale": None,
}  # fmt: skip
SCALES: dict = {
    "sgd": (1, {}), "momentum": (1, {}), "adagrad": (0, {"eps": 0.0}), "adamw": (0, {"eps": 0.0}),
    "preconditioned": (0, {}), "delta_momentum": None, "deep_momentum": None, "higher_order": (1, {}),
    "nonlinear": (0, {}), "muon": (0, {}), "m3": (0, {"slow_period": 2, "eps": 0.0}), "dgd": None,
    "multi_timescale": (0, {"eps": 0.0, "rank": 2}),
}  # fmt: skip
SPECIAL_TURNS = [("m3", {"variance": False, "slow_period": 2}), ("deep_momentum", {"hidden": 0}),
                 ("adagrad", {"full": True, "momentum": 0.9})]


@pytest.mark.parametrize(("name", "options"), [*TURNS.items(), *SPECIAL_TURNS])
def test_rotating_the_gradients_rotates_the_updates(name, options):
    U, V = (np.linalg.qr(draw(n, n, seed=n))[0] for n in (3, 4))
    W, g, X = draw(3, 4), draw(3, 4, count=4, seed=1), draw(6, 4, count=4, seed=2)
    turned = deltas(name, U @ W @ V.T, U @ g @ V.T, list(X @ V.T), **(options or {}))
    gap = np.abs(turned - U @ deltas(name, W, g, list(X), **(options or {})) @ V.T).max()
    assert gap > 1e-4 if options is None else gap < 1e-10


@every_rung
def test_scaling_the_gradients_scales_the_updates_by_a_power(name):
    degree, options = SCALES[name] or (None, {})
    W, g, X = draw(3, 4), draw(3, 4, count=5, seed=1), list(draw(6, 4, count=5, seed=2))
    small, large = deltas(name, W, g, X, **options), deltas(name, W, 4 * g, X, **options)
    if degree is None:
        assert all(np.abs(large - small * 4.0**k).max() > 1e-3 for k in (0, 1))
    else:
        close(large, small * 4.0**degree, rtol=1e-5, atol=1e-7)


# The level clock, groups, saving.


class Network:
    """Two matrices, a vector and a stack; gradients depend on the weights and on a fixed stream."""

    shapes = ((4, 3), (2, 4), (3,), (2, 3, 4))

    def __init__(self, dtype=np.float64):
        self.params = [parameter(draw(*shape, seed=k), dtype) for k, shape in enumerate(self.shapes)]

    def groups(self, *periods, **options):
        return [{"params": [p], "period": c, **options} for p, c in zip(self.params, periods, strict=True)]

    def backward(self, step):
        for k, p in enumerate(self.params):
            p.grad = (0.1 * p.data + draw(*p.data.shape, seed=100 * step + k)).astype(p.data.dtype)
            if p.tap is not None:
                p.tap.append((draw(5, p.data.shape[1], seed=100 * step + k).astype(p.data.dtype), None))


@every_rung
@pytest.mark.parametrize("reading", READINGS)
def test_level_moves_only_when_its_clock_is_due(name, reading):
    net, periods = Network(), (3, 1, 4, 4)
    held = [p.data for p in net.params]
    optimizer = build(name, net.groups(*periods, accumulate=reading), 0.1, weight_decay=0.1)
    for step in range(1, 13):
        before = [p.data.tobytes() for p in net.params]
        net.backward(step)
        fired = optimizer.step()
        assert fired == [c for c in (1, 3, 4) if step % c == 0]
        for p, bits, c in zip(net.params, before, periods, strict=True):
            assert (p.data.tobytes() != bits) == (step % c == 0)
    assert all(p.data is data for p, data in zip(net.params, held, strict=True))


@every_rung
def test_a_due_level_moves_by_the_sum_of_updates_at_its_frozen_weights(name):
    net, shadow = Network(), Network()
    slow = build(name, net.groups(3, 3, 3, 3), 0.1, weight_decay=0.1)
    fast = build(name, shadow.params, 0.1, weight_decay=0.1)
    for step in range(1, 7):
        if step % 3 == 1:
            total, frozen = [0] * 4, [p.data.copy() for p in net.params]
        net.backward(step), shadow.backward(step)
        slow.step(), fast.step()
        for k, p in enumerate(shadow.params):
            total[k] = total[k] + p.data - frozen[k]
            p.data[...] = frozen[k] + total[k] if step % 3 == 0 else frozen[k]
        for p, twin in zip(net.params, shadow.params, strict=True):
            close(p.data, twin.data, rtol=1e-9, atol=1e-12)


@every_rung
def test_a_due_level_takes_one_step_on_the_mean_gradient(name):
    net, shadow = Network(), Network()
    slow = build(name, net.groups(3, 3, 3, 3, accumulate="gradients"), 0.1, weight_decay=0.1)
    fast = build(name, shadow.params, 0.1, weight_decay=0.1)
    total = [0] * 4
    for step in range(1, 7):
        net.backward(step), shadow.backward(step)
        slow.step()
        total = [t + p.grad for t, p in zip(total, net.params, strict=True)]
        if step % 3 == 0:
            for p, t in zip(shadow.params, total, strict=True):
                p.grad = t / 3
            fast.step()
            total = [0] * 4
        for p, twin in zip(net.params, shadow.params, strict=True):
            close(p.data, twin.data, rtol=1e-9, atol=1e-12)


@every_rung
@pytest.mark.parametrize("reading", READINGS)
def test_a_saved_optimiser_continues_bit_for_bit_in_the_middle_of_a_chunk(name, reading):
    def make(net):
        groups = net.groups(3, 1, 4, 1, accumulate=reading)
        return build(name, groups, 0.1, **({"slow_period": 4} if name == "m3" else {}))

    net, twin = Network(), Network()
    optimizer = make(net)
    for step in range(1, 8):
        optimizer.lr_scale = schedule("cosine", step, 20)
        net.backward(step)
        optimizer.step()
    saved = optimizer.state_dict()
    json.dumps(saved, default=np.ndarray.tolist)
    file = io.BytesIO()
    np.savez(file, **saved)
    file.seek(0)

    other = make(twin)
    other.load_state_dict(dict(np.load(file, allow_pickle=False)))
    assert other.lr == optimizer.lr
    for p, q in zip(net.params, twin.params, strict=True):
        q.data[...] = p.data
    for step in range(8, 16):
        net.backward(step), twin.backward(step)
        assert optimizer.step() == other.step()
        assert [p.data.tobytes() for p in net.params] == [p.data.tobytes() for p in twin.params]
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert np.array_equal(value, theirs[key]) and type(value) is type(theirs[key])


def test_loading_another_optimisers_state_or_other_shapes_is_refused():
    saved = build("adamw", Network().params, 0.1).state_dict()
    with pytest.raises(ValueError, match="of AdamW, not of Muon"):
        build("muon", Network().params, 0.1).load_state_dict(saved)
    with pytest.raises(ValueError, match="shapes"):
        build("adamw", Network().params[:2], 0.1).load_state_dict(saved)
    with pytest.raises(ValueError, match="of nothing"):
        build("adamw", Network().params, 0.1).load_state_dict({})


@every_rung
def test_a_saved_state_is_a_copy(name):
    net = Network()
    optimizer = build(name, net.params, 0.1)
    net.backward(1), optimizer.step()
    saved = optimizer.state_dict()
    bits = {key: np.array(value).tobytes() for key, value in saved.items()}
    net.backward(2), optimizer.step()
    optimizer.load_state_dict(saved)
    net.backward(3), optimizer.step()
    assert bits == {key: np.array(value).tobytes() for key, value in saved.items()}


@every_rung
def test_a_parameter_without_axes_goes_on_from_a_saved_state(name):
    p, q = (SimpleNamespace(data=np.array(0.5, np.float32), grad=None, tap=None) for _ in range(2))
    one, two = build(name, [p], 0.1), build(name, [q], 0.1)
    for g in (1.0, -0.5):
        feed(one, p, np.array(g, np.float32))
    saved, q.data[...] = one.state_dict(), p.data
    for g in (0.25, 2.0):
        feed(one, p, np.array(g, np.float32))
    two.load_state_dict(saved)
    for g in (0.25, 2.0):
        feed(two, q, np.array(g, np.float32))
    assert p.data == q.data and q.data.dtype == np.float32


@every_rung
def test_a_tensor_that_no_layer_has_can_be_learned(name):
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    optimizer = build(name, [x], 0.1)
    optimizer.zero_grad()
    (x * x).sum().backward()
    optimizer.step()
    assert np.all(x.data < 1)


@pytest.mark.parametrize("name, option", [("muon", "ns_steps"), ("m3", "ns_steps"), ("higher_order", "order"),
                                          ("deep_momentum", "hidden")])
def test_a_whole_number_may_be_written_as_a_float(name, option):
    W, g = draw(3, 20), draw(3, 20, count=2, seed=1)
    same(deltas(name, W, g, **{option: 4.0}), deltas(name, W, g, **{option: 4}))


def test_dgd_sees_two_halves_of_a_batch_as_the_whole():
    whole, halves = Network(), Network()
    one, two = build("dgd", whole.params, 0.1), build("dgd", halves.params, 0.1)
    for step in range(1, 4):
        whole.backward(step), halves.backward(step)
        for p in halves.params:
            if p.tap is not None:
                ((x, g),) = p.tap
                p.tap[:] = [(x[:2], g), (x[2:], g)]
        one.step(), two.step()
        for p, q in zip(whole.params, halves.params, strict=True):
            close(p.data, q.data, rtol=1e-9, atol=1e-12)


@every_rung
def test_a_clipped_step_is_the_step_on_scaled_gradients(name):
    clipped, scaled = Network(), Network()
    one, two = build(name, clipped.params, 0.1), build(name, scaled.params, 0.1)
    clipped.backward(1), scaled.backward(1)
    norm = clip_grad_norm(clipped.params, 0.5)
    assert norm == pytest.approx(math.sqrt(sum(np.sum(p.grad**2) for p in scaled.params)))
    for p in scaled.params:
        p.grad = p.grad * (0.5 / norm)
    one.step(), two.step()
    assert all(np.array_equal(p.data, q.data) for p, q in zip(clipped.params, scaled.params, strict=True))


@every_rung
def test_lr_scale_multiplies_every_groups_learning_rate(name):
    net, twin = Network(), Network()
    one, two = (
        build(name, n.groups(1, 1, 1, 1, weight_decay=0.5), lr) for n, lr in ((net, 0.1), (twin, 0.025))
    )
    one.groups[0]["lr"], two.groups[0]["lr"] = 0.4, 0.1
    one.lr_scale = 0.25
    net.backward(1), twin.backward(1)
    one.step(), two.step()
    assert one.lr == two.lr == 0.1
    for p, q in zip(net.params, twin.params, strict=True):
        close(p.data, q.data, rtol=1e-12)


@every_rung
def test_weight_decay_is_decoupled(name):
    net, twin = Network(), Network()
    one, two = build(name, net.params, 0.1, weight_decay=0.2), build(name, twin.params, 0.1)
    net.backward(1), twin.backward(1)
    before = [p.data.copy() for p in net.params]
    one.step(), two.step()
    for p, q, W in zip(net.params, twin.params, before, strict=True):
        lr = 0.1 * (0.05 if one.matrices_only and W.ndim == 1 else 1)
        close(p.data, q.data - lr * 0.2 * W, rtol=1e-12)


@every_rung
def test_a_group_can_be_handed_to_adamw(name):
    net, twin = Network(), Network()
    options = {"method": "adamw", "lr": 0.6, "adamw_lr_scale": 0.5, "beta1": 0.7}
    one = build(name, [{"params": net.params[:1]}, {"params": net.params[1:], **options}], 0.1)
    two = build("adamw", twin.params[1:], 0.3, beta1=0.7)
    for step in range(1, 4):
        net.backward(step), twin.backward(step)
        one.step(), two.step()
    for p, q in zip(net.params[1:], twin.params[1:], strict=True):
        assert p.data.tobytes() == q.data.tobytes() and p.tap is None


@every_rung
def test_adamw_inside_a_rung_has_the_scale_of_that_rung(name):
    g = draw(4, 3, count=3)
    scale = 0.05 if name in ("muon", "m3") else 1.0
    same(deltas(name, g[0], g, method="adamw"), deltas("adamw", g[0], g, lr=0.1 * scale))


@pytest.mark.parametrize("name", [name for name, rung in OPTIMIZERS.items() if rung.matrices_only])
def test_vectors_of_a_matrix_method_take_adamw_at_a_scaled_learning_rate(name):
    g = draw(4, count=3)
    same(deltas(name, g[0], g, adamw_lr_scale=0.5), deltas("adamw", g[0], g, lr=0.1 * 0.5))


@every_rung
def test_a_parameter_without_numbers_rests_and_one_alone_needs_no_list(name):
    empty, alone = Tensor(np.zeros((3, 0)), True), Tensor(np.ones((2, 3)), True)
    empty.grad, alone.grad = np.zeros((3, 0)), np.ones((2, 3))
    build(name, [empty, alone], 0.1).step()
    assert empty.data.shape == (3, 0) and np.all(alone.data != 1)
    for params in (alone, [{"params": alone}]):
        assert build(name, params, 0.1).params == [alone]
    assert clip_grad_norm(alone, 1.0) == pytest.approx(math.sqrt(6))
    for wrong in (alone.data, [("weight", alone)], {"weight": alone.data}):
        with pytest.raises((TypeError, ValueError), match=r"is no parameter: give model\.parameters"):
            build(name, wrong, 0.1)


@every_rung
@pytest.mark.parametrize("reading", READINGS)
def test_a_parameter_without_a_gradient_rests(name, reading):
    net = Network()
    optimizer = build(name, net.groups(1, 2, 2, 1, accumulate=reading), 0.1, weight_decay=0.1)
    before = [p.data.copy() for p in net.params]
    for step in range(1, 5):
        net.backward(step)
        net.params[0].grad = net.params[1].grad = None
        if step < 3:
            net.params[2].grad = None
        assert optimizer.step() == ([1, 2] if step % 2 == 0 else [1])
    rested = [np.array_equal(p.data, W) for p, W in zip(net.params, before, strict=True)]
    assert rested == [True, True, False, False]


@every_rung
@pytest.mark.parametrize("reading", READINGS)
def test_float32_stays_float32_even_for_a_numpy_learning_rate(name, reading):
    net = Network(np.float32)
    tenth = np.float64(0.1)
    optimizer = build(name, net.groups(1, 2, 2, 3, accumulate=reading), tenth, weight_decay=tenth)
    for step in range(1, 4):
        net.backward(step)
        optimizer.step()
    arrays = [v for state in optimizer.state for v in state.values() if isinstance(v, np.ndarray)]
    assert {a.dtype for a in [*arrays, *(p.data for p in net.params)]} == {np.dtype(np.float32)}


@every_rung
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (1,), ()])
def test_degenerate_shapes_and_zero_gradients_are_fine(name, shape):
    W, g = draw(*shape), draw(*shape, count=3, seed=1)
    assert np.isfinite(deltas(name, W, [*g, np.zeros(shape)])).all()
    same(deltas(name, W, [np.zeros(shape)] * 3), 0)


def test_only_dgd_listens_to_layer_inputs_and_zero_grad_forgets_them():
    net = Network()
    build("dgd", net.params, 0.1)
    assert [p.tap for p in net.params] == [[], [], None, None]
    net.backward(1)
    build("sgd", net.params, 0.1)
    assert all(p.tap is None for p in net.params)
    optimizer = build("dgd", net.params, 0.1)
    net.backward(1)
    optimizer.zero_grad()
    assert [p.tap for p in net.params] == [[], [], None, None] and all(p.grad is None for p in net.params)


# Around a step, and the words for mistakes.


def test_clipping_leaves_small_gradients_and_shows_non_finite_ones():
    p, q = parameter(np.zeros(2)), parameter(np.zeros(3))
    p.grad, g = np.array([3.0, 4.0]), None
    assert clip_grad_norm([p, q], 5.0) == 5.0 and p.grad.tolist() == [3.0, 4.0]
    for bad in (np.inf, np.nan):
        p.grad = g = np.array([bad, 1.0])
        assert not math.isfinite(clip_grad_norm([p, q], 1.0)) and p.grad is g


def test_clipping_sums_in_float64_and_scales_a_shared_gradient_once():
    p, q = parameter(np.zeros(2)), parameter(np.zeros(2))
    p.grad = q.grad = np.array([3e30, 4e30], dtype=np.float32)
    assert clip_grad_norm([p, q], 1.0) == pytest.approx(5e30 * math.sqrt(2), rel=1e-6)
    close([p.grad, q.grad], np.array([[3, 4], [3, 4]]) / math.sqrt(50), rtol=1e-6)
    assert p.grad.dtype == np.float32


def test_schedules_warm_up_and_come_down():
    assert [schedule("constant", s, 10, warmup=4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    close([schedule("linear", s, 8, warmup=4, final=0.2) for s in (4, 6, 8, 99)], [1, 0.6, 0.2, 0.2])
    close([schedule("cosine", s, 4) for s in range(5)], [1, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5, 0], atol=1e-15)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        schedule("cosin", 0, 1)


def test_mistakes_are_named():
    p, q = parameter(np.zeros(2)), parameter(np.zeros(2))
    for call, words in [
        (lambda: build("adam", [p], 0.1), "did you mean 'adamw'"),
        (lambda: build("muon", [p], 0.1, momentun=0.9), "option of Muon 'momentun'; did you mean 'momentum'"),
        (lambda: build("sgd", [p], 0.1, beta1=0.9), "unknown option of SGD 'beta1'"),
        (lambda: build("m3", [p], 0.1, reading="sums"), "value of reading 'sums'; did you mean 'sum'"),
        (lambda: build("sgd", [p], -0.1), "lr = -0.1"),
        (lambda: build("sgd", [p], math.nan), "lr = nan"),
        (lambda: build("sgd", [p], 0.1, period=0), "period = 0"),
        (lambda: build("sgd", [p], 0.1, period=2.5), "period = 2.5"),
        (lambda: build("m3", [p], 0.1, slow_period=0), "slow_period = 0"),
        (lambda: build("deep_momentum", [p], 0.1, hidden=1.5), "hidden = 1.5"),
        (lambda: build("preconditioned", [p], 0.1, rate=0), "rate = 0"),
        (lambda: build("preconditioned", [p], 0.1, rate=2), "rate = 2"),
        *((lambda rung=rung: build(rung, [p], 0.1, momentum=1.0), "momentum = 1.0: must be below 1")
          for rung in ("muon", "m3", "nonlinear")),
        (lambda: build("sgd", [], 0.1), "params is empty"),
        (lambda: build("sgd", [{"parameters": [p]}], 0.1), "unknown option of SGD 'parameters'"),
        (lambda: build("sgd", [{"params": [p]}, {"params": [q, p]}], 0.1), "appears twice"),
        (lambda: feed(build("sgd", [p], 0.1), p, np.zeros(3)), r"weight has data of shape \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="not a rung"):
        feed(optimizers.Optimizer([p], 0.1), p, np.zeros(2))


# The file itself.


@every_rung
def test_every_rung_learns_the_regression_of_the_trace(name):
    _, _, losses = optimizers.best_walk(name, np.zeros((2, 3)), optimizers.regression, 50, 2)
    assert losses[-1] < 0.3 * losses[0]  # DGD as printed comes to rest half-way, at a quarter of the loss


@pytest.mark.parametrize("f", [ladder.quadratic, ladder.ravine, ladder.curved_valley, ladder.toy])
def test_landscapes_have_their_gradients(f):
    """The last is the paper's [A 53]."""
    x, y, h = 0.3, -0.7, 1e-6
    slopes = (f(x + h, y)[0] - f(x - h, y)[0]) / (2 * h), (f(x, y + h)[0] - f(x, y - h)[0]) / (2 * h)
    close(f(x, y)[1:], slopes, rtol=1e-6)


def test_momentum_forgets_a_task_that_sums_and_slow_averages_keep():
    """Orthogonal tasks in turn [A 45], learning rates as `python optimizers.py --context` finds them."""

    def kept(name, key, lr):
        return optimizers.due_to_the_first(name, lr, optimizers.orthogonal_tasks(), 25)[key]

    after = kept("momentum", "m", 0.01)
    assert after[0] == 1 and after[1] < 0.2 and after[3] < 0.9**75 * 10  # βⁱ, whatever has come since
    assert kept("adamw", "m", 0.05)[3] < 0.01 < 0.1 < kept("adamw", "v", 0.05)[3]
    assert min(kept("adagrad", "v", 1.0)[3], kept("m3", "slow", 0.2)[3], kept("multi_timescale", "slow", 0.05)[3]) > 0.2


def test_what_is_left_in_momentum_spoils_a_task_that_sgd_would_keep():
    loss = {name: optimizers.in_turn(name, lr, optimizers.orthogonal_tasks(), 25)[1][24::25, 0]
            for name, lr in (("sgd", 1.0), ("momentum", 0.01), ("muon", 0.3))}
    assert loss["sgd"][-1] < 1e-20
    assert loss["momentum"][-1] > 10 * loss["momentum"][0] and loss["muon"][-1] > 100 * loss["muon"][0]


@pytest.mark.slow
def test_the_trace_names_every_rung_and_the_picture_is_drawn(tmp_path, capsys):
    with np.errstate(all="ignore"):
        optimizers.trace(), optimizers.context()
        ladder.draw_paths(tmp_path / "paths.png", steps=1)
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n{name} ") >= 2 for name in OPTIMIZERS)
    assert (tmp_path / "paths.png").read_bytes()[:4] == b"\x89PNG"


@every_rung
def test_the_number_of_threads_changes_no_bit_of_a_step(name, monkeypatch):
    monkeypatch.setattr(runtime, "GRAIN", 0)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(runtime, "_threads", threads)
        params = [parameter(draw(n, 6, seed=n), np.float32) for n in (5, 6, 9, 4, 7)]
        optimizer = build(name, params, 0.1)
        for step in range(3):
            for n, p in enumerate(params):
                p.grad = draw(*p.data.shape, seed=10 * step + n).astype(np.float32)
            optimizer.step()
        found.append([p.data for p in params])
    for one, three in zip(*found, strict=True):
        same(one, three)
