"""What the paper prints and what is so: findings and slips of PAPER.md, as counterexamples that run."""

import math

import numpy as np
import pytest

from config import Config
from hope import Hope
from tools.timetable import timetable

K, V, EYE = np.array([0.6, 0.8, 0.0]), np.array([1.0, -2.0]), np.eye(3)


def slope(f, at, h=1e-6):
    """The gradient of a scalar function, by differences."""
    steps = h * np.eye(at.size).reshape(at.size, *at.shape)
    return np.array([f(at + d) - f(at - d) for d in steps]).reshape(at.shape) / (2 * h)


def least(f, at, rate=0.05, steps=2000):
    """Where a convex function is least, by gradient descent."""
    for _ in range(steps):
        at = at - rate * slope(f, at, 1e-4)
    return at


# --- delta gradient descent -----------------------------------------------------------------------------------


def test_with_the_l2_objective_a_pair_written_for_ever_is_read_back_at_half():
    M = np.ones((2, 3))
    for _ in range(200):
        M = M @ (EYE - 0.3 * np.outer(K, K)) - 0.3 * np.outer(M @ K - V, K)
    assert np.allclose(M @ K, V / 2)


def test_with_the_l2_objective_and_single_tokens_the_step_as_printed_turns_a_state_over():
    """Along k the factor is α − 2η, −1 at η = 1: what parity needs. The exact step η/(1 + η) never gets there."""
    def factor(step):
        M = np.ones((2, 3))
        after = M @ (EYE - step * np.outer(K, K)) - step * np.outer(M @ K, K)
        return (after @ K)[0] / (M @ K)[0]

    assert np.isclose(factor(1.0), -1)
    assert np.isclose(factor(1 / (1 + 1)), 0) and np.isclose(factor(4 / (1 + 4)), -0.6)


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


def printed_dgd(W, x, grad, eta):
    """[A 116] and, from it, α and β of [A 121] as they stand in print, with ‖x‖ = λ."""
    size = np.linalg.norm(x)
    inverse = np.linalg.inv(np.outer(x, x) + eta * np.eye(len(x)))
    alpha, beta = 1 / (size**2 + eta), size / (size**2 * eta + eta**2) - 1 / eta
    xx, gx = np.outer(x, x), np.outer(grad, x)
    return (gx + eta * W) @ inverse, W @ (np.eye(len(x)) - alpha * xx) - beta * gx


def test_the_printed_derivation_of_dgd_ascends_and_mixes_up_its_constants():
    """[A 114–121]: the target is ∇L where 113 has u = −∇L, η stands for 1/η, and 119–120 have λ for λ²."""
    W, x, t, eta = np.ones((2, 3)), 2 * K, 3 * V, 0.7
    grad = W @ x - t  # of ½‖W x − t‖²
    from_116, from_121 = printed_dgd(W, x, grad, eta)

    wrong = least(lambda A: np.sum((A @ x - grad) ** 2) / 2 + eta * np.sum((A - W) ** 2) / 2, W)
    assert np.allclose(from_116, wrong, atol=1e-6)  # so 116 solves another problem than 113
    right = least(lambda A: np.sum((A @ x + grad) ** 2) / 2 + np.sum((A - W) ** 2) / (2 * eta), W)
    rate = eta / (1 + eta * x @ x)
    assert np.allclose(W @ (EYE - rate * np.outer(x, x)) - rate * np.outer(grad, x), right, atol=1e-6)
    assert not np.allclose(from_121, from_116)  # λ for λ²: equal for λ = 1 only
    assert np.allclose(*printed_dgd(W, K, grad, eta))

    for size in (0.5, 1, 2):
        x = size * K
        moved = printed_dgd(W, x, grad, eta)[1] - W @ (EYE - np.outer(x, x) / (x @ x + eta))
        assert np.sum(moved * np.outer(grad, x)) > 0  # up the gradient


# --- self-modifying memories ----------------------------------------------------------------------------------


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


def test_a_memory_that_teaches_itself_unbounded_targets_overflows():
    m = 2.0  # k = 1, v = m x, v̂ = m v, x = 1, η = 1: m ← m − (m − m²)
    for _ in range(10):
        m = m - (m - m * m)
    assert m > 1e300
    m = 2.0
    for _ in range(10):
        m = m - (m - np.tanh(m * np.tanh(m)))
    assert abs(m) <= 1


def test_the_dot_objective_is_lowered_by_adding_the_target():
    for sign in (1, -1):
        M = np.zeros((2, 3))
        for _ in range(100):
            M = M @ (EYE - 0.3 * np.outer(K, K)) + sign * 0.3 * np.outer(V, K)
        assert np.allclose(M @ K, sign * V)


def test_squares_have_twice_the_printed_gradient():
    """−2⟨M k, v⟩ of 64 and 67, ‖M k − v‖² of 65 and 93, ‖Mᵀv‖² of 67: every printed gradient is half of it."""
    M = np.arange(6.0).reshape(2, 3)
    for objective, printed in [
        (lambda A: -2 * V @ A @ K, -np.outer(V, K)),
        (lambda A: np.sum((A @ K - V) ** 2), np.outer(M @ K - V, K)),
        (lambda A: -2 * V @ A @ K + np.sum((A.T @ V) ** 2), np.outer(V, M.T @ V) - np.outer(V, K)),
    ]:
        assert np.allclose(slope(objective, M), 2 * printed, atol=1e-6)


def test_the_delta_rule_with_its_factor_on_the_left_does_not_learn_a_pair():
    """[A 65] prints (I − η k kᵀ) M + η v kᵀ; its own gradient (M k − v) kᵀ gives M (I − η k kᵀ) + η v kᵀ."""
    v, rng = np.array([1.0, -2.0, 0.5]), np.random.default_rng(0)
    left = right = rng.standard_normal((3, 3))
    for _ in range(200):
        left = (EYE - 0.5 * np.outer(K, K)) @ left + 0.5 * np.outer(v, K)
        right = right @ (EYE - 0.5 * np.outer(K, K)) + 0.5 * np.outer(v, K)
    assert np.allclose(right @ K, v) and np.linalg.norm(left @ K - v) > 1
    with pytest.raises(ValueError):
        (EYE - 0.5 * np.outer(K, K)) @ np.ones((2, 3))  # and where values are shorter than keys, nothing at all


def test_ojas_rule_is_the_delta_rule_of_the_transpose_with_key_and_value_exchanged():
    """[A 66]: M + η v (k − Mᵀv)ᵀ = (Mᵀ(I − η v vᵀ) + η k vᵀ)ᵀ, a step on −2⟨M k, v⟩ + ‖Mᵀv‖² at half its gradient."""
    M, eta = np.arange(6.0).reshape(2, 3), 0.1
    oja = M + eta * np.outer(V, K - M.T @ V)
    assert np.allclose(oja.T, M.T @ (np.eye(2) - eta * np.outer(V, V)) + eta * np.outer(K, V))
    assert np.allclose(oja, M - eta / 2 * slope(lambda A: -2 * V @ A @ K + np.sum((A.T @ V) ** 2), M), atol=1e-6)
    with pytest.raises(ValueError):
        K[None] - (M.T @ V)[:, None] + np.zeros((2, 3))  # as printed: a row minus a column, no outer product with v


def test_the_boxes_of_a_nested_system_ascend_as_printed():
    """[A 19–20] minimise ⟨Φ x, −∇_y L⟩ + ‖Φ − θ‖²/(2η); A 9 and A 31 have + ∇_y L."""
    theta, target = np.ones((2, 3)), 3 * V

    def loss(W):
        return np.sum((W @ K - target) ** 2) / 2

    for sign, lower in ((-1, False), (1, True)):
        grad = theta @ K - target
        after = least(lambda A, s=sign, g=grad: s * (A @ K) @ g + np.sum((A - theta) ** 2) / (2 * 0.1), theta)
        assert (loss(after) < loss(theta)) == lower


# --- levels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [1, 4])
def test_the_printed_sum_of_a_level_counts_some_steps_twice(C):
    """Σ_{t=i−C}^{i} at i = C, 2C, …: how often does each step count?"""
    printed, ours = (np.zeros(4 * C + 1, int) for _ in range(2))
    for i in range(C, 4 * C + 1, C):
        printed[i - C : i + 1] += 1
        ours[i - C + 1 : i + 1] += 1
    assert np.all(ours[1:] == 1) and np.all(printed[C : 4 * C : C] == 2)


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


def test_the_first_level_of_the_chain_is_slow_by_its_index_and_fast_in_the_figure():
    """C_ℓ = max C / f_ℓ. Level 1 has the lowest frequency [A 72–73] and is applied first [A 70]; Fig. 5 begins fast."""
    figure = [(16, 1), (1, 16)]  # (relative frequency, chunk in millions of tokens) of its first and last MLP
    assert all(chunk == max(c for _, c in figure) / frequency for frequency, chunk in figure)
    ours = Config(width=8, layers=1, heads=1, segment=8, hidden=8, chunks=(1, 16), mixer="attention")
    applied = [level.chunk for level in Hope(ours, None).blocks[0].cms.levels]
    rows = {chunk: frequency for name, chunk, frequency, _ in timetable(ours, 1) if name.startswith("level")}
    assert [(rows[chunk], chunk) for chunk in applied] == figure  # ours begins fast, too
    assert sorted(figure) != figure  # by index it would begin slow


def test_the_frequencies_of_figure_7_are_periods():
    """“Lowest frequency = 2K” is called more efficient than 512: so it moves less often, once in 2K tokens."""
    context = 16_384
    moves = {label: context // label for label in (512, 2048)}
    assert moves[2048] < moves[512]  # as periods; as frequencies it would be the other way round


# --- optimisers -----------------------------------------------------------------------------------------------


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


def test_the_two_prints_of_slow_memory_point_in_opposite_directions():
    """[A 75] subtracts β₂ Σ g, Algorithm 1 adds β₃ Σ g; the fast memory adds in both, and both are read with +."""
    g, W = V[:, None] * K, np.ones((2, 3))
    fast, equation, algorithm = g, -4 * g, 4 * g
    assert np.sum((W - 0.1 * (fast + algorithm)) * g) < np.sum(W * g) < np.sum((W - 0.1 * (fast + equation)) * g)


def test_a_learning_rate_inside_newton_schulz_does_nothing():
    """[A 42]: W ← W + NS(m), m ← α m − η g. With any constant η it is the same path."""
    rng, paths = np.random.default_rng(0), []
    gradients = rng.standard_normal((5, 3, 4))
    for eta in (1e-3, 1.0):
        m, path = 0.0, []
        for g in gradients:
            m = 0.9 * m - eta * g
            path.append(orthogonal(m))
        paths.append(path)
    assert np.allclose(*paths)


def test_the_printed_newton_schulz_step_is_not_the_gradient_of_its_objective_and_stops_short():
    """[A 43–44]: O − g + 2 O(OᵀO − I) is the gradient of ½‖OᵀO − I‖² + ½‖O − g‖²."""
    rng = np.random.default_rng(0)
    U, W = np.linalg.qr(rng.standard_normal((3, 3)))[0], np.linalg.qr(rng.standard_normal((3, 3)))[0]
    g = U * [0.92, 0.38, 0.14] @ W
    X = rng.standard_normal((3, 3)) / 2

    def away(A):
        return np.sum((A.T @ A - EYE) ** 2)

    printed = X - g + 2 * X @ (X.T @ X - EYE)
    assert not np.allclose(slope(away, X), printed, atol=0.1)
    assert np.allclose(slope(lambda A: away(A) / 2 + np.sum((A - g) ** 2) / 2, X), printed, atol=1e-6)

    first = g - (2 * g @ (g.T @ g - EYE)) / 4  # from O = g the term O − g is 0, and ζ = ¼ is the cubic
    assert np.allclose(first, 1.5 * g - 0.5 * g @ g.T @ g)
    with_pull = without = g
    for _ in range(200):
        with_pull = with_pull - (with_pull - g + 2 * with_pull @ (with_pull.T @ with_pull - EYE)) / 4
        without = without - (2 * without @ (without.T @ without - EYE)) / 4
    assert np.linalg.svd(with_pull, compute_uv=False).round(2).tolist() == [0.98, 0.85, 0.77]
    assert np.allclose(np.linalg.svd(without, compute_uv=False), 1)


def test_half_and_all_but_a_hundredth_of_momentum_take_7_and_44_gradients():
    """§4.3 says 6 and 43, of weights βⁱ(1 − β) with β = 0.9."""
    total = np.cumsum(0.1 * 0.9 ** np.arange(100))
    assert total[5] < 0.5 <= total[6] and total[42] < 0.99 <= total[43]
    assert total[5] == pytest.approx(0.469, abs=1e-3) and total[42] == pytest.approx(0.989, abs=1e-3)


def test_the_printed_delta_momentum_descends_no_objective_of_its_own():
    """[A 48–49] has −η P g and no η before gᵀg; half the gradient of ‖m gᵀ − P‖² is (m gᵀ − P) g, so + η P g, η gᵀg."""
    rng = np.random.default_rng(0)
    m, g, P, eta = rng.standard_normal((2, 3)), rng.standard_normal((2, 3)), rng.standard_normal((2, 2)), 0.1
    descent = m - eta / 2 * slope(lambda A: np.sum((A @ g.T - P) ** 2), m)
    assert np.allclose(descent, m @ (EYE - eta * g.T @ g) + eta * P @ g, atol=1e-6)
    assert not np.allclose(descent, m @ (EYE - g.T @ g) - eta * P @ g, atol=0.1)


@pytest.mark.parametrize(("k", "a", "omega"), [(1, 1, 2), (1, 1, 4), (5, 1, 3), (10, 0.5, 5), (2, 2, 2)])
def test_the_printed_delta_momentum_overflows_on_the_papers_own_example(k, a, omega):
    """[A 53] from (−3.5, 2), whose first gradient has a square of 900 or more: α − ‖g‖² is far below −1."""
    def gradient(W):
        away = W[0, 0] - W[1, 1] + a * math.sin(omega * W[0, 0])
        return np.diag([2 * W[0, 0] + 2 * k * away * (1 + a * omega * math.cos(omega * W[0, 0])), -2 * k * away])

    for eta in 10.0 ** np.arange(-4, 2):
        W, m = np.diag([-3.5, 2.0]), np.zeros((2, 2))
        for _ in range(200):
            if np.abs(W).max() > 1e6:
                break
            g = gradient(W)
            m = m @ (0.9 * np.eye(2) - g.T @ g) + eta * g
            W = W - m
        assert np.abs(W).max() > 1e6


def test_the_printed_momentum_of_appendix_b_has_beta_2_on_the_wrong_side():
    """[A 104] ends in η β₂ M̃; with H = β₂ Σ g² and P = Σ g², H⁻¹ M̃ P is M̃/β₂."""
    g, beta1, beta2 = np.array([0.5, -2.0, 1.0]), 0.7, 0.3
    M, H, P = beta1 * g.sum(), beta2 * np.sum(g**2), np.sum(g**2)
    assert np.isclose(M * P / H, M / beta2) and not np.isclose(M * P / H, M * beta2)


def test_the_printed_adagrad_with_momentum_is_not_adagrad_when_beta_1_is_1():
    """[A 109–111]: M̃ sums all gradients, AdaGrad takes the newest."""
    first, second = np.array([1.0, 2.0]), np.array([-1.0, 1.0])
    printed = (first + second) / np.sqrt(first**2 + second**2)
    assert not np.allclose(printed, second / np.sqrt(first**2 + second**2))


# --- tables ---------------------------------------------------------------------------------------------------

TABLE_2 = {  # model: eight accuracies and the printed average, at 760M and at 1.3B parameters
    "Transformer++": ([37.1, 67.2, 43.8, 53.0, 65.6, 33.4, 39.1, 61.7, 50.11],
                      [42.6, 71.4, 52.3, 54.1, 69.9, 36.5, 41.8, 58.4, 53.38]),
    "Samba": ([39.2, 68.9, 47.8, 53.1, 65.8, 34.9, 38.9, 63.1, 51.46],
              [45.2, 71.5, 53.8, 55.8, 69.1, 36.7, 40.6, 63.0, 54.46]),
    "RetNet": ([34.5, 66.8, 41.2, 51.9, 63.6, 32.5, 38.8, 56.2, 48.19],
               [41.2, 71.3, 49.1, 55.2, 67.5, 34.1, 41.4, 61.0, 52.60]),
    "DeltaNet": ([36.8, 67.3, 44.5, 51.8, 64.2, 32.7, 39.6, 60.1, 49.63],
                 [41.6, 70.1, 49.4, 52.7, 67.6, 35.2, 39.7, 54.8, 51.39]),
    "RWKV-7": ([37.1, 67.3, 47.6, 52.2, 64.7, 34.2, 39.4, 61.9, 50.55],
               [46.7, 72.4, 54.9, 57.5, 71.6, 38.2, 40.7, 60.4, 55.30]),
    "Comba": ([37.5, 66.9, 48.2, 52.4, 65.1, 34.1, 40.1, 62.8, 50.89],
              [46.9, 73.1, 54.5, 57.7, 72.0, 39.1, 40.2, 60.6, 55.39]),
    "TTT": ([34.7, 67.3, 43.9, 51.0, 64.5, 33.8, 40.2, 59.6, 47.32],
            [46.8, 72.9, 55.2, 59.0, 71.8, 39.5, 39.8, 59.6, 55.58]),
    "Miras": ([38.2, 67.8, 49.3, 53.3, 63.6, 36.1, 40.9, 63.0, 51.53],
              [48.7, 73.1, 56.0, 57.4, 71.5, 37.9, 40.2, 61.3, 55.76]),
    "DLA": ([36.1, 68.0, 47.9, 52.7, 65.8, 34.6, 39.1, 59.6, 50.48],
            [44.5, 70.6, 53.9, 54.2, 69.6, 36.0, 40.8, 60.2, 53.72]),
    "Titans": ([38.1, 69.1, 48.5, 52.7, 66.2, 35.7, 40.3, 62.8, 51.68],
               [49.1, 73.1, 56.3, 59.8, 72.4, 40.8, 42.1, 61.0, 56.82]),
    "Hope": ([38.8, 69.2, 49.1, 53.6, 66.8, 36.1, 41.2, 63.4, 52.28],
             [51.0, 73.9, 57.5, 61.2, 73.8, 42.7, 42.8, 61.4, 58.04]),
}  # fmt: skip


def test_two_averages_of_table_2_are_not_those_of_their_rows():
    means = {model: [np.mean(row[:-1]) for row in rows] for model, rows in TABLE_2.items()}
    wrong = {(model, size) for model, rows in TABLE_2.items() for size in (0, 1)
             if abs(means[model][size] - rows[size][-1]) > 0.0051}
    assert wrong == {("TTT", 0), ("Comba", 1)}
    assert means["TTT"][0] == pytest.approx(49.375) and means["Comba"][1] == pytest.approx(55.5125)
    assert all(max(means, key=lambda model, n=size: means[model][n]) == "Hope" for size in (0, 1))


def test_it_is_ttt_and_not_hope_that_gains_most_with_scale_in_table_2():
    """§9.3: “with scaling the parameters, Hope show higher performance gain compare to other attention-free models”."""
    gains = {model: np.mean(large[:-1]) - np.mean(small[:-1]) for model, (small, large) in TABLE_2.items()}
    assert max(gains, key=lambda model: gains[model]) == "TTT" and gains["TTT"] > gains["Hope"] + 0.4


def test_hope_is_not_best_in_every_cell_of_table_1_and_attention_not_always_worse():
    """§9.2: best among attention-free models “across all tasks and levels of difficulties”; at 4K Titans lead twice."""
    titans = {"S-NIAH-2": (99.6, 84.6, 75.4), "S-NIAH-3": (74.2, 42.8, 21.2)}
    hope = {"S-NIAH-2": (99.2, 88.4, 78.2), "S-NIAH-3": (73.2, 46.2, 24.8)}
    assert [(task, n) for task in hope for n in range(3) if titans[task][n] > hope[task][n]] == [
        ("S-NIAH-2", 0), ("S-NIAH-3", 0)]  # fmt: skip
    transformer = [88.6, 76.4, 79.8, 100, 98.8, 94.2, 78.0, 69.2, 40.8,
                   79.4, 83.0, 61.4, 58.9, 48.0, 29.8, 37.5, 34.1, 21.5]  # fmt: skip
    hope_attention = [100, 100, 100, 100, 98.4, 94.4, 76.8, 68.8, 42.4,
                      80.2, 84.8, 60.8, 60.4, 47.8, 30.6, 35.2, 34.4, 24.8]  # fmt: skip
    assert sum(a > b for a, b in zip(transformer, hope_attention, strict=True)) == 6


def test_perplexity_improves_in_table_6_without_the_memory_of_q():
    """Its caption: “All components of Hope are positively contributing”. Its accuracy is Table 2's, rounded up."""
    perplexity, accuracy = {"Hope": 12.24, "w/o q": 12.19}, {"Hope": 58.1, "w/o q": 57.4}
    assert perplexity["w/o q"] < perplexity["Hope"] and accuracy["w/o q"] < accuracy["Hope"]
    assert np.mean([14.39, 10.08]) == pytest.approx(perplexity["Hope"], abs=0.0051)
    assert abs(np.mean(TABLE_2["Hope"][1][:-1]) - accuracy["Hope"]) > 0.06
