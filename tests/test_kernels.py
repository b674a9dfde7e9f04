"""What kernels/ promises: a twin is its definition, forwards, and backwards its derivative."""

import importlib
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from autograd import Tensor, grad
from kernels import KERNELS, runtime
from memory import FORMS as OPERATIONS

DTYPES = np.float32, np.float64
LENGTHS = 1, 7, 63, 64, 65
needs_jit = pytest.mark.skipif(not kernels.JIT, reason="twins need Numba")


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def in_operations(function, *arrays):
    """An operation on tensors, or a definition, as a function of arrays."""
    return tuple(x.data for x in as_tuple(function(*map(Tensor, arrays))))


def back_through_operations(function, *arrays_and_bars, n):
    """Cotangents of the n arrays, as autograd finds them in an operation on tensors, or in a definition."""
    inputs = [Tensor(x, requires_grad=True) for x in arrays_and_bars[:n]]
    return tuple(x.data for x in grad(as_tuple(function(*inputs)), inputs, arrays_and_bars[n:]))


def twin_back(kernel, *arrays_and_bars, n):
    """The same of a compiled twin."""
    return tuple(kernel.vjp(*arrays_and_bars[:n])[1](*arrays_and_bars[n:]))


FORMS: dict[str, tuple[Any, Any]] = {  # of the delta rule: forwards, and backwards
    name: (partial(in_operations, OPERATIONS[name]), partial(back_through_operations, OPERATIONS[name], n=7))
    for name in ("recurrent", "chunked")}
if kernels.JIT:
    FORMS["compiled"] = kernels.delta_rule, partial(twin_back, kernels.delta_rule, n=7)


def rule_inputs(N=2, T=9, d_k=5, d_v=4, dtype=np.float64, decay=0.2, seed=0):
    """q, k, v, log_a, b, c, S0 with ‖k‖ near 1; log_a is uniform in −decay…0."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((N, T, d_k)), rng.standard_normal((N, T, d_k)) / np.sqrt(d_k),
              rng.standard_normal((N, T, d_v)), -decay * rng.random((N, T)),
              rng.random((N, T)), rng.random((N, T)), rng.standard_normal((N, d_v, d_k))]
    return [x.astype(dtype) for x in inputs]


def rule_cotangents(inputs, seed=1):
    return [draw(*inputs[i].shape, dtype=inputs[i].dtype, seed=seed + i) for i in (2, 6)]


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
    inputs, chunked = rule_inputs(T=37), partial(OPERATIONS["chunked"], chunk=chunk)
    bars = rule_cotangents(inputs)
    assert_close(in_operations(chunked, *inputs), FORMS["recurrent"][0](*inputs), 1e-12)
    assert_close(back_through_operations(chunked, *inputs, *bars, n=7), FORMS["recurrent"][1](*inputs, *bars), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T, decay", [(1, 0.2), (7, 3.0), (65, 0.2), (65, 40.0)])
def test_every_backward_is_the_derivative_of_the_recurrence(form, T, decay):
    inputs = rule_inputs(T=T, decay=decay)
    bars = rule_cotangents(inputs)
    assert_derivative(kernels.delta_rule.definition, inputs, bars, FORMS[form][1](*inputs, *bars))


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
    forward, backward = FORMS["compiled"]
    together = forward(*inputs) + backward(*inputs, *bars)
    for n in range(5):
        one = [x[n:n + 1] for x in inputs]
        alone = forward(*one) + backward(*one, *(x[n:n + 1] for x in bars))
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
    exact = FORMS["recurrent"][0](*inputs) + FORMS["recurrent"][1](*inputs, *bars)
    assert_close(found, tuple(x.astype(np.float32) for x in exact), 2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strong", [-50, -10])
def test_float32_is_as_exact_where_a_fifth_of_the_tokens_forget_all(form, strong):
    inputs = rule_inputs(T=256, d_k=16, d_v=16)
    inputs[3] = np.where(draw(2, 256, seed=9) > 0.84, strong, inputs[3])
    bars, (forward, backward) = rule_cotangents(inputs), FORMS[form]
    single = [x.astype(np.float32) for x in inputs + bars]
    exact = FORMS["recurrent"][0](*inputs) + FORMS["recurrent"][1](*inputs, *bars)
    assert_close(forward(*single[:7]) + backward(*single), tuple(x.astype(np.float32) for x in exact), 3e-6)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "recurrent"])
def test_float32_keeps_a_retention_that_it_cannot_write_as_a_number(form):
    q, k, v, log_a, b, c, S0 = rule_inputs(1, 4096, 4, 4, np.float32)
    log_a[:] = -1e-8  # e^log_a rounds to 1
    _, S = FORMS[form][0](q, k, v, log_a, 0 * b, 0 * c, S0)
    assert np.exp(np.float32(-1e-8)) == 1
    assert np.mean(S / S0) == pytest.approx(np.exp(-4096e-8), abs=1e-6) and np.all(S / S0 < 1)


def by_hand(rule, q, k, v, alpha, beta, S):
    """The rules of memories that are one matrix, each as its own paper writes it, for one sequence."""
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


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_without_queries_the_same_is_written_and_any_leading_axes_will_do(name, lead):
    q, *rest = (np.reshape(np.broadcast_to(x[:1], (int(np.prod(lead)), *x.shape[1:])), (*lead, *x.shape[1:]))
                for x in rule_inputs(1, 5))
    bar = draw(*rest[-1].shape, seed=4)
    found = []
    for asked in (q, None):
        inputs = [Tensor(x, requires_grad=True) for x in rest]
        o, S = OPERATIONS[name](asked if asked is None else Tensor(asked), *inputs)
        assert (o is None) == (asked is None)
        found.append([S.data, *(g.data for g in grad(S, inputs, bar))])
    assert_close(tuple(found[0]), tuple(found[1]), 1e-13)


# --- every kernel -------------------------------------------------------------------------------------------


def arguments(name, dtype=np.float64, B=3, T=9, D=5):
    """Arrays, settings and cotangents of the results, for every kernel; attention of few queries has another way."""
    x, z_bar, w = (draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(B, T, D)] * 2 + [(D,)]))
    tail, taps = draw(B, 3, D, dtype=dtype, seed=3), draw(4, D, dtype=dtype, seed=4)
    rule = rule_inputs(B, T, D, D + 1, dtype)
    targets = np.random.default_rng(5).integers(0, D, (B, T))
    targets.reshape(-1)[::4] = -100
    q, g = (draw(B, 2, T, D, dtype=dtype, seed=i) for i in (8, 9))
    k, v = (draw(B, 2, T + 3, D, dtype=dtype, seed=i) for i in (10, 11))
    moments = draw(B, T, D, dtype=dtype, seed=6), draw(B, T, D, dtype=dtype, seed=7) ** 2
    return {
        "delta_rule": (rule, {}, rule_cotangents(rule)),
        "gelu": ([x], {}, [z_bar]),
        "swiglu": ([x, draw(B, T, D, dtype=dtype, seed=12)], {}, [z_bar]),
        "rms_norm": ([x, w], {}, [z_bar]),
        "cross_entropy": ([x], {"targets": targets}, [z_bar[..., 0]]),
        "adamw": ([x, z_bar, *moments], dict(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=3), []),
        "causal_conv": ([x, tail, taps], {}, [z_bar, 2 * tail]),
        "attention": ([q, k, v], {}, [g]),
    }[name]


def by_definition(name, arrays, settings, bars):
    """The results, and the cotangents of the arrays if there are such; of AdamW what it changed in place."""
    definition = KERNELS[name].definition
    if name == "adamw":
        arrays = [x.copy() for x in arrays]
        definition(*arrays, **settings)
        return tuple(arrays[i] for i in (0, 2, 3))
    z = as_tuple(definition(*arrays, **settings))
    return *z, *back_through_operations(partial(definition, **settings), *arrays, *bars, n=len(arrays))


def by_twin(name, arrays, settings, bars):
    """The same of the twin for these arrays; of one in place, copies that lie as the arrays do."""
    if name == "adamw":
        z, back = KERNELS[name].vjp(*arrays, **settings)
        return tuple(arrays[i] for i in (0, 2, 3))
    z, back = KERNELS[name].vjp(*arrays, **settings)
    return *as_tuple(z), *back(*bars)


SIZES = [(3, 7, 5), (1, 1, 1), (2, 65, 64), (0, 4, 3), (2, 0, 3), (2, 2, 300), (2, 9, 33)]


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_twin_is_its_definition_forwards_and_backwards(name, dtype):
    for size in SIZES:
        expected = by_definition(name, *arguments(name, dtype, *size))
        assert_close(by_twin(name, *arguments(name, dtype, *size)), expected, 1e-5 if dtype == np.float32 else 1e-12)


@needs_jit
@pytest.mark.parametrize("name", KERNELS)
def test_every_output_is_written_wholly(name, monkeypatch):
    def nan_filled(allocate):
        def allocate_nan(*args, **kwargs):
            array = allocate(*args, **kwargs)
            if array.dtype.kind == "f":
                array.fill(np.nan)
            return array
        return allocate_nan

    for size in [(3, 9, 5), (2, 65, 64)]:
        clean = by_twin(name, *arguments(name, np.float32, *size))
        with monkeypatch.context() as patch:
            for allocate in ("empty", "empty_like"):
                patch.setattr(np, allocate, nan_filled(getattr(np, allocate)))
            rule = sys.modules["kernels.delta_rule"]
            patch.setattr(rule, "aligned", nan_filled(rule.aligned))
            assert np.isnan(np.empty(1)).all()
            filled = by_twin(name, *arguments(name, np.float32, *size))
        assert all(np.array_equal(x, y) and np.isfinite(y).all() for x, y in zip(clean, filled, strict=True))


@needs_jit
@pytest.mark.parametrize("name", KERNELS)
def test_the_number_of_threads_changes_no_bit(name, monkeypatch):
    monkeypatch.setattr(runtime, "GRAIN", 0)
    most = pytest.importorskip("numba").config.NUMBA_NUM_THREADS
    if most < 2:
        pytest.skip("Numba has one thread")
    found = []
    for n in (1, 2, most):
        monkeypatch.setattr(runtime, "_threads", n)
        found.append(by_twin(name, *arguments(name, np.float32, 5, 40, 64)))
    assert all(np.array_equal(x, y) for result in found[1:] for x, y in zip(found[0], result, strict=True))


def reversed_rows(x):
    return x[::-1].copy()[::-1]


def unaligned(x):
    return np.frombuffer(b" " + x.tobytes(), x.dtype, offset=1).reshape(x.shape)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@needs_jit
@pytest.mark.parametrize("view", [reversed_rows, np.asfortranarray, unaligned, read_only])
@pytest.mark.parametrize("name", KERNELS)
def test_a_twin_takes_any_views_and_nothing_more_is_compiled_for_them(name, view):
    expected = by_twin(name, *arguments(name, np.float32))
    signatures = [len(loop.signatures) for loop in runtime._loops]
    arrays, settings, bars = arguments(name, np.float32)
    if name == "adamw" and view in (unaligned, read_only):
        pytest.skip("it writes where they lie")
    settings = {key: view(x) if isinstance(x, np.ndarray) else x for key, x in settings.items()}
    arrays = [view(x) for x in arrays]
    if name == "adamw":  # the definition
        KERNELS[name](*arrays, **settings)
        found = tuple(arrays[i] for i in (0, 2, 3))
    else:
        found = by_twin(name, arrays, settings, [view(x) for x in bars])
    assert_close(found, expected, 1e-5)
    assert signatures == [len(loop.signatures) for loop in runtime._loops]


@needs_jit
@pytest.mark.parametrize("name", KERNELS)
def test_a_shape_that_does_not_fit_is_refused_by_name_before_it_is_read(name):
    def doubled(xs, i):
        return [*xs[:i], np.concatenate([xs[i], xs[i]], -1), *xs[i + 1:]]
    arrays, settings, bars = arguments(name)
    kernel = KERNELS[name]
    for i in range(1, len(arrays)):
        with pytest.raises(ValueError, match=r"has shape .* ask for"):
            kernel(*doubled(arrays, i), **settings)
    for i in range(len(bars)):
        with pytest.raises(ValueError, match=r"has shape .* ask for"):
            kernel.vjp(*arrays, **settings)[1](*doubled(bars, i))
    for key, x in settings.items():
        if isinstance(x, np.ndarray):
            with pytest.raises(ValueError, match=r"has shape .* ask for"):
                kernel(*arrays, **{key: np.concatenate([x, x], -1)})


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "adamw"])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_the_way_back_is_the_derivative_of_the_definition(name, T):
    arrays, settings, bars = arguments(name, T=T)
    definition = partial(KERNELS[name].definition, **settings)
    ways = [back_through_operations(definition, *arrays, *bars, n=len(arrays))]
    if kernels.JIT:
        ways.append(tuple(KERNELS[name].vjp(*arrays, **settings)[1](*bars)))
    for gradients in ways:
        assert_derivative(definition, arrays, bars, gradients)


def test_every_kernel_has_a_test_case_and_a_file_of_its_name():
    for name, kernel in KERNELS.items():
        arguments(name)
        assert importlib.import_module(f"kernels.{name}").definition is kernel.definition
        assert kernel.name == name and getattr(kernels, name) is kernel


# --- what each kernel promises beyond its definition --------------------------------------------------------


@needs_jit
def test_float32_gelu_is_within_a_few_ulp_and_keeps_the_tail_that_tanh_loses():
    x = np.linspace(-9, 9, 100_001).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    assert np.max(np.abs(exact - kernels.gelu.definition(wide))) < 1e-14
    ulp = np.abs(kernels.gelu(x) - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert np.max(ulp[x > -1]) < 4 and np.max(ulp[x > -5]) < 64  # the exponent of e^−2s is rounded, too


@needs_jit
@pytest.mark.parametrize("name", ["gelu", "swiglu", "rms_norm", "cross_entropy", "attention"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_not_hidden(name, dtype):
    arrays, settings, bars = arguments(name, dtype)
    arrays[0][0, 1, 2] = np.nan
    z, back = KERNELS[name].vjp(*arrays, **settings)
    assert np.isnan(z[0, 1]).any() and np.isnan(back(*bars)[0][0, 1]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_bears_large_and_masked_logits(dtype):
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [0, -np.inf, 0], [1e30, 1e30, -1e30]], dtype)
    targets = np.array([0, 1, 2, 1])
    for z, p in both_losses(logits, targets):
        assert np.allclose(z, [0, np.log(3), np.log(2), np.log(2)], atol=1e-6)
        p = p + np.eye(3, dtype=dtype)[targets]
        assert np.allclose(np.sum(p, -1), 1, atol=1e-6) and np.all(np.isfinite(p))


def both_losses(logits, targets):
    """Losses and their derivatives, of the definition and of the twin."""
    x = Tensor(logits, requires_grad=True)
    z = kernels.cross_entropy.definition(x, targets)
    yield z.data, grad(z, [x], np.ones_like(z.data))[0].data
    if kernels.JIT:
        z, back = kernels.cross_entropy.vjp(logits, targets)
        yield z, back(np.ones_like(z))[0]


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_cross_entropy_loses_no_digit_where_all_logits_are_large(size):
    logits, targets = (size + draw(20, 50)).astype(np.float32), np.arange(20)
    exact = logits.astype(np.float64)
    p = np.exp(exact - exact.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for z, g in both_losses(logits, targets):
        assert np.max(np.abs(g - (p - np.eye(50)[targets]))) < 2e-7
        assert np.max(np.abs(z + np.log(p[np.arange(20), targets]))) < 1e-6


@pytest.mark.parametrize("function", [kernels.cross_entropy, kernels.cross_entropy.definition])
def test_cross_entropy_names_a_target_outside_the_vocabulary(function):
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match=r"0\.\.4 .* found 0\.\.5"):
        function(logits, np.array([0, 5]))
    with pytest.raises(ValueError, match="-100"):
        function(logits, np.array([0, -1]))
    assert function(logits, np.array([-1, -1]), -1).tolist() == [0, 0]


ADAMW = [kernels.adamw.definition, pytest.param(kernels.adamw, marks=needs_jit)]


@pytest.mark.parametrize("adamw", ADAMW)
def test_adamw_moves_by_the_learning_rate_at_first_and_decays_by_itself(adamw):
    p, g = draw(3, 4), draw(3, 4, seed=1)
    before, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    adamw(p, g, m, v, 0.1, 0.9, 0.999, 0.0, 0.5, 1)
    assert np.allclose(p, before * (1 - 0.1 * 0.5) - 0.1 * np.sign(g))
    assert np.allclose(m, 0.1 * g) and np.allclose(v, 0.001 * g * g)


@pytest.mark.parametrize("adamw", ADAMW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw_forgets_at_once_where_beta2_is_zero(adamw, dtype):
    p, m, v = (np.zeros(1, dtype) for _ in range(3))
    for step, g in enumerate((100, 1e-3, 1e-3), 1):
        adamw(p, np.full(1, g, dtype), m, v, 1.0, 0.9, 0.0, 0.0, 0.0, step)
    m1, m2, m3 = 10, 9 + 1e-4, 8.1 + 1.9e-4  # over g = √v
    assert p[0] == pytest.approx(-m1 / 0.1 / 100 - (m2 / 0.19 + m3 / 0.271) / 1e-3, rel=1e-5)


@pytest.mark.parametrize("adamw", ADAMW)
@pytest.mark.parametrize("beta", [0.999, 0.5, 0.1])
def test_averages_of_equal_gradients_are_that_gradient(adamw, beta):
    p, m, v = (np.zeros(1, np.float32) for _ in range(3))
    for step in range(1, 20_001 if beta > 0.9 else 101):
        adamw(p, np.full(1, 3, np.float32), m, v, 0.0, beta, beta, 0.0, 0.0, step)
    assert m[0] == pytest.approx(3, rel=1e-4) and v[0] == pytest.approx(9, rel=1e-4)


@pytest.mark.parametrize("conv", [kernels.causal_conv.definition, pytest.param(kernels.causal_conv, marks=needs_jit)])
@given(cut=st.integers(0, 9))
def test_convolution_in_two_calls_is_one_and_sees_only_the_past(conv, cut):
    x, tail, w = arguments("causal_conv", T=9)[0]
    first, middle = conv(x[:, :cut], tail, w)
    second, last = conv(x[:, cut:], middle, w)
    assert_close((np.concatenate([first, second], 1), last), conv(x, tail, w), 1e-15)
    changed = x.copy()
    changed[:, cut:] += 1
    assert np.array_equal(conv(changed, tail, w)[0][:, :cut], conv(x, tail, w)[0][:, :cut])


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
@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 2053, 1027), (2, 4096, 2300), (3, 4096, 2048),
                                                        (5, 2048, 2048), (41, 1024, 640), (100, 512, 512),
                                                        (205, 512, 512)])
def test_few_rows_have_the_same_bits_on_any_number_of_threads(rows, inner, columns):
    a, w = draw(rows, inner, dtype=np.float32), draw(columns, inner, dtype=np.float32, seed=1)
    most = runtime._threads
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


def test_targets_that_are_no_whole_numbers_are_refused_and_ignored_ones_have_no_cotangent_whatever_is_asked():
    logits = draw(2, 3)
    with pytest.raises(ValueError, match="float64; they must be whole numbers"):
        KERNELS["cross_entropy"](logits, np.array([1.7, 0.5]))
    if runtime.JIT:
        _, back = KERNELS["cross_entropy"].vjp(logits, targets=np.array([2, -100]))
        assert not back(np.array([1, np.inf]))[0][1].any()
