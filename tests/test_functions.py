"""What NumPy's and PyTorch's users type works: values are NumPy's, derivatives those of central differences."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import autograd as ag
import functions as fn
from autograd import Tensor, check_grad, grad

ROOT = Path(__file__).resolve().parent.parent


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


A, B, ROW, COLUMN = normal(2, 3), normal(2, 3, seed=1), normal(3), normal(2, 1)
CUBE, SQUARE, POSITIVE = normal(2, 3, 4), np.eye(3) * 2 + 0.3 * normal(3, 3), np.abs(A) + 0.5
INSIDE, AT = np.tanh(A), np.array([[2, 0], [1, 1]])

# What NumPy calls it, how it is called, with which numbers: every function of NumPy that tensors know.
CALLS: list[tuple] = [
    *((f, lambda f, x: f(x), (A,)) for f in (
        np.negative, np.positive, np.exp, np.tanh, np.abs, np.sin, np.cos, np.tan, np.arctan, np.sinh, np.cosh,
        np.square, np.reciprocal, np.expm1, np.exp2, np.sign, np.floor, np.ceil, np.trunc, np.rint, np.copy, np.ravel)),
    *((f, lambda f, x: f(x), (POSITIVE,)) for f in (np.log, np.log1p, np.log2, np.log10, np.sqrt)),
    *((f, lambda f, x: f(x), (INSIDE,)) for f in (np.arcsin, np.arccos)),
    *((f, lambda f, x, y: f(x, y), (A, ROW)) for f in (np.add, np.subtract, np.multiply, np.maximum, np.minimum)),
    *((f, lambda f, x, y: f(x, y), (A, POSITIVE)) for f in (np.true_divide, np.floor_divide, np.remainder)),
    (np.power, lambda f, x, y: f(x, y), (POSITIVE, COLUMN)),
    (np.where, lambda f, x, y: f(A > 0, x, y), (B, ROW)),
    (np.astype, lambda f, x: f(x, np.float64), (A,)),
    (np.clip, lambda f, x: f(x, -0.5, 0.5), (A,)),
    (np.clip, lambda f, x, y: f(x, None, y), (A, ROW)),
    *((f, lambda f, x: f(x), (A,)) for f in (np.sum, np.mean, np.var, np.std, np.prod, np.max, np.min, np.linalg.norm)),
    *((f, lambda f, x: f(x, 1), (CUBE,)) for f in (np.sum, np.mean, np.var, np.std, np.prod, np.max, np.min)),
    *((f, lambda f, x: f(x, axis=(0, -1), keepdims=True), (CUBE,)) for f in (
        np.sum, np.mean, np.var, np.std, np.prod, np.max, np.min, np.linalg.norm)),
    *((f, lambda f, x: f(x, axis=0, ddof=1), (A,)) for f in (np.var, np.std)),
    (np.linalg.norm, lambda f, x: f(x, None, -1), (A,)),
    *((f, lambda f, x: f(x), (A,)) for f in (np.cumsum, np.cumprod, np.sort)),
    *((f, lambda f, x: f(x, 1), (CUBE,)) for f in (np.cumsum, np.cumprod, np.sort)),
    (np.sort, lambda f, x: f(x, None), (A,)),
    (np.reshape, lambda f, x: f(x, (3, 2)), (A,)),
    (np.transpose, lambda f, x: f(x), (CUBE,)),
    (np.transpose, lambda f, x: f(x, (1, 2, 0)), (CUBE,)),
    (np.swapaxes, lambda f, x: f(x, 0, 2), (CUBE,)),
    (np.moveaxis, lambda f, x: f(x, 0, -1), (CUBE,)),
    (np.broadcast_to, lambda f, x: f(x, (2, 2, 3)), (COLUMN,)),
    (np.expand_dims, lambda f, x: f(x, (0, 2)), (A,)),
    (np.squeeze, lambda f, x: f(x, 1), (COLUMN,)),
    (np.flip, lambda f, x: f(x), (A,)),
    (np.flip, lambda f, x: f(x, 1), (A,)),
    (np.rot90, lambda f, x: f(x), (A,)),
    *((f, lambda f, x: f(x, 1), (CUBE,)) for f in (np.tril, np.triu)),
    (np.concatenate, lambda f, x, y: f([x, y], 1), (A, COLUMN)),
    (np.stack, lambda f, x, y: f([x, y], -1), (A, B)),
    (np.split, lambda f, x: f(x, 2, 2)[1], (CUBE,)),
    (np.split, lambda f, x: f(x, [1, 1, 3])[2], (normal(4, 2),)),
    (np.array_split, lambda f, x: f(x, 2, axis=1)[0], (A,)),
    (np.take_along_axis, lambda f, x: f(x, AT, 1), (A,)),
    (np.take, lambda f, x: f(x, AT, 1), (A,)),
    (np.roll, lambda f, x: f(x, 2), (A,)),
    (np.roll, lambda f, x: f(x, (1, -1), (0, 1)), (A,)),
    (np.repeat, lambda f, x: f(x, 2, 1), (A,)),
    (np.tile, lambda f, x: f(x, (2, 1, 2)), (A,)),
    (np.diagonal, lambda f, x: f(x, 1, 1, 2), (CUBE,)),
    (np.diag, lambda f, x: f(x, 1), (SQUARE,)),
    (np.diag, lambda f, x: f(x, -1), (ROW,)),
    (np.trace, lambda f, x: f(x, 1), (CUBE,)),
    (np.pad, lambda f, x: f(x, 1), (A,)),
    (np.pad, lambda f, x: f(x, ((1, 0), (2, 3)), constant_values=2.5), (A,)),
    *((np.pad, lambda f, x, mode=mode: f(x, (1, 1), mode), (A,)) for mode in ("edge", "reflect", "symmetric", "wrap")),
    (np.matmul, lambda f, x, y: f(x, y), (A, normal(3, 2))),
    (np.dot, lambda f, x, y: f(x, y), (CUBE, normal(2, 4, 2))),
    (np.dot, lambda f, x, y: f(x, y), (A, ROW)),
    (np.dot, lambda f, x, y: f(x, y), (np.array(2.0), ROW)),
    (np.outer, lambda f, x, y: f(x, y), (A, ROW)),
    (np.tensordot, lambda f, x, y: f(x, y), (CUBE, normal(3, 4, 2))),
    (np.tensordot, lambda f, x, y: f(x, y, ((2, 0), (0, -1))), (CUBE, normal(4, 3, 2))),
    (np.einsum, lambda f, x, y: f("ij,kj->ik", x, y), (A, B)),
    (np.einsum, lambda f, x, y: f("ji, jk", x, y), (A, B)),
    (np.linalg.inv, lambda f, x: f(x), (SQUARE,)),
    (np.linalg.det, lambda f, x: f(x), (np.stack([SQUARE, -SQUARE.T]),)),
    (np.linalg.solve, lambda f, a, b: f(a, b), (SQUARE, ROW)),
    (np.linalg.solve, lambda f, a, b: f(a, b), (np.stack([SQUARE, SQUARE.T]), normal(3, 2))),
]
every_call = pytest.mark.parametrize("f, call, point", CALLS, ids=[f"{c[0].__name__}-{i}" for i, c in enumerate(CALLS)])

# those whose answers are arrays without a derivative
ANSWERS = [
    *((f, (A, B)) for f in (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)),
    *((f, (A,)) for f in (np.isnan, np.isinf, np.isfinite, np.any, np.all, np.argmax, np.argmin, np.argsort, np.shape,
                          np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like)),
    (np.full_like, (A, 3)),
]


def test_every_function_of_numpy_that_tensors_know_is_called_here():
    assert {f for f, *_ in CALLS} | {f for f, _ in ANSWERS} == set(ag.NUMPY)


def test_every_function_of_the_file_is_called_here():
    functions = {f for name, f in vars(fn).items() if callable(f) and not name.startswith("_")
                 and getattr(f, "__module__", "") == "functions"}
    elsewhere = {fn.elementwise, fn.moved, fn.erf, fn.topk, fn.zeros, fn.ones, fn.eye, fn.arange}
    assert functions - elsewhere <= set(ag.NUMPY.values())


@every_call
def test_values_are_numpys_by_numpys_own_name(f, call, point):
    expected = call(f, *point)
    found = call(f, *map(Tensor, point))
    assert type(found) is Tensor and found.shape == np.shape(expected)
    np.testing.assert_allclose(found.data, expected, rtol=1e-12, atol=1e-14)


@every_call
def test_derivatives_are_those_of_central_differences(f, call, point):
    assert check_grad(lambda *xs: call(f, *xs), *point) < 1e-6


@every_call
def test_float32_stays_float32(f, call, point):
    xs = [Tensor(np.float32(x), requires_grad=True) for x in point]
    z = call(f, *xs)
    assert z.dtype == np.float32 or f is np.astype
    for g in grad(z, xs, np.ones_like(z.data)):
        assert g.dtype == np.float32


@pytest.mark.parametrize("f, point", ANSWERS, ids=[f.__name__ for f, _ in ANSWERS])
def test_what_says_something_about_the_numbers_is_an_array_even_with_gradients(f, point):
    found, expected = f(Tensor(point[0], requires_grad=True), *point[1:]), f(*point)
    assert not isinstance(found, Tensor)
    np.testing.assert_array_equal(found if f is not np.empty_like else expected, expected)


def test_functions_without_a_name_in_numpy():
    points = np.array([-2.0, -0.5, 0.0, 1.0])
    np.testing.assert_allclose(fn.erf(points).data, [-0.9953222650189527, -0.5204998778130465, 0, 0.8427007929497149])
    assert check_grad(fn.erf, points) < 1e-6 and fn.erf(np.float32([1])).dtype == np.float32
    np.testing.assert_allclose(fn.erf(Tensor([0, 1])).data, [0, 0.8427007929497149], rtol=1e-6)
    assert np.clip(Tensor([0.0, 2.0]), 3, 1).tolist() == [1, 1]
    small = np.array([100, 100], np.int8)
    for f in (np.linalg.norm, np.prod, np.cumprod):
        assert f(Tensor(small)).tolist() == f(small).tolist()
    values, at = fn.topk(Tensor([[3.0, 1.0, 2.0], [5.0, 6.0, 4.0]]), 2)
    assert values.tolist() == [[3, 2], [6, 5]] and at.tolist() == [[0, 2], [1, 0]]
    assert check_grad(lambda x: fn.topk(x, 2, 0)[0], normal(4, 2)) < 1e-6
    assert fn.topk(Tensor([1.0]), 0)[0].shape == (0,)
    for k in (-1, 3):
        with pytest.raises(ValueError, match=f"k = {k}: of an axis of 2"):
            fn.topk(Tensor([1.0, 2.0]), k)
    assert fn.zeros(2, 3).shape == fn.ones((2, 3)).shape == (2, 3) and fn.eye(2).tolist() == [[1, 0], [0, 1]]
    assert fn.zeros(2).dtype == fn.eye(2).dtype == fn.arange(0, 1, 0.25).dtype == np.float32
    assert fn.arange(3).dtype == fn.arange(0).dtype == fn.arange(3, 3).dtype == np.int64
    assert fn.arange(1, 2, 0.5, requires_grad=True).requires_grad
    assert fn.ones(2, dtype=np.float64, requires_grad=True).dtype == np.float64


def test_products_have_a_derivative_where_factors_are_zero():
    for x, expected in (([0.0, 2.0, 3.0], [6, 0, 0]), ([0.0, 0.0, 3.0], [0, 0, 0])):  # PyTorch's
        x = Tensor(x, requires_grad=True)
        assert grad(fn.prod(x), [x])[0].tolist() == expected
    assert check_grad(fn.cumprod, np.array([2.0, 0.0, 3.0])) < 1e-6
    assert fn.prod(np.zeros((2, 0)), axis=1).tolist() == [1, 1] and fn.cumprod(np.zeros(0)).shape == (0,)


def test_a_deviation_of_equal_numbers_has_derivative_zero():
    x = Tensor([1.0, 1.0], requires_grad=True)
    assert grad(fn.std(x), [x])[0].tolist() == [0, 0]


def test_a_clipped_number_passes_gradients_inside_and_at_its_bounds():
    x = Tensor([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan], requires_grad=True)
    z = x.clip(-1, 1)
    np.testing.assert_array_equal(z.data, np.float32([-1, -1, 0, 1, 1, np.nan]))
    assert grad(z.sum(), [x])[0].tolist()[:5] == [0, 1, 1, 1, 0]


@given(st.data(), hnp.array_shapes(max_dims=3, max_side=4))
def test_what_only_moves_elements_is_numpys(data, shape):
    x, axis = normal(*shape), data.draw(st.integers(-len(shape), len(shape) - 1))
    shift, times = data.draw(st.integers(-5, 5)), data.draw(st.integers(0, 3))
    for call in (lambda x: np.roll(x, shift, axis), lambda x: np.repeat(x, times, axis), lambda x: np.tile(x, times),
                 lambda x: np.moveaxis(x, axis, 0), lambda x: np.array_split(x, 3, axis)[1],
                 lambda x: np.pad(x, times), lambda x: np.take(x, [0, -1], axis), lambda x: np.sort(x, axis)):
        np.testing.assert_array_equal(call(Tensor(x)).data, call(x), strict=True)
        assert check_grad(call, x, order=1) < 1e-6


# methods ----------------------------------------------------------------------------------------------------

def test_methods_are_those_of_numpy_and_pytorch():
    x, y = Tensor(POSITIVE), Tensor(POSITIVE)
    for name in ("exp", "log", "sqrt", "abs", "cumsum", "std", "var", "prod", "argmax", "any", "all", "copy", "clone",
                 "ravel", "flatten", "tolist", "sum", "mean", "max", "min", "numpy", "trace", "sin", "tanh"):
        expected = getattr(np, {"clone": "copy", "flatten": "ravel", "tolist": "copy", "numpy": "copy"}.get(name, name))
        np.testing.assert_allclose(np.asarray(getattr(x, name)()), expected(POSITIVE), rtol=1e-12)
    for found, expected in [
            (x.relu(), POSITIVE), (x.sigmoid(), 1 / (1 + np.exp(-POSITIVE))), (x.pow(2), POSITIVE ** 2),
            (x.clip(0.7, 1), POSITIVE.clip(0.7, 1)), (x.unsqueeze(0), POSITIVE[None]), (x[None].squeeze(0), POSITIVE),
            (x.permute(1, 0), POSITIVE.T), (x.view(3, -1), POSITIVE.reshape(3, 2)), (x.dot(y.T), POSITIVE @ POSITIVE.T),
            (Tensor(CUBE).flatten(1), CUBE.reshape(2, 12)), (x.softmax(0), np.exp(POSITIVE) / np.exp(POSITIVE).sum(0)),
            (x.sum(0), POSITIVE.sum(0)), (x.max(1, True), POSITIVE.max(1, keepdims=True)),
            (x.argmax(0), POSITIVE.argmax(0)), (x.cumsum(1), POSITIVE.cumsum(1)),
            (x.repeat(2, 0), POSITIVE.repeat(2, 0))]:
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def test_a_copy_has_an_array_of_its_own_and_its_history():
    x = Tensor([1.0, 2.0], requires_grad=True)
    for copy in (x.copy(), x.clone(), np.copy(x)):
        assert not np.shares_memory(copy.data, x.data) and grad(copy.sum(), [x])[0].tolist() == [1, 1]


def test_settings_stand_in_numpys_order():
    x = Tensor(CUBE)
    for f, values in ((ag.sum, (1, True)), (ag.max, (1,)), (ag.cumsum, (1,)), (ag.tril, (1,)), (ag.reshape, ((4, 6),)),
                      (ag.swapaxes, (0, 1)), (ag.flip, (0,)), (ag.expand_dims, (1,)), (ag.mean, (0, True)),
                      (ag.transpose, ((2, 0, 1),)), (ag.astype, (np.float32,)), (ag.broadcast_to, ((5, 2, 3, 4),))):
        expected = getattr(np, f.__name__)(CUBE, *values[:1], **({"keepdims": True} if values[1:] == (True,) else {})) \
            if f is not ag.swapaxes else np.swapaxes(CUBE, 0, 1)
        np.testing.assert_allclose(f(x, *values).data, expected, strict=True)
    np.testing.assert_allclose(ag.softmax(x, 1).data.sum(1), np.ones((2, 4)))
    for wrong in (lambda: ag.sum(x, 0, axis=1), lambda: ag.exp(x, 1), lambda: ag.tril(x, 1, 2)):
        with pytest.raises(TypeError, match="too many values; its settings are"):
            wrong()


# the engine alone -------------------------------------------------------------------------------------------

def test_without_this_file_the_engine_says_where_to_look():
    program = ("import numpy as np; from autograd import Tensor; x = Tensor([1.0], requires_grad=True)\n"
               "for f in (lambda: x.clip(0, 1), lambda: np.sin(x)):\n"
               "    try: f()\n"
               "    except (AttributeError, TypeError) as error: print(type(error).__name__, error)\n"
               "import functions; print(x.clip(0, 1).item() + np.sin(x * 0).item())")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    method, function, value = done.stdout.splitlines()
    assert method == "AttributeError this method is one of functions.py: a tensor has it once that is imported"
    assert function.startswith("TypeError np.sin has no rule of differentiation here (functions.py has more")
    assert float(value) == 1


def test_wrong_use_gets_one_clear_line():
    x = Tensor(A)
    for call, error, message in [
            (lambda: fn.pad(x, 1, "mean"), ValueError, "choose constant, edge, reflect, symmetric or wrap"),
            (lambda: fn.norm(x, 1), ValueError, "norm is √Σx²; write the one of ord=1 out"),
            (lambda: fn.split(x, 2, 1), ValueError, "equal division"),
            (lambda: fn.inv(np.zeros((2, 2))), np.linalg.LinAlgError, "Singular")]:
        with pytest.raises(error, match=message):
            call()


def test_what_numpy_refuses_is_refused_and_what_is_no_number_stays_none():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for f in (lambda: np.dot(np.ones((3, 1)), Tensor(np.arange(4.0))), lambda: np.tensordot(x, np.ones((1, 2)), 1),
              lambda: np.diag(Tensor(np.ones((2, 2, 2))))):
        with pytest.raises(ValueError, match=r"axes 1 and 0 are not of one length|is no matrix"):
            f()
    for f in (np.sum, np.mean, np.max, np.min, np.prod, np.var, np.std):
        with pytest.raises(TypeError, match="third"):
            f(x, 0, np.float64)  # NumPy's dtype, and not keepdims
    assert np.tensordot(x, np.ones((3, 2)), np.int64(1)).shape == (2, 2)
    assert np.isnan(np.clip(x, np.nan, 4).data).all() and np.isnan(np.clip(x, 0, np.nan).data).all()
    with np.errstate(divide="ignore"):
        assert np.var(x, ddof=9).data == np.std(x, ddof=9).data == np.inf
