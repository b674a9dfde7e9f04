"""The compiled Titans kernel by itself; test_memory.py holds it against its definition."""

import functools
import itertools

import numpy as np
import pytest
from test_kernels import DTYPES, assert_close, draw, needs_jit

import kernels
from kernels import runtime
from kernels import titans as titans_kernel
from kernels.titans import products, tables

MOMENTUM = pytest.mark.parametrize("momentum", [False, pytest.param(True, marks=pytest.mark.slow)])  # other kernels


@functools.cache
def callable_from_python(function):
    """What only compiled code calls has no way in from Python: here is one."""
    return pytest.importorskip("numba").njit(fastmath=runtime.FLAGS, error_model="numpy")(function.py_func)


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n", [(64, 64, 64), (3, 5, 1), (9, 1, 32), (17, 40, 37), (1, 64, 96), (6, 5, 8),
                                     (9, 7, 28)])
def test_products_and_transposes_of_any_shape_are_numpys(m, k, n, dtype):
    A, B, C = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1), draw(m, n, dtype=dtype, seed=2)
    expected = C + A @ B, A @ B
    add, product, turned = map(callable_from_python, (
        products.add_product, products.product, products.transposed))
    for left in (A, np.ascontiguousarray(A.T).T):
        found = C.copy()
        add(found, left, B)
        assert_close((found, product(left, B)), expected, 1e-5 if dtype == np.float32 else 1e-13)
    assert np.array_equal(turned(C), C.T)
    for triangle, half in ((1, np.triu(B)), (-1, np.tril(B))):  # the other need not be read
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        assert_close((product(A, half, triangle),), (A @ half,), tolerance)


def titans_inputs(B=3, H=2, n=40, d=32, h=16, dtype=np.float32, start=False, momentum=False, seed=0):
    """Arguments of `titans_kernel.titans` for one span, and cotangents of what it returns."""
    names, seeds = ("k", "eta", "memory"), itertools.count(100 * seed)

    def layers(*lead, scale=1.0):
        return {name: [scale * draw(*lead, *shape, dtype=dtype, seed=next(seeds)) / 4
                       for shape in ((h, d), (1 if name == "eta" else d, h))] for name in names}
    feeds = [draw(B, H, n, d, dtype=dtype, seed=next(seeds)) for _ in range(4)]
    gates = 3 if momentum else 2
    bias = [draw(H, dtype=dtype, seed=next(seeds)) for _ in range(gates)]
    readout = [draw(H, 1, d, dtype=dtype, seed=next(seeds)) / 4 for _ in range(gates)]
    spans = [(n, dict.fromkeys(names, 0) | ({"k": -1} if start else {}))]
    inputs = [names, True, False, 0.5, 2.0 if momentum else 0.0, True, spans, feeds, bias, readout, layers(H),
              layers(B, H, scale=dtype(0.1)), {"k": layers(B, H)["k"]} if start else {},
              layers(B, H) if momentum else {}]
    return inputs, [draw(B, H, n, d, dtype=dtype, seed=next(seeds)), layers(B, H), layers(B, H) if momentum else {}]


def titans_and_back(settings, inputs, bars):
    """Arrays of o and the states after, and of all that `titans_kernel.titans_backward` returns."""
    *found, boundaries = titans_kernel.titans(*settings, *inputs)
    return arrays_in([*found, titans_kernel.titans_backward(*settings, boundaries, *inputs, *bars)])


def arrays_in(nest):
    if isinstance(nest, np.ndarray):
        return [nest]
    return [x for part in (nest.values() if isinstance(nest, dict) else nest) for x in arrays_in(part)]


@needs_jit
@MOMENTUM
def test_the_number_of_threads_changes_no_bit_of_a_chunk(momentum, monkeypatch):
    monkeypatch.setattr(runtime, "GRAIN", 0)
    numba = pytest.importorskip("numba")
    before, most, found = runtime._threads, numba.config.NUMBA_NUM_THREADS, []
    inputs, bars = titans_inputs(start=True, momentum=momentum)
    try:
        for threads in (1, most):
            kernels.set_threads(threads)
            found.append(titans_and_back(inputs[:7], inputs[7:], bars))
    finally:
        kernels.set_threads(before)
    assert all(np.array_equal(x, y) for x, y in zip(*found, strict=True)) and len(found[0]) == 29 + 14 * momentum


@needs_jit
@pytest.mark.parametrize("n", [1, 33])
def test_no_bit_of_a_read_in_a_chunk_depends_on_a_later_token(n):
    inputs, _ = titans_inputs(n=n + 1)
    o = titans_kernel.titans(*inputs)[0]
    for feed in inputs[7]:
        feed[:, :, n] *= 1e3
    changed = titans_kernel.titans(*inputs)[0]
    assert np.array_equal(o[:, :, :n], changed[:, :, :n]) and not np.array_equal(o[:, :, n], changed[:, :, n])


@needs_jit
def test_a_chunk_takes_views_and_names_a_shape_that_does_not_fit():
    inputs, bars = titans_inputs()
    expected = titans_and_back(inputs[:7], inputs[7:], bars)
    views = [[np.asfortranarray(x) for x in inputs[7]], *inputs[8:]]
    views[4] = {name: [x[::-1].copy()[::-1] for x in layers] for name, layers in inputs[11].items()}
    found = titans_and_back(inputs[:7], views, bars)
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))
    inputs[11] = {**inputs[11], "k": [x[1:] for x in inputs[11]["k"]]}
    with pytest.raises(ValueError, match=r"drift has shape \(2, 2, 16, 32\); .* \(3, 2, 16, 32\)"):
        titans_kernel.titans(*inputs)
    for misfit in (titans_inputs(n=0)[0], [("k", "memory"), *titans_inputs()[0][1:]]):
        with pytest.raises(ValueError, match=r"at least one, .* a state for each of the memories that learn"):
            titans_kernel.titans(*misfit)
    inputs, _ = titans_inputs()
    for seen, said in (({"k": -1}, "a start for none, where the first span says"),
                       ({"eta": 1}, "errors of span 0 see"),
                       ({"other": 0}, "errors of span 0 see .* or -1 where there is a start")):
        inputs[6] = [(40, dict.fromkeys(inputs[0], 0) | seen)]
        with pytest.raises(ValueError, match=said):
            titans_kernel.titans(*inputs)
    inputs, _ = titans_inputs(momentum=True)
    for misfit in ([*inputs[:-1], {}], [*inputs[:-1], {"k": inputs[-1]["k"]}]):
        with pytest.raises(ValueError, match=r"3 gates and momenta of (none|k); give eta and alpha, and with"):
            titans_kernel.titans(*misfit)
    with pytest.raises(ValueError, match=r"momentum has shape \(2, 2, 16, 32\); .* \(3, 2, 16, 32\)"):
        titans_kernel.titans(*inputs[:-1], {name: [x[1:] for x in layers] for name, layers in inputs[-1].items()})


@needs_jit
@pytest.mark.slow
def test_the_way_back_of_chunks_names_a_shape_that_does_not_fit():
    inputs, (o_bar, after_bar, momentum_bar) = titans_inputs(momentum=True)
    inputs[6] = [(20, dict.fromkeys(inputs[0], 0)), (20, dict.fromkeys(inputs[0], 1))]
    settings, boundaries = inputs[:7], titans_kernel.titans(*inputs)[3]
    short = {name: [x[:2] for x in layers] for name, layers in after_bar.items()}
    for bars, wrong in (((short, momentum_bar), "drift_bar"), ((after_bar, short), "momentum_bar")):
        with pytest.raises(ValueError, match=wrong + r" has shape \(2, 2, 16, 32\); .* \(3, 2, 16, 32\)"):
            titans_kernel.titans_backward(*settings, boundaries, *inputs[7:], o_bar, *bars)
    for misfit in ([after_bar, boundaries[1]], [boundaries[0], momentum_bar]):
        with pytest.raises(ValueError, match=r"boundaries has shape \(3, 2, 16, 32\); .* \(1, 3, 2, 16, 32\)"):
            titans_kernel.titans_backward(*settings, misfit, *inputs[7:], o_bar, after_bar, momentum_bar)


@needs_jit
@MOMENTUM
@pytest.mark.parametrize("lengths", [(16, 24), (2, 7, 31), (5, 5, 5, 25)], ids=str)
def test_spans_at_once_are_the_spans_one_after_another(lengths, momentum):
    """Where memory k still sees its start, and the others see the span before the last or the present one."""
    inputs, bars = titans_inputs(n=40, dtype=np.float64, start=True, momentum=momentum)
    inputs[6] = [(n, {"k": -1, "eta": max(0, p - 1), "memory": p}) for p, n in enumerate(lengths)]
    settings, (feeds, *shared, drift, start, momentum) = inputs[:6], inputs[7:]
    found = titans_and_back(inputs[:7], inputs[7:], bars)
    states, momenta, reads, t = [drift], [momentum], [], 0
    calls, back = [], []
    for n, seen in inputs[6]:
        began = {name: (start if p < 0 else states[p])[name] for name, p in seen.items() if p != len(states) - 1}
        one = ([(n, {name: -(name in began) for name in seen})], [z[:, :, t:t + n] for z in feeds], *shared,
               states[-1], began, momenta[-1])
        o, after, momentum_after, between = titans_kernel.titans(*settings, *one)
        assert between == [{}, {}]
        calls.append(one)
        reads.append(o)
        states.append(after)
        momenta.append(momentum_after)
        t += n
    ends = [*arrays_in(states[-1]), *arrays_in(momenta[-1])]
    assert np.array_equal(found[0], np.concatenate(reads, 2))
    assert all(np.array_equal(x, y) for x, y in zip(found[1:], ends, strict=False))

    after_bars: list[dict] = [{name: [0, 0] for name in drift} for _ in lengths] + [bars[1]]  # of the states
    start_bar, momentum_bar = [0, 0], bars[2]
    for p in reversed(range(len(lengths))):
        t -= lengths[p]
        feeds_bar, *shared_bar, drift_bar, began_bar, momentum_bar = titans_kernel.titans_backward(
            *settings, calls[p][0], [{}, {}], *calls[p][1:], bars[0][:, :, t:t + lengths[p]], after_bars[p + 1],
            momentum_bar)
        back.append((feeds_bar, shared_bar))
        for name, layers in drift_bar.items():
            after_bars[p][name] = [x + y for x, y in zip(after_bars[p][name], layers, strict=True)]
        for name, layers in began_bar.items():
            seen = inputs[6][p][1][name]
            into = start_bar if seen < 0 else after_bars[seen][name]
            into[:] = [x + y for x, y in zip(into, layers, strict=True)]
    expected = [np.concatenate(xs[::-1], 2) for xs in zip(*(feeds_bar for feeds_bar, _ in back), strict=True)]
    expected += [sum(xs) for xs in zip(*(arrays_in(shared_bar) for _, shared_bar in back), strict=True)]
    expected += [*arrays_in(after_bars[0]), *start_bar, *arrays_in(momentum_bar)]
    for x, y in zip(found[1 + len(ends):], expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11 * np.abs(y).max())


@needs_jit
def test_where_arrays_lie_is_forgotten_with_them_and_never_taken_for_that_of_others():
    places, before = tables._known, len(tables._known)
    for seed in range(20):  # each time new arrays, many where old ones lay
        inputs, _ = titans_inputs(n=1, seed=seed)
        o, after, *_ = titans_kernel.titans(*inputs)
        fresh = [{name: [x.copy() for x in layers] for name, layers in given.items()} if isinstance(given, dict)
                 else [x.copy() for x in given] for given in inputs[7:]]
        assert np.array_equal(o, titans_kernel.titans(*inputs[:7], *fresh)[0]) and len(places) > before
        del inputs, after, fresh
    assert len(places) == before
