"""What layers.py promises: each layer is its equation, finds its own weights, and keeps no secrets."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd
import kernels
from autograd import Tensor, check_grad, grad
from layers import (
    CausalAttention,
    CausalConv,
    LayerNorm,
    Linear,
    Module,
    Parameter,
    RMSNorm,
    attention,
    causal_conv,
    cross_entropy,
    frequencies,
    gelu,
    linear,
    merge_heads,
    normal,
    rms_norm,
    rotate,
    split_heads,
    swiglu,
)
from optimizers import SGD

few = settings(max_examples=20, deadline=None)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- modules ------------------------------------------------------------------------------------------------


class Nest(Module):
    def __init__(self, rng):
        shared = Linear(rng, 3, 3)
        self.first, self.again = shared, shared
        self.many = [Linear(rng, 2, 2), {"inner": (RMSNorm(4),)}]
        self.number = 3


def test_parameters_are_found_in_lists_dicts_and_tuples_each_once_under_its_first_name():
    nest = Nest(np.random.default_rng(0))
    named = list(nest.named_parameters())
    assert [name for name, _ in named] == ["first.weight", "many.0.weight", "many.1.inner.0.weight"]
    assert [id(p) for p in nest.parameters()] == [id(p) for _, p in named]


def test_loading_copies_bits_into_the_same_arrays_and_names_what_does_not_fit():
    one, two = Nest(np.random.default_rng(0)), Nest(np.random.default_rng(1))
    arrays, before = one.state_dict(), [p.data for p in two.parameters()]
    two.load_state_dict(arrays)
    assert all(
        p.data is b and np.array_equal(b, a)
        for p, b, a in zip(two.parameters(), before, arrays.values(), strict=True)
    )
    one.first.weight.data += 1
    assert not np.array_equal(two.first.weight.data, one.first.weight.data)  # copied, not shared
    two.load_state_dict(arrays, assign=True)
    assert all(p.data is a for p, a in zip(two.parameters(), arrays.values(), strict=True))
    with pytest.raises(ValueError, match=r"lack 'first\.weight'"):
        two.load_state_dict({k: a for k, a in arrays.items() if k != "first.weight"})
    with pytest.raises(ValueError, match=r"unknown 'extra'"):
        two.load_state_dict({**arrays, "extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"first\.weight has shape \(1, 1\) in the file and \(3, 3\)"):
        two.load_state_dict({**arrays, "first.weight": np.zeros((1, 1))})
    for assign in (True, False):
        with pytest.raises(ValueError, match=r"first.weight is of type int64 in the file; weights are real numbers"):
            two.load_state_dict({**arrays, "first.weight": arrays["first.weight"].astype(int)}, assign)


def test_a_graph_recorded_before_its_weights_moved_refuses_to_go_back():
    layer, x = Linear(np.random.default_rng(0), 2, 2), Tensor(np.ones((1, 2), np.float32))
    layer(x).sum().backward()
    for change in (SGD(layer.parameters(), 0.1).step, lambda: layer.astype(np.float64),
                   lambda: layer.load_state_dict({"weight": np.zeros((2, 2))})):
        y = layer(x).sum()
        change()
        with pytest.raises(RuntimeError, match="was changed after it was used"):
            y.backward()
        layer(x).sum().backward()


def test_astype_and_zero_grad_reach_every_parameter():
    nest = Nest(np.random.default_rng(0))
    for p in nest.parameters():
        p.grad = np.ones_like(p.data)
    nest.astype(np.float64)
    assert all(p.grad.dtype == np.float64 for p in nest.parameters())
    nest.zero_grad()
    assert all(p.data.dtype == np.float64 and p.grad is None for p in nest.parameters())


def test_a_parameter_without_randomness_has_a_shape_and_no_memory():
    p = normal(None, (1000, 1000), 1.0)
    assert p.shape == (1000, 1000) and p.data.base.size == 1


def test_normal_has_the_spread_it_was_asked_for():
    p = normal(np.random.default_rng(0), (200, 200), 0.5)
    assert p.dtype == np.float32 and abs(p.data.std() - 0.5) < 0.01 and abs(p.data.mean()) < 0.01


# --- linear, norm, heads ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=3), st.integers(1, 4), st.integers(1, 4))
@few
def test_linear_is_w_x_for_any_leading_axes(lead, inputs, outputs):
    x, w = draw(0, *lead, inputs), draw(1, outputs, inputs)
    assert np.allclose(linear(Tensor(x), Tensor(w)).data, np.einsum("...i,oi->...o", x, w), atol=1e-12)
    if x.size < 40:
        check_grad(linear, x, w)


def test_a_tap_collects_the_layers_inputs_and_output_errors():
    layer, x = Linear(np.random.default_rng(0), 3, 2), Tensor(draw(1, 2, 4, 3), requires_grad=True)
    layer.astype(np.float64).weight.tap = []
    y, cotangent = layer(x), draw(2, 2, 4, 2)
    y.backward(cotangent)
    ((inputs, errors),) = layer.weight.tap
    assert np.array_equal(inputs, x.data.reshape(8, 3)) and np.array_equal(errors, cotangent.reshape(8, 2))
    assert np.allclose(layer.weight.grad, errors.T @ inputs)


def test_rms_norm_brings_every_vector_to_its_weight():
    norm = RMSNorm(8).astype(np.float64)
    norm.weight.data *= 3
    y = norm(Tensor(draw(0, 2, 5, 8) * 100)).data
    assert np.allclose(np.sqrt(np.mean(y * y, axis=-1)), 3)
    check_grad(lambda x, w: _with(norm, "weight", w)(x), draw(1, 2, 8), draw(2, 8))


def _with(module: Module, name: str, value: Tensor) -> Module:
    """The module with another tensor in the place of a parameter."""
    setattr(module, name, value)
    return module


def test_heads_are_consecutive_slices_of_the_width_and_merging_undoes_splitting():
    x = draw(0, 2, 5, 12)
    split = split_heads(Tensor(x), heads=3)
    assert split.shape == (2, 3, 5, 4)
    assert all(np.array_equal(split.data[:, h], x[..., 4 * h : 4 * h + 4]) for h in range(3))
    assert np.array_equal(merge_heads(split).data, x)
    check_grad(lambda x: split_heads(x, heads=3), x)
    check_grad(merge_heads, split.data)


# --- short convolution --------------------------------------------------------------------------------------


def test_the_convolution_starts_with_all_taps_alike_and_is_its_sum():
    wide = CausalConv(np.random.default_rng(0), 4096).weight.data
    assert np.allclose(wide.std(axis=1), 0.5, atol=0.03) and np.allclose(wide.mean(axis=1), 0, atol=0.03)
    conv = CausalConv(np.random.default_rng(0), 6).astype(np.float64)
    x, w = draw(1, 2, 9, 6), conv.weight.data
    by_hand = np.zeros_like(x)
    for b in range(2):
        for t in range(9):
            for i in range(4):
                if t - i >= 0:
                    by_hand[b, t] += w[i] * x[b, t - i]
    y, tail = conv(Tensor(x))
    assert np.allclose(y.data, by_hand, atol=1e-12) and np.array_equal(tail.data, x[:, -3:])
    check_grad(lambda x, w: _with(conv, "weight", w)(x), x[:1, :5], w)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
@few
def test_the_convolution_of_any_split_is_the_convolution_of_the_whole(lengths):
    conv, tail = CausalConv(np.random.default_rng(0), 3).astype(np.float64), None
    x, parts, t = draw(1, 2, int(np.sum(lengths)), 3), [], 0
    for n in lengths:
        y, tail = conv(Tensor(x[:, t : t + n]), tail)
        parts.append(y.data)
        t += n
    assert np.array_equal(np.concatenate(parts, axis=1), conv(Tensor(x))[0].data)
    assert tail.shape == (2, 3, 3)


def test_the_convolution_is_its_definition_in_operations_and_has_every_derivative():
    x, tail, w = draw(0, 2, 5, 3), draw(1, 2, 3, 3), draw(2, 4, 3)
    runs = []
    for f in (causal_conv, kernels.causal_conv.definition):
        inputs = [Tensor(a, requires_grad=True) for a in (x, tail, w)]
        outputs = f(*inputs)
        cotangents = [draw(3, 2, 5, 3), draw(4, 2, 3, 3)]
        runs.append([*outputs, *grad(outputs, inputs, cotangents)])
    for a, b in zip(*runs, strict=True):
        assert np.allclose(a.data, b.data, atol=1e-13)
    check_grad(causal_conv, x[:1, :2, :2], tail[:1, :1, :2], w[:2, :2])


# --- operations of kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, close", [(np.float64, 1e-13), (np.float32, 2e-6)])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 130)])
def test_operations_of_kernels_are_their_definitions_forwards_and_backwards(shape, dtype, close):
    x, w = (3 * draw(0, *shape)).astype(dtype), draw(1, *shape[-1:]).astype(dtype)
    targets = np.random.default_rng(2).integers(0, shape[-1], shape[:-1])
    for f, reference, inputs in [
        (gelu, kernels.gelu.definition, [x]),
        (rms_norm, lambda x, w: autograd.rms_normalize(x) * w, [x, w]),
        (rms_norm, autograd.rms_normalize, [x]),
        (partial(cross_entropy, targets=targets, reduction="none"),
         lambda x: autograd.logsumexp(x) - autograd.take_along_axis(x, targets[..., None], -1)[..., 0], [x]),
    ]:  # fmt: skip
        runs = []
        for g in (f, reference):
            leaves = [Tensor(a, requires_grad=True) for a in inputs]
            y = g(*leaves)
            runs.append([y, *grad(y, leaves, draw(3, *y.shape).astype(dtype))])
        for a, b in zip(*runs, strict=True):
            assert a.dtype == dtype and np.allclose(a.data, b.data, atol=close * 10, rtol=close * 10)


def test_operations_of_kernels_have_every_order_of_derivative():
    x, w = draw(0, 2, 3), draw(1, 3)
    check_grad(gelu, x, order=3)
    check_grad(rms_norm, x, w, order=3)
    check_grad(partial(cross_entropy, targets=np.array([2, -100]), reduction="none"), x, order=3)


@pytest.mark.parametrize("f", [gelu, kernels.gelu.definition])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_of_large_inputs_neither_overflows_nor_warns(f, dtype):
    x = Tensor(np.array([-1e4, 1e4], dtype), requires_grad=True)
    z = f(x)
    (g,) = grad(z, [x], np.ones_like(z.data), create_graph=True)
    (h,) = grad(g, [x], np.ones_like(z.data))
    for y, low, high in ((z, 0, 1e4), (g, 0, 1), (h, 0, 0)):
        assert np.allclose(y.data, [low, high], rtol=0, atol=1e-25)


@pytest.mark.skipif(not kernels.JIT, reason="twins need Numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gates_of_the_largest_numbers_are_open_or_shut_and_flat(dtype):
    x = np.array([-3e38, -1e20, -1e13, -1e5, 1e5, 1e13, 1e20, 3e38, np.nan], dtype)
    for kernel, others in ((kernels.gelu, ()), (kernels.swiglu, (np.ones_like(x),))):
        z, back = kernel.vjp(x, *others)
        slope = back(np.ones_like(x))[0]
        assert np.allclose(z[:4], 0, atol=1e-30) and np.allclose(z[4:8], x[4:8], rtol=1e-6) and np.isnan(z[8])
        assert np.allclose(slope[:4], 0, atol=1e-30) and np.allclose(slope[4:8], 1) and np.isnan(slope[8])
        assert not np.isfinite(kernel.vjp(np.array([np.inf, -np.inf], dtype), *(y[:2] for y in others))[0]).any()


def test_an_operation_without_a_twin_is_its_definition(monkeypatch):
    for kernel in kernels.KERNELS.values():
        monkeypatch.setattr(kernel, "twins", {})
    x = draw(0, 2, 3, 4)
    check_grad(gelu, x)
    check_grad(rms_norm, x)
    check_grad(partial(cross_entropy, targets=np.array([[2, 0, -100]] * 2)), x)
    check_grad(attention, *(draw(i, 1, 2, 3, 4) for i in range(3)))
    check_grad(causal_conv, x, draw(1, 2, 2, 4), draw(2, 3, 4))
    assert all(type(f(x).data) is np.ndarray for f in (gelu, rms_norm))


def test_cross_entropy_counts_only_what_is_not_ignored():
    logits, targets = Tensor(draw(0, 2, 3, 4), requires_grad=True), np.array([[0, 3, -100], [1, 2, 0]])
    each = cross_entropy(logits, targets, reduction="none")
    assert each.shape == (2, 3) and each.data[0, 2] == 0
    assert float(cross_entropy(logits, targets, reduction="sum")) == pytest.approx(each.data.sum())
    assert float(cross_entropy(logits, targets)) == pytest.approx(each.data.sum() / 5)
    cross_entropy(logits, targets).backward()
    assert np.array_equal(logits.grad[0, 2], np.zeros(4)) and np.abs(logits.grad.sum(-1)).max() < 1e-15
    assert float(cross_entropy(logits, np.full((2, 3), -100))) == 0
    empty = Tensor(np.zeros((2, 0, 3)), requires_grad=True)
    cross_entropy(empty, np.zeros((2, 0), dtype=int), reduction="sum").backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("size", [3, 16, 40])
@pytest.mark.parametrize("at", [0, 2])
def test_what_cannot_follow_counts_for_nothing_in_cross_entropy_wherever_it_stands(size, at):
    x = draw(0, 1, size)
    x[0, at] = -np.inf
    logits = Tensor(x, requires_grad=True)
    cross_entropy(logits, [1]).backward()
    p = np.exp(x - x.max())
    p /= p.sum()
    np.testing.assert_allclose(cross_entropy(logits, [1]).data, -np.log(p[0, 1]), rtol=1e-12)
    np.testing.assert_allclose(logits.grad, p - np.eye(size)[[1]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("targets", "settings", "words"), [
    ([0, 3], {}, r"must lie in 0\.\.2 .* found 0\.\.3"), ([[0], [1]], {}, r"must be integers of shape \(2,\)"),
    ([0.0, 1.0], {}, "must be integers"), ([0, 1], {"reduction": "all"}, "choose mean, sum or none")])
def test_cross_entropy_names_what_is_wrong(targets, settings, words):
    with pytest.raises(ValueError, match=words):
        cross_entropy(Tensor(draw(0, 2, 3)), targets, **settings)


# --- attention ----------------------------------------------------------------------------------------------


def attention_layer(width: int = 8, heads: int = 2) -> CausalAttention:
    return CausalAttention(np.random.default_rng(0), width, heads).astype(np.float64)


def attention_by_hand(layer: CausalAttention, x: np.ndarray) -> np.ndarray:
    """One sequence x (T,D), one head, one query at a time; positions as rotations of complex numbers."""
    T, D = x.shape
    d = D // layer.heads
    turn = np.exp(1j * np.arange(T)[:, None] * 10000.0 ** (-np.arange(d // 2) / (d // 2)))
    mixed = np.zeros((T, D))
    for h in range(layer.heads):
        rows = slice(h * d, (h + 1) * d)
        q, k, v = (x @ f.weight.data[rows].T for f in (layer.query, layer.key, layer.value))
        q, k = ((z[:, 0::2] + 1j * z[:, 1::2]) * turn for z in (q, k))
        for t in range(T):
            score = np.array([np.real(np.sum(q[t] * np.conj(k[i]))) for i in range(t + 1)]) / np.sqrt(d)
            p = np.exp(score - score.max())
            mixed[t, rows] = (p / p.sum()) @ v[: t + 1]
    return mixed @ layer.output.weight.data.T


@pytest.mark.parametrize("T", [1, 2, 7])
def test_attention_is_softmax_attention_written_by_hand(T):
    layer, x = attention_layer(), draw(1, 2, T, 8)
    y, _ = layer(Tensor(x))
    assert np.allclose(y.data, [attention_by_hand(layer, sequence) for sequence in x], atol=1e-12)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
@few
def test_attention_through_its_cache_is_attention_over_the_whole(lengths):
    layer, state = attention_layer(), None
    x, parts, t = draw(1, 2, int(np.sum(lengths)), 8), [], 0
    for n in lengths:
        y, state = layer(Tensor(x[:, t : t + n]), state)
        parts.append(y.data)
        t += n
    assert np.allclose(np.concatenate(parts, axis=1), layer(Tensor(x))[0].data, atol=1e-12)
    assert state.key.shape == state.value.shape == (2, 2, t, 4)


def test_no_bit_of_attention_depends_on_a_later_token():
    layer, x = attention_layer(), draw(1, 1, 12, 8)
    y = layer(Tensor(x))[0].data
    for t in range(12):
        other = x.copy()
        other[:, t] = 1e3
        z = layer(Tensor(other))[0].data
        assert np.array_equal(z[:, :t], y[:, :t]) and not np.array_equal(z[:, t], y[:, t])


def test_attention_derivatives_agree_with_finite_differences():
    layer = attention_layer(4, 1)
    weights = [f.weight.data for f in (layer.query, layer.key, layer.value, layer.output)]

    def f(x, *weights):
        for part, w in zip((layer.query, layer.key, layer.value, layer.output), weights, strict=True):
            part.weight = w
        return layer(x)[0]

    check_grad(f, draw(1, 1, 3, 4), *weights)


@pytest.mark.parametrize("T, past", [(1, 0), (1, 70), (3, 0), (64, 1), (65, 64), (130, 3), (2, 200)])
def test_attention_in_blocks_is_attention_at_once_forwards_and_backwards(T, past):
    """Queries and keys lie before, in and behind every kind of block of 64."""
    q, k, v, g = (draw(i, 2, 2, T + past * (i in (1, 2)), 4) for i in range(4))
    found = []
    for f in (attention, kernels.attention.definition):
        arrays = [Tensor(x, requires_grad=True) for x in (q, k, v)]
        y = f(*arrays)
        found.append([y.data, *(x.data for x in grad(y, arrays, g))])
    for a, b in zip(*found, strict=True):
        assert np.allclose(a, b, atol=1e-13)
    for f in (attention, kernels.attention.definition):
        check_grad(f, q[:1, :1, :2], k[:1, :1, : min(past, 2) + 2], v[:1, :1, : min(past, 2) + 2])


def test_attention_does_not_look_at_keys_that_lie_ahead():
    q, k, v = (draw(i, 1, 1, 70, 4) for i in range(3))
    y = attention(q, k, v).data
    for t in (3, 64, 66):
        unknown = k.copy()
        unknown[..., t:, :] = np.nan
        assert np.array_equal(attention(q, unknown, v).data[..., :t, :], y[..., :t, :])


def test_attention_survives_scores_of_any_size():
    q, k, v = (Tensor(draw(i, 1, 1, 70, 4).astype(np.float32) * 1e3, requires_grad=True) for i in range(3))
    y = attention(q, k, v)
    assert np.isfinite(y.data).all() and np.abs(y.data).max() <= np.abs(v.data).max()
    assert all(np.isfinite(g.data).all() for g in grad(y, [q, k, v], y.data))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
@few
def test_scores_of_rotated_vectors_depend_on_their_distance_only(i, j, shift):
    q, k = Tensor(draw(0, 1, 1, 1, 8)), Tensor(draw(1, 1, 1, 1, 8))

    def score(a: int, b: int) -> float:
        return float(np.sum(rotate(q, start=a).data * rotate(k, start=b).data))

    assert abs(score(i, j) - score(i + shift, j + shift)) < 1e-10
    assert abs(np.linalg.norm(rotate(q, start=i).data) - np.linalg.norm(q.data)) < 1e-12


def test_rotation_has_every_derivative_and_takes_any_layout():
    x = draw(0, 1, 2, 3, 4)
    check_grad(lambda x: rotate(x, start=5), x)
    assert np.array_equal(rotate(np.asfortranarray(x), start=1).data, rotate(x, start=1).data)
    x = Tensor(x, requires_grad=True)
    (g,) = grad(rotate(x, start=5).sum(), [x])  # whose cotangent is one number, repeated
    assert np.allclose(g.data, rotate(np.ones(x.shape), start=5, back=True).data)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.float16, np.longdouble])
def test_rotation_gives_the_right_numbers_in_any_byte_order_and_precision(dtype):
    x = draw(0, 1, 2, 3, 4).astype(dtype)
    z = rotate(x, start=5)
    assert z.dtype == x.dtype.newbyteorder("=") and np.allclose(
        z.data, rotate(x.astype(np.float64), start=5).data, rtol=0, atol=2e-3 if dtype is np.float16 else 1e-6)


def test_rotation_distinguishes_distances_and_counts_from_its_start():
    q, k = Tensor(draw(0, 1, 1, 6, 8)), Tensor(np.ones((1, 1, 6, 8)))
    assert np.array_equal(rotate(q, start=0).data[:, :, 2:], rotate(q[:, :, 2:], start=2).data)
    one = rotate(Tensor(np.ones((1, 1, 6, 8))), start=0).data
    scores = np.sum(one * rotate(k, start=0).data[:, :, :1], axis=-1)
    assert len(np.unique(np.round(scores, 9))) == 6


def test_parameter_gradients_pass_through_a_layer_used_twice():
    layer, x = Linear(np.random.default_rng(0), 3, 3).astype(np.float64), draw(1, 2, 3)
    (g,) = grad(layer(layer(Tensor(x))).sum(), [layer.weight])
    W, one = layer.weight.data, np.ones((2, 3))
    assert np.allclose(g.data, one.T @ (x @ W.T) + (one @ W).T @ x)
    assert isinstance(layer.weight, Parameter)


# a window over the past -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7), st.sampled_from([1, 2, 4]))
@few
def test_windowed_attention_sees_the_last_tokens_only_however_the_text_is_cut(lengths, window, key_heads):
    """[A 63]; what is kept of a text does not grow beyond the window; a head of keys serves several of queries."""
    layer = CausalAttention(np.random.default_rng(0), 8, 4, window=window, key_heads=key_heads).astype(np.float64)
    x, state, parts, t, T = draw(1, 2, sum(lengths), 8), None, [], 0, sum(lengths)
    q = rotate(split_heads(layer.query(Tensor(x)), heads=4), start=0).data
    k, v = (split_heads(f(Tensor(x)), heads=key_heads) for f in (layer.key, layer.value))
    k, v = (np.repeat(z.data, 4 // key_heads, axis=1) for z in (rotate(k, start=0), v))
    y = np.zeros((2, 4, T, 2))
    for i in range(T):
        first = max(0, i - window + 1)
        s = np.exp(np.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, first : i + 1]) / np.sqrt(2))
        y[:, :, i] = np.einsum("bhj,bhjd->bhd", s / s.sum(-1, keepdims=True), v[:, :, first : i + 1])
    for n in lengths:
        read, state = layer(Tensor(x[:, t : t + n]), state)
        parts.append(read.data)
        t += n
    expected = np.swapaxes(y, 1, 2).reshape(2, T, 8) @ layer.output.weight.data.T
    assert np.allclose(np.concatenate(parts, axis=1), expected, atol=1e-12)
    assert state.key.shape[2] == min(T, window - 1)
    assert layer.cost(T).numbers == 4 * key_heads * state.key.shape[2] and layer.position(state) == 0


def test_a_window_as_long_as_the_text_is_attention():
    rng = np.random.default_rng(0)
    layer = CausalAttention(rng, 8, 2).astype(np.float64)
    other = CausalAttention(rng, 8, 2, window=11).astype(np.float64)
    other.load_state_dict(layer.state_dict())
    x = Tensor(draw(1, 2, 11, 8))
    assert np.allclose(layer(x)[0].data, other(x)[0].data, atol=1e-12)


@pytest.mark.parametrize("heads, key_heads", [(1, 1), (4, 2)])
def test_derivatives_through_a_window_agree_with_finite_differences(heads, key_heads):
    layer = CausalAttention(np.random.default_rng(0), 8, heads, window=2, key_heads=key_heads).astype(np.float64)
    check_grad(lambda x: layer(x)[0], draw(1, 1, 5, 8))


def test_attention_is_a_regression_on_values_solved_anew_for_every_query():
    """[A 62]: softmax attention answers argmin_m Σ_i exp(q·k_i/√d) ‖v_i − m‖²."""
    q, k, v = draw(0, 1, 1, 1, 4), draw(1, 1, 1, 6, 4), draw(2, 1, 1, 6, 4)
    m = attention(*map(Tensor, (q, k, v))).data[0, 0, 0]

    def objective(m):
        return np.sum(np.exp(k[0, 0] @ q[0, 0, 0] / 2) * np.sum((v[0, 0] - m) ** 2, -1))
    for step in (*np.eye(4), *-np.eye(4)):
        assert objective(m) < objective(m + 1e-3 * step)


# --- what Transformers of others are made of ----------------------------------------------------------------


def test_layer_norm_is_its_formula_with_derivatives_of_any_order():
    norm, x = LayerNorm(6, eps=1e-3).astype(np.float64), draw(0, 2, 3, 6) + 2
    norm.weight.data[:], norm.bias.data[:] = draw(1, 6), draw(2, 6)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    assert np.allclose(norm(Tensor(x)).data, expected * norm.weight.data + norm.bias.data, atol=1e-12)
    check_grad(lambda x, w, b: rms_norm(x - x.mean(axis=-1, keepdims=True), w, 1e-3) + b, x, draw(1, 6), draw(2, 6))
    check_grad(norm, x)


def test_rms_norm_takes_another_epsilon_and_goes_without_weights():
    x = draw(0, 2, 5) * 0.1
    for norm in (RMSNorm(5, 0.5, learned=False), RMSNorm(5, 0.5)):
        assert np.allclose(norm(Tensor(x)).data, x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 0.5), atol=1e-7)
    assert not RMSNorm(5, learned=False).parameters()


def test_swiglu_is_its_formula_with_derivatives_of_any_order():
    x, y = draw(0, 3, 5) * 3, draw(1, 3, 5)
    assert np.allclose(swiglu(Tensor(x), Tensor(y)).data, y * x / (1 + np.exp(-x)), atol=1e-12)
    check_grad(swiglu, x, y, order=3)


def test_a_linear_layer_with_a_bias_adds_it():
    layer, x = Linear(np.random.default_rng(0), 3, 2, bias=True).astype(np.float64), draw(0, 4, 3)
    layer.bias.data[:] = [1, -2]
    assert np.allclose(layer(Tensor(x)).data, x @ layer.weight.data.T + [1, -2])
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 3, 70])
def test_grouped_queries_read_the_keys_of_their_group(heads, queries):
    q, k, v = draw(0, 2, 4, queries, 6), draw(1, 2, heads, queries + 5, 6), draw(2, 2, heads, queries + 5, 6)
    every = [np.repeat(x, 4 // heads, axis=1) for x in (k, v)]
    assert np.allclose(attention(*map(Tensor, (q, k, v))).data, kernels.attention.definition(q, *every),
                       atol=1e-12)
    g, arrays = draw(3, *q.shape), [Tensor(x, requires_grad=True) for x in (q, k, v)]
    found, wanted = (grad((f(*arrays) * g).sum(), arrays) for f in (attention, kernels.attention.definition))
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and np.allclose(a.data, b.data, atol=1e-12)
    if queries < 70:
        check_grad(attention, *(x[:1, ..., :3] for x in (q, k, v)))


def test_keys_of_heads_that_share_no_group_are_refused():
    with pytest.raises(ValueError, match="k has shape"):
        kernels.attention(draw(0, 1, 4, 2, 3), *draw(1, 2, 1, 3, 2, 3))


def test_keys_of_fewer_heads_of_another_size_are_kept_as_they_are():
    layer = CausalAttention(np.random.default_rng(0), 8, 4, key_heads=2, size=6, biases=("qkv", "output"))
    x = Tensor(draw(0, 2, 7, 8).astype(np.float32))
    y, state = layer(x, layer.start(x))
    assert y.shape == (2, 7, 8) and state.key.shape == state.value.shape == (2, 2, 7, 6)
    assert layer.cost(7).numbers == state.key.data[0].size + state.value.data[0].size
    assert layer.output.bias.shape == (8,) and layer.key.bias.shape == (12,)


def test_without_a_base_positions_are_not_turned():
    layer = CausalAttention(np.random.default_rng(0), 8, 2, base=0.0).astype(np.float64)
    x = draw(0, 1, 5, 8)
    swapped = x[:, [2, 0, 1, 3, 4]]  # the last token reads a set
    assert np.allclose(layer(Tensor(x))[0].data[:, 4], layer(Tensor(swapped))[0].data[:, 4], atol=1e-12)


def test_frequencies_are_scaled_where_they_turn_too_slowly():
    plain, scaled = frequencies(64, 5e5), frequencies(64, 5e5, (8.0, 1.0, 4.0, 256.0))
    turns = 256 * plain / (2 * np.pi)  # in the length that was learned first
    assert np.array_equal(scaled[turns > 4], plain[turns > 4]) and np.allclose(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any() and np.all((scaled < plain)[between] & (scaled > plain / 8)[between])
    assert np.array_equal(frequencies(8, 100.0, (4.0,)), frequencies(8, 100.0) / 4)
    assert np.allclose(frequencies(4, 100.0), [1, 0.1])
