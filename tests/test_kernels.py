"""What kernels.py promises: a twin is its reference, a reference its definition, a backward its slope."""

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import PAIRS, launch

ROOT = Path(kernels.__file__).parent
DTYPES = np.float32, np.float64
LENGTHS = 1, 7, 63, 64, 65
FORMS = {
    "recurrent": (kernels.delta_rule_recurrent, kernels.delta_rule_recurrent_backward),
    "chunked": (kernels.delta_rule_chunked, kernels.delta_rule_chunked_backward),
    "compiled": (kernels.delta_rule, kernels.delta_rule_backward),
}
needs_jit = pytest.mark.skipif(not kernels.JIT, reason="twins need Numba")
if not kernels.JIT:
    del FORMS["compiled"]


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rule_inputs(N=2, T=9, d_k=5, d_v=4, dtype=np.float64, decay=0.2, seed=0):
    """q, k, v, log_a, b, c, S0 with ‖k‖ near 1; log_a is uniform in −decay…0."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((N, T, d_k)), rng.standard_normal((N, T, d_k)) / np.sqrt(d_k),
              rng.standard_normal((N, T, d_v)), -decay * rng.random((N, T)),
              rng.random((N, T)), rng.random((N, T)), rng.standard_normal((N, d_v, d_k))]
    return [x.astype(dtype) for x in inputs]


def rule_cotangents(inputs, seed=1):
    return [draw(*inputs[i].shape, dtype=inputs[i].dtype, seed=seed + i) for i in (2, 6)]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def assert_close(found, expected, tolerance):
    """Equal shapes and dtypes, and no element off by more than `tolerance` of the largest expected one."""
    for x, y in zip(as_tuple(found), as_tuple(expected), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        assert np.max(np.abs(x - y), initial=0) <= tolerance * np.max(np.abs(y), initial=1)


def assert_derivative(function, inputs, cotangents, gradients, step=1e-6):
    """⟨gradient, direction⟩ = d⟨outputs, cotangents⟩/d(direction) for each input, by central differences."""
    def value(arrays):
        return sum(np.sum(z * bar) for z, bar in zip(as_tuple(function(*arrays)), cotangents, strict=True))

    for i, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        direction = draw(*x.shape, seed=100 + i)
        up, down = (value([*inputs[:i], x + sign * step * direction, *inputs[i + 1:]]) for sign in (1, -1))
        assert np.sum(gradient * direction) == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-7)


# --- the delta rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("d_k, d_v, decay", [(5, 4, 0.2), (8, 33, 8.0), (1, 1, 60.0), (64, 32, 0.01)])
def test_chunked_and_compiled_are_the_recurrence_forwards_and_backwards(T, d_k, d_v, decay):
    inputs = rule_inputs(T=T, d_k=d_k, d_v=d_v, decay=decay)
    bars = rule_cotangents(inputs)
    forward, backward = FORMS["recurrent"]
    expected = forward(*inputs), backward(*inputs, *bars)
    for forward, backward in FORMS.values():
        assert_close(forward(*inputs), expected[0], 1e-12)
        assert_close(backward(*inputs, *bars), expected[1], 1e-11)


@pytest.mark.parametrize("chunk", [1, 2, 16, 100])
def test_the_chunk_size_changes_nothing(chunk):
    inputs = rule_inputs(T=37)
    bars = rule_cotangents(inputs)
    assert_close(kernels.delta_rule_chunked(*inputs, chunk=chunk),
                 kernels.delta_rule_recurrent(*inputs), 1e-12)
    assert_close(kernels.delta_rule_chunked_backward(*inputs, *bars, chunk=chunk),
                 kernels.delta_rule_recurrent_backward(*inputs, *bars), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T, decay", [(1, 0.2), (7, 3.0), (65, 0.2), (65, 40.0)])
def test_every_backward_is_the_derivative_of_the_recurrence(form, T, decay):
    inputs = rule_inputs(T=T, decay=decay)
    bars = rule_cotangents(inputs)
    assert_derivative(kernels.delta_rule_recurrent, inputs, bars, FORMS[form][1](*inputs, *bars))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N, T", [(0, 5), (3, 0), (0, 0)])
def test_no_sequence_and_no_token_are_fine(form, N, T):
    inputs = rule_inputs(N, T)
    o, S = FORMS[form][0](*inputs)
    assert o.shape == (N, T, 4) and np.array_equal(S, inputs[6])
    S += 1
    assert np.array_equal(inputs[6], rule_inputs(N, T)[6])  # the state returned is not the one given
    bars = rule_cotangents(inputs)
    *gradients, S_bar = FORMS[form][1](*inputs, *bars)
    assert [g.shape for g in gradients] == [x.shape for x in inputs[:6]] and np.array_equal(S_bar, bars[1])


@pytest.mark.parametrize("form", FORMS)
@given(cut=st.integers(0, 70), seed=st.integers(0, 99))
def test_two_calls_with_a_carried_state_are_one(form, cut, seed):
    *tokens, S0 = rule_inputs(T=70, seed=seed, decay=2.0)
    forward = FORMS[form][0]
    o1, S = forward(*(x[:, :cut] for x in tokens), S0)
    o2, S = forward(*(x[:, cut:] for x in tokens), S)
    assert_close((np.concatenate([o1, o2], 1), S), forward(*tokens, S0), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 10])
def test_no_bit_of_a_read_depends_on_a_later_token_however_long_the_keys(form, length):
    inputs = rule_inputs(1, 16)
    inputs[1] *= length
    before, _ = FORMS[form][0](*inputs)
    for t in range(16):
        for change in (1e-3, 1e3):
            other = [x.copy() for x in inputs]
            for x in other[:6]:
                x[:, t] *= change
            assert np.array_equal(FORMS[form][0](*other)[0][:, :t], before[:, :t])


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(dtype):
    inputs = rule_inputs(5, 40, 16, 40, dtype)
    bars = rule_cotangents(inputs)
    together = kernels.delta_rule(*inputs) + kernels.delta_rule_backward(*inputs, *bars)
    for n in range(5):
        one = [x[n:n + 1] for x in inputs]
        alone = kernels.delta_rule(*one) + kernels.delta_rule_backward(*one, *(x[n:n + 1] for x in bars))
        assert all(np.array_equal(x[n:n + 1], y) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_float32_survives_a_retention_of_a_thousandth_over_200_tokens(form):
    inputs = rule_inputs(T=200, d_k=16, d_v=16)
    inputs[3][0], inputs[3][1] = np.log(1e-3), 0
    inputs[3][1, ::50] = -100  # one sequence forgets all the time, the other now and then, completely
    bars = rule_cotangents(inputs)
    forward, backward = FORMS[form]
    single = [x.astype(np.float32) for x in inputs + bars]
    found = forward(*single[:7]) + backward(*single)
    assert all(np.all(np.isfinite(x)) for x in found)
    exact = kernels.delta_rule_recurrent(*inputs) + kernels.delta_rule_recurrent_backward(*inputs, *bars)
    assert_close(found, tuple(x.astype(np.float32) for x in exact), 2e-5)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "recurrent"])
def test_float32_keeps_a_retention_that_it_cannot_write_as_a_number(form):
    q, k, v, log_a, b, c, S0 = rule_inputs(1, 4096, 4, 4, np.float32)
    log_a[:] = -1e-8  # e^log_a rounds to 1
    _, S = FORMS[form][0](q, k, v, log_a, 0 * b, 0 * c, S0)
    assert np.exp(np.float32(-1e-8)) == 1
    assert np.mean(S / S0) == pytest.approx(np.exp(-4096e-8), abs=1e-6) and np.all(S / S0 < 1)


def by_hand(rule, q, k, v, alpha, beta, S):
    """The table of paper.md §1, each rule as its own paper writes it, for one sequence."""
    o = np.empty_like(v)
    for t in range(len(k)):
        o[t] = S @ q[t]
        error = S @ k[t] - v[t]
        if rule == "hebbian":
            S = S + np.outer(v[t], k[t])
        elif rule == "retention":
            S = alpha[t] * S + np.outer(v[t], k[t])
        elif rule == "delta":
            S = S - beta[t] * np.outer(error, k[t])
        elif rule == "gated delta":
            S = alpha[t] * S @ (np.eye(len(k[t])) - beta[t] * np.outer(k[t], k[t]))
            S = S + beta[t] * np.outer(v[t], k[t])
    return o, S


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["hebbian", "retention", "delta", "gated delta"])
def test_the_rules_of_the_table_are_settings_of_the_family(form, rule):
    q, k, v, log_alpha, beta, _, S0 = rule_inputs(3, 20)
    alpha, one = np.exp(log_alpha), np.ones_like(beta)
    log_a, b, c = {"hebbian": (0 * one, 0 * one, one), "retention": (log_alpha, 0 * one, one),
                   "delta": (0 * one, beta, beta), "gated delta": (log_alpha, alpha * beta, beta)}[rule]
    o, S = FORMS[form][0](q, k, v, log_a, b, c, S0)
    for n in range(3):
        assert_close((o[n], S[n]), by_hand(rule, *(x[n] for x in (q, k, v, alpha, beta, S0))), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_hebbian_reads_are_linear_attention_over_the_past(form):
    q, k, v, _, b, _, S0 = rule_inputs(2, 30)
    o, _ = FORMS[form][0](q, k, v, 0 * b, 0 * b, np.ones_like(b), 0 * S0)
    assert_close(o, np.tril(q @ np.swapaxes(k, 1, 2), -1) @ v, 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0])
def test_delta_gradient_descent_is_the_proximal_step_minimised_numerically(form, eta):
    """W ← argmin ½‖W x − u‖² + ‖W − W_t‖²/(2η)  [A 56–57, 113–121; N 27–29], by gradient descent."""
    W, x, u = draw(4, 5, seed=1), draw(5, seed=2), draw(4, seed=3)
    best, rate = W, 1 / (x @ x + 1 / eta)
    for _ in range(2000):
        best = best - rate * (np.outer(best @ x - u, x) + (best - W) / eta)
    exact = np.full((1, 1), eta / (1 + eta * x @ x))
    _, S = FORMS[form][0](x[None, None], x[None, None], u[None, None], 0 * exact, exact, exact, W[None])
    assert_close(S[0], best, 1e-10)


# --- every pair ---------------------------------------------------------------------------------------------


def arguments(name, dtype=np.float64, B=3, T=7, D=5):
    """Arguments for every kernel of PAIRS, by name."""
    x, y_bar, w = (draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(B, T, D)] * 2 + [(D,)]))
    tail, taps = draw(B, 3, D, dtype=dtype, seed=3), draw(4, D, dtype=dtype, seed=4)
    rule = rule_inputs(B, T, D, D + 1, dtype)
    targets = np.random.default_rng(5).integers(0, D, (B, T))
    targets.reshape(-1)[::4] = -100
    q, g = (draw(B, 2, T, D, dtype=dtype, seed=i) for i in (8, 9))
    k, v = (draw(B, 2, T + 3, D, dtype=dtype, seed=i) for i in (10, 11))
    return {
        "delta_rule": rule,
        "delta_rule_backward": [*rule, *rule_cotangents(rule)],
        "gelu": [x],
        "gelu_backward": [x, y_bar],
        "rms_norm": [x, w],
        "rms_norm_backward": [x, w, kernels.rms_norm_reference(x, w)[1], y_bar],
        "cross_entropy": [x, targets],
        "cross_entropy_backward": [x, targets, kernels.cross_entropy_reference(x, targets)[1], y_bar[..., 0]],
        "adamw": [x, y_bar, draw(B, T, D, dtype=dtype, seed=6), draw(B, T, D, dtype=dtype, seed=7) ** 2,
                  1e-2, 0.9, 0.99, 1e-8, 0.1, 3],
        "causal_conv": [x, tail, taps],
        "causal_conv_backward": [x, tail, taps, y_bar, 2 * tail],
        "attention": [q, k, v],
        "attention_backward": [q, k, v, *kernels.attention_reference(q, k, v), g],
    }[name]


def call(function, name, args):
    """The outputs of a kernel on copies of its arguments; AdamW's are what it changed in place."""
    args = [x.copy() if hasattr(x, "copy") else x for x in args]
    result = function(*args)
    return tuple(args[i] for i in (0, 2, 3)) if name == "adamw" else as_tuple(result)


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_every_twin_is_its_reference(name, dtype):
    for B, T, D in [(3, 7, 5), (1, 1, 1), (2, 65, 64), (0, 4, 3), (2, 0, 3), (2, 2, 300)]:
        args = arguments(name, dtype, B, T, D)
        reference, twin = (call(function, name, args) for function in PAIRS[name])
        assert_close(twin, reference, 1e-5 if dtype == np.float32 else 1e-12)


@needs_jit
@pytest.mark.parametrize("name", PAIRS)
def test_every_output_is_written_wholly(name, monkeypatch):
    def nan_filled(allocate):
        def allocate_nan(*args, **kwargs):
            array = allocate(*args, **kwargs)
            if array.dtype.kind == "f":
                array.fill(np.nan)
            return array
        return allocate_nan

    for B, T, D in [(3, 7, 5), (2, 65, 64)]:
        args = arguments(name, np.float32, B, T, D)
        clean = call(PAIRS[name][1], name, args)
        with monkeypatch.context() as patch:
            for allocate in ("empty", "empty_like"):
                patch.setattr(np, allocate, nan_filled(getattr(np, allocate)))
            assert np.isnan(np.empty(1)).all()
            filled = call(PAIRS[name][1], name, args)
        assert all(np.array_equal(x, y) and np.isfinite(y).all() for x, y in zip(clean, filled, strict=True))


@needs_jit
@pytest.mark.parametrize("name", PAIRS)
def test_the_number_of_threads_changes_no_bit(name, monkeypatch):
    monkeypatch.setattr(kernels, "ALONE", 0)
    numba = pytest.importorskip("numba")
    before, most = kernels._threads, numba.config.NUMBA_NUM_THREADS
    if most < 2:
        pytest.skip("Numba has one thread")
    args, found = arguments(name, np.float32, 5, 40, 64), []
    try:
        for n in (1, 2, most):
            kernels.set_threads(n)
            found.append(call(PAIRS[name][1], name, args))
    finally:
        kernels.set_threads(before)
    assert all(np.array_equal(x, y) for result in found[1:] for x, y in zip(found[0], result, strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_launch_takes_views_read_only_and_unaligned_arrays_and_compiles_nothing_more_for_them(name):
    args = arguments(name, np.float32)
    expected = call(PAIRS[name][0], name, args)
    call(lambda *x: launch(name, *x), name, args)
    signatures = [len(dispatcher.signatures) for dispatcher in kernels._DISPATCHERS.values()]
    reverse = [x[::-1].copy()[::-1] if isinstance(x, np.ndarray) else x for x in args]
    swapped = [np.asfortranarray(x) if isinstance(x, np.ndarray) else x for x in args]
    unaligned = [np.frombuffer(b" " + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
                 if isinstance(x, np.ndarray) else x for x in args]
    for variant in (reverse, swapped) if name == "adamw" else (reverse, swapped, unaligned):
        result = launch(name, *variant)
        found = tuple(variant[i] for i in (0, 2, 3)) if name == "adamw" else as_tuple(result)
        assert_close(found, expected, 1e-5)
    assert signatures == [len(dispatcher.signatures) for dispatcher in kernels._DISPATCHERS.values()]


@needs_jit
@pytest.mark.parametrize("name", PAIRS)
def test_a_shape_that_does_not_fit_is_refused_before_it_is_read(name):
    args = arguments(name)
    for i in range(1, len(args)):
        if isinstance(args[i], np.ndarray):
            with pytest.raises(ValueError, match=r"shape|must match"):
                launch(name, *args[:i], np.concatenate([args[i], args[i]], -1), *args[i + 1:])


# --- one chunk of self-modifying Titans; test_memory.py holds it against its definition ---------------------


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n", [(64, 64, 64), (3, 5, 1), (9, 1, 32), (17, 40, 37), (1, 64, 96)])
def test_products_and_transposes_of_any_shape_are_numpys(m, k, n, dtype):
    A, B, C = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1), draw(m, n, dtype=dtype, seed=2)
    expected = C + A @ B, A @ B
    for left in (A, np.ascontiguousarray(A.T).T):
        found = C.copy()
        kernels._add(found, left, B)
        assert_close((found, kernels._product(left, B)), expected, 1e-5 if dtype == np.float32 else 1e-13)
    assert np.array_equal(kernels._turned(C), C.T)
    for triangle, half in ((1, np.triu(B)), (-1, np.tril(B))):  # the other need not be read
        assert_close((kernels._product(A, half, triangle),), (A @ half,), 1e-5 if dtype == np.float32 else 1e-13)


def titans_inputs(B=3, H=2, n=40, d=32, h=16, dtype=np.float32, start=False, seed=0):
    """Arguments of `kernels.titans` for one piece, and cotangents of what it returns."""
    names, seeds = ("k", "eta", "memory"), itertools.count(100 * seed)

    def layers(*lead, scale=1.0):
        return {name: [scale * draw(*lead, *shape, dtype=dtype, seed=next(seeds)) / 4
                       for shape in ((h, d), (1 if name == "eta" else d, h))] for name in names}
    feeds = [draw(B, H, n, d, dtype=dtype, seed=next(seeds)) for _ in range(4)]
    bias = [draw(H, dtype=dtype, seed=next(seeds)) for _ in range(2)]
    readout = [draw(H, 1, d, dtype=dtype, seed=next(seeds)) / 4 for _ in range(2)]
    inputs = [names, True, False, 0.5, [(n, dict.fromkeys(names, 0) | ({"k": -1} if start else {}))], feeds, bias,
              readout, layers(H), layers(B, H, scale=dtype(0.1)), {"k": layers(B, H)["k"]} if start else {}]
    return inputs, [draw(B, H, n, d, dtype=dtype, seed=next(seeds)), layers(B, H)]


def titans_and_back(settings, inputs, bars):
    """Arrays of o and the drifts after, and of all that `kernels.titans_backward` returns."""
    o, after, trail = kernels.titans(*settings, *inputs)
    return arrays_in([o, after, kernels.titans_backward(*settings, trail, *inputs, *bars)])


def arrays_in(nest):
    if isinstance(nest, np.ndarray):
        return [nest]
    return [x for part in (nest.values() if isinstance(nest, dict) else nest) for x in arrays_in(part)]


@needs_jit
def test_the_number_of_threads_changes_no_bit_of_a_chunk(monkeypatch):
    monkeypatch.setattr(kernels, "ALONE", 0)
    numba = pytest.importorskip("numba")
    before, most, found = kernels._threads, numba.config.NUMBA_NUM_THREADS, []
    inputs, bars = titans_inputs(start=True)
    try:
        for threads in (1, most):
            kernels.set_threads(threads)
            found.append(titans_and_back(inputs[:5], inputs[5:], bars))
    finally:
        kernels.set_threads(before)
    assert all(np.array_equal(x, y) for x, y in zip(*found, strict=True)) and len(found[0]) == 29


@needs_jit
@pytest.mark.parametrize("n", [1, 33])
def test_no_bit_of_a_read_in_a_chunk_depends_on_a_later_token(n):
    inputs, _ = titans_inputs(n=n + 1)
    o = kernels.titans(*inputs)[0]
    for feed in inputs[5]:
        feed[:, :, n] *= 1e3
    changed = kernels.titans(*inputs)[0]
    assert np.array_equal(o[:, :, :n], changed[:, :, :n]) and not np.array_equal(o[:, :, n], changed[:, :, n])


@needs_jit
def test_a_chunk_takes_views_and_names_a_shape_that_does_not_fit():
    inputs, bars = titans_inputs()
    expected = titans_and_back(inputs[:5], inputs[5:], bars)
    views = [[np.asfortranarray(x) for x in inputs[5]], *inputs[6:]]
    views[4] = {name: [x[::-1].copy()[::-1] for x in layers] for name, layers in inputs[9].items()}
    found = titans_and_back(inputs[:5], views, bars)
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))
    inputs[9] = {**inputs[9], "k": [x[1:] for x in inputs[9]["k"]]}
    with pytest.raises(ValueError, match=r"now has shape \(2, 2, 16, 32\); .* \(3, 2, 16, 32\)"):
        kernels.titans(*inputs)
    for misfit in (titans_inputs(n=0)[0], [("k", "memory"), *titans_inputs()[0][1:]]):
        with pytest.raises(ValueError, match=r"at least one, .* a state for each of the memories that learn"):
            kernels.titans(*misfit)
    inputs, _ = titans_inputs()
    for seen, said in (({"k": -1}, "a start for none, where the first piece says"),
                       ({"eta": 1}, "errors of piece 0 see"),
                       ({"other": 0}, "errors of piece 0 see .* or -1 where there is a start")):
        inputs[4] = [(40, dict.fromkeys(inputs[0], 0) | seen)]
        with pytest.raises(ValueError, match=said):
            kernels.titans(*inputs)


@needs_jit
def test_the_way_back_of_chunks_names_a_shape_that_does_not_fit():
    inputs, (o_bar, after_bar) = titans_inputs()
    inputs[4] = [(20, dict.fromkeys(inputs[0], 0)), (20, dict.fromkeys(inputs[0], 1))]
    settings, trail = inputs[:5], kernels.titans(*inputs)[2]
    short = {name: [x[:2] for x in layers] for name, layers in after_bar.items()}
    with pytest.raises(ValueError, match=r"after_bar has shape \(2, 2, 16, 32\); .* \(3, 2, 16, 32\)"):
        kernels.titans_backward(*settings, trail, *inputs[5:], o_bar, short)
    with pytest.raises(ValueError, match=r"trail has shape \(3, 2, 16, 32\); .* \(1, 3, 2, 16, 32\)"):
        kernels.titans_backward(*settings, after_bar, *inputs[5:], o_bar, after_bar)


@needs_jit
@pytest.mark.parametrize("lengths", [(16, 24), (2, 7, 31), (5, 5, 5, 25)], ids=str)
def test_pieces_at_once_are_the_pieces_one_after_another(lengths):
    """Where memory k still sees its start, and the others see the piece before the last or the present one."""
    inputs, bars = titans_inputs(n=40, dtype=np.float64, start=True)
    inputs[4] = [(n, {"k": -1, "eta": max(0, p - 1), "memory": p}) for p, n in enumerate(lengths)]
    *settings, _ = inputs[:5]
    found, (feeds, *shared, now, start), states, reads, t = (
        titans_and_back(inputs[:5], inputs[5:], bars), inputs[5:], [inputs[9]], [], 0)
    calls, back = [], []
    for n, seen in inputs[4]:
        began = {name: (start if p < 0 else states[p])[name] for name, p in seen.items() if p != len(states) - 1}
        one = ([(n, {name: -(name in began) for name in seen})], [z[:, :, t:t + n] for z in feeds], *shared,
               states[-1], began)
        o, after, trail = kernels.titans(*settings, *one)
        assert trail == {}
        calls.append(one)
        reads.append(o)
        states.append(after)
        t += n
    assert np.array_equal(found[0], np.concatenate(reads, 2))
    assert all(np.array_equal(x, y) for x, y in zip(found[1:7], arrays_in(states[-1]), strict=True))

    after_bars: list[dict] = [{name: [0, 0] for name in now} for _ in lengths] + [bars[1]]  # of the states
    start_bar = [0, 0]
    for p in reversed(range(len(lengths))):
        t -= lengths[p]
        feeds_bar, *shared_bar, now_bar, began_bar = kernels.titans_backward(
            *settings, calls[p][0], {}, *calls[p][1:], bars[0][:, :, t:t + lengths[p]], after_bars[p + 1])
        back.append((feeds_bar, shared_bar))
        for name, layers in now_bar.items():
            after_bars[p][name] = [x + y for x, y in zip(after_bars[p][name], layers, strict=True)]
        for name, layers in began_bar.items():
            seen = inputs[4][p][1][name]
            into = start_bar if seen < 0 else after_bars[seen][name]
            into[:] = [x + y for x, y in zip(into, layers, strict=True)]
    expected = [np.concatenate(xs[::-1], 2) for xs in zip(*(feeds_bar for feeds_bar, _ in back), strict=True)]
    expected += [sum(xs) for xs in zip(*(arrays_in(shared_bar) for _, shared_bar in back), strict=True)]
    expected += [*arrays_in(after_bars[0]), *start_bar]
    for x, y in zip(found[7:], expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11 * np.abs(y).max())


@needs_jit
def test_where_arrays_lie_is_forgotten_with_them_and_never_taken_for_that_of_others():
    places, before = kernels._ROWS, len(kernels._ROWS)
    for seed in range(20):  # each time new arrays, many where old ones lay
        inputs, _ = titans_inputs(n=1, seed=seed)
        o, after, _ = kernels.titans(*inputs)
        fresh = [{name: [x.copy() for x in layers] for name, layers in given.items()} if isinstance(given, dict)
                 else [x.copy() for x in given] for given in inputs[5:]]
        assert np.array_equal(o, kernels.titans(*inputs[:5], *fresh)[0]) and len(places) > before
        del inputs, after, fresh
    assert len(places) == before


# --- products ------------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([np.float32, np.float64]), st.integers(1, 3))
def test_a_product_is_the_product_also_of_a_single_row(k, m, dtype, rows):
    a, w = draw(rows, k, dtype=dtype), draw(m, k, dtype=dtype, seed=1)
    for b in (w.T, np.ascontiguousarray(w.T)):
        found = kernels.product(a, b)
        assert found.dtype == dtype and np.allclose(found, a @ b, rtol=0, atol=1e-4 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble, ">f4", np.int64])
def test_a_product_of_a_single_row_takes_what_numpy_takes_and_refuses_what_it_refuses(dtype):
    a, w = np.ones((1, 8), dtype), np.ones((4, 8), dtype)
    assert np.array_equal(kernels.product(a, w.T), a @ w.T)
    for misfit in (np.ones((4, 64), dtype), np.ones((4, 4), dtype)):
        with pytest.raises(ValueError, match="mismatch"):
            kernels.product(a, misfit.T)


@needs_jit
def test_a_single_row_has_the_same_bits_on_any_number_of_threads():
    a, w, most = draw(1, 2053, dtype=np.float32), draw(1027, 2053, dtype=np.float32, seed=1), kernels._threads
    alone = None
    try:
        for threads in range(1, most + 1):
            kernels.set_threads(threads)
            found = kernels.product(a, w.T)
            assert alone is None or np.array_equal(found, alone)
            alone = found
    finally:
        kernels.set_threads(most)
    assert np.allclose(alone, a @ w.T, atol=1e-2)


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


# --- elementwise and row kernels: their definitions ---------------------------------------------------------


BACKWARD_OF = {  # forward → the differentiable arguments, and the outputs that have cotangents
    "gelu": ([0], [0]), "rms_norm": ([0, 1], [0]), "cross_entropy": ([0], [0]),
    "causal_conv": ([0, 1, 2], [0, 1]), "attention": ([0, 1, 2], [0])}


@pytest.mark.parametrize("name", BACKWARD_OF)
@pytest.mark.parametrize("T", [1, 2, 7])
@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_jit)])
def test_backward_is_the_derivative(name, T, fast):
    inputs, outputs = BACKWARD_OF[name]
    args = arguments(name, T=T)
    results = as_tuple(PAIRS[name][0](*args))
    bars = [draw(*results[i].shape, seed=50 + i) for i in outputs]
    saved = {"rms_norm": results[1:], "cross_entropy": results[1:], "attention": results}.get(name, ())
    gradients = as_tuple(PAIRS[f"{name}_backward"][fast](*args, *saved, *bars))

    def forward(*varied):
        full = list(args)
        for i, x in zip(inputs, varied, strict=True):
            full[i] = x
        return tuple(as_tuple(PAIRS[name][0](*full))[i] for i in outputs)

    assert_derivative(forward, [args[i] for i in inputs], bars, gradients)


@needs_jit
def test_float32_gelu_is_within_a_few_ulp_and_keeps_the_tail_that_tanh_loses():
    x = np.linspace(-9, 9, 100_001).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    assert np.max(np.abs(exact - kernels.gelu_reference(wide))) < 1e-14
    ulp = np.abs(kernels.gelu(x) - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert np.max(ulp[x > -1]) < 4 and np.max(ulp[x > -5]) < 64  # the exponent of e^−2s is rounded, too


@needs_jit
@pytest.mark.parametrize("name", ["gelu", "gelu_backward", "rms_norm", "cross_entropy",
                                  "cross_entropy_backward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_not_hidden(name, dtype):
    args = arguments(name, dtype)
    args[0][0, 1, 2] = np.nan
    assert np.isnan(as_tuple(PAIRS[name][1](*args))[0][0, 1]).any()


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_bears_large_and_masked_logits(dtype):
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [0, -np.inf, 0]], dtype)
    targets = np.array([0, 1, 2])
    for loss, z in (function(logits, targets) for function in PAIRS["cross_entropy"]):
        assert np.allclose(loss, [0, np.log(3), np.log(2)], atol=1e-3)
        p = kernels.cross_entropy_backward(logits, targets, z, np.ones(3, dtype)) + np.eye(3, dtype=dtype)
        assert np.allclose(np.sum(p, -1), 1, atol=2e-3) and np.all(np.isfinite(p))


@pytest.mark.parametrize("function", PAIRS["cross_entropy"])
def test_cross_entropy_names_a_target_outside_the_vocabulary(function):
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match=r"0\.\.4 .* found 0\.\.5"):
        function(logits, np.array([0, 5]))
    with pytest.raises(ValueError, match="-100"):
        function(logits, np.array([0, -1]))
    assert function(logits, np.array([-1, -1]), -1)[0].tolist() == [0, 0]


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_jit)])
def test_adamw_moves_by_the_learning_rate_at_first_and_decays_by_itself(fast):
    p, g = draw(3, 4), draw(3, 4, seed=1)
    before, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    PAIRS["adamw"][fast](p, g, m, v, 0.1, 0.9, 0.999, 0.0, 0.5, 1)
    assert np.allclose(p, before * (1 - 0.1 * 0.5) - 0.1 * np.sign(g))
    assert np.allclose(m, 0.1 * g) and np.allclose(v, 0.001 * g * g)


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_jit)])
@given(cut=st.integers(0, 9))
def test_convolution_in_two_calls_is_one_and_sees_only_the_past(fast, cut):
    x, tail, w = arguments("causal_conv", T=9)
    conv = PAIRS["causal_conv"][fast]
    first, middle = conv(x[:, :cut], tail, w)
    second, last = conv(x[:, cut:], middle, w)
    assert_close((np.concatenate([first, second], 1), last), conv(x, tail, w), 1e-15)
    changed = x.copy()
    changed[:, cut:] += 1
    assert np.array_equal(conv(changed, tail, w)[0][:, :cut], conv(x, tail, w)[0][:, :cut])


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


@pytest.mark.parametrize("name", PAIRS)
def test_references_run_on_arrays_of_another_library(name):
    args = arguments(name)
    expected = call(PAIRS[name][0], name, args)
    found = call(lambda *foreign: launch(name, *foreign), name, wrap(args))
    assert all(isinstance(x, Foreign) for x in found)
    assert_close(unwrap(found), expected, 1e-15)


def test_a_registered_twin_runs_for_its_array_type(monkeypatch):
    monkeypatch.setattr(kernels, "_REGISTERED", {})
    kernels.register(Foreign, "gelu", lambda x: "the twin")
    assert launch("gelu", Foreign(np.ones(3))) == "the twin"
    assert isinstance(launch("gelu", np.ones(3)), np.ndarray)
    with pytest.raises(KeyError, match=r"no kernel is called 'glue'; there are delta_rule, .*gelu"):
        kernels.register(Foreign, "glue", print)
    with pytest.raises(KeyError, match="glue"):
        launch("glue", np.ones(3))


@needs_jit
def test_launch_runs_the_twin_for_floats_and_the_reference_for_the_rest(monkeypatch):
    monkeypatch.setitem(PAIRS, "gelu", (lambda x: "reference", lambda x: "twin"))
    kinds = {dtype: launch("gelu", np.ones(3, dtype)) for dtype in ("f4", "f8", "f2", "i8")}
    assert kinds == {"f4": "twin", "f8": "twin", "f2": "reference", "i8": "reference"}


@needs_jit
def test_compiled_names_the_loops_that_are_and_their_dtypes():
    launch("gelu", np.ones(3, np.float32))
    assert "float32" in kernels.compiled()["_gelu"]
    assert {"_scan_forward", "_scan_backward", "_adamw"} <= set(kernels.compiled())


def test_every_part_is_done_once_by_threads_and_what_goes_wrong_in_one_is_raised(monkeypatch):
    monkeypatch.setattr(kernels, "_threads", 3)
    done = np.zeros(10, int)

    def loop(start, stop, fails):
        done[start:stop] += 1
        if start == fails:
            raise ArithmeticError(f"from {start} on")
    for work in (0, kernels.ALONE):
        kernels.split(loop, len(done), work, None)
    assert np.all(done == 2)
    with pytest.raises(ArithmeticError, match="from 3 on"):
        kernels.split(loop, len(done), kernels.ALONE, 3)
    assert np.all(done == 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    out, _ = run_python("""
import os, numpy as np, kernels
kernels._threads = 2
def loop(start, stop, x): x[start:stop] += 1
kernels.split(loop, 4, kernels.ALONE, np.zeros(4))
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
else:
    x = np.zeros(4)
    kernels.split(loop, 4, kernels.ALONE, x)
    os._exit(0 if x.sum() == 4 else 1)
print("done")
""")
    assert out == "done\n"


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_threads_that_cannot_be_is_refused(n):
    with pytest.raises(ValueError, match=f"{n} threads; choose 1 to"):
        kernels.set_threads(n)


def run_python(code, **environment):
    """Run code in a fresh interpreter; returns its stdout and stderr."""
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env=os.environ | path | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


RUN_ALL = """
from test_kernels import *
for name in PAIRS:
    args = arguments(name, np.float32)
    a, b = call(lambda *x: launch(name, *x), name, args), call(PAIRS[name][0], name, args)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), name
kernels.set_threads(2)
print(kernels.JIT, kernels.compiled())
"""


def test_everything_works_with_jit_disabled_and_nothing_is_said():
    out, err = run_python(RUN_ALL, NUMBA_DISABLE_JIT="1")
    assert out == "False {}\n" and err == ""


def test_everything_works_without_numba_and_it_is_said_once():
    out, err = run_python("import sys; sys.modules['numba'] = None\n" + RUN_ALL)
    assert out == "False {}\n"
    assert err.count("\n") == 1 and err.startswith("Numba cannot be used (") and "references" in err


@needs_jit
def test_twins_are_compiled_afresh_where_no_cache_folder_can_be_written():
    code = f"""
import types
import numpy as np
kernels, source = types.ModuleType("kernels"), open({str(ROOT / 'kernels.py')!r}, encoding="utf-8").read()
exec(compile(source, "/no/such/folder/kernels.py", "exec"), kernels.__dict__)
p, g, m, v = (np.ones(5, np.float32) for _ in range(4))
kernels.launch("adamw", p, g, m, v, 0.1, 0.9, 0.99, 1e-8, 0.0, 1)
print(kernels.compiled()["_adamw"])
"""
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), "/proc/nothing")
    out, err = run_python(code, **nowhere)
    assert out == "['float32']\n" and err == ""


@needs_jit
def test_importing_compiles_nothing():
    out, _ = run_python("import kernels; print([d for d in kernels.compiled().values() if d])")
    assert out == "[]\n"


def test_every_kernel_has_a_test_case():
    assert all(isinstance(arguments(name), list) for name in PAIRS)
    assert set(itertools.chain(BACKWARD_OF, (f"{name}_backward" for name in BACKWARD_OF))) < set(PAIRS)
