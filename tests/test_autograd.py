"""The engine: operations equal NumPy, rules equal finite differences, and the checker would notice if not."""

import dataclasses
import functools
import gc
import inspect
import itertools
import operator
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import autograd as ag
from autograd import (
    Leaf,
    Tensor,
    check_grad,
    checkpoint,
    enable_grad,
    fused,
    grad,
    grad_enabled,
    no_grad,
    op,
    tree_flatten,
    tree_leaves,
    tree_map,
)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def positive(*shape, seed=0):
    return np.abs(normal(*shape, seed=seed)) + 0.5


def leaf(array):
    return Tensor(array, requires_grad=True)


def np_softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


def np_scatter(x):
    z = np.zeros(4)
    np.add.at(z, [2, 0, 2], x)
    return z


A, B, ROW, COLUMN = normal(2, 3), normal(2, 3, seed=1), normal(3), normal(2, 1)
CUBE, SQUARE = normal(2, 3, 4), np.eye(3) * 2 + 0.3 * normal(3, 3)
MASK = np.array([[True, False, True], [False, False, True]])

# name, the function of tensors, the same in NumPy, a point.  Every operation and public function stands here.
CASES = [
    ("add", operator.add, operator.add, (A, ROW)),
    ("sub", operator.sub, operator.sub, (COLUMN, A)),
    ("mul", operator.mul, operator.mul, (A, COLUMN)),
    ("mul", lambda x: x * x * x, lambda x: x * x * x, (A,)),
    ("div", operator.truediv, operator.truediv, (A, positive(3))),
    ("neg", operator.neg, operator.neg, (A,)),
    ("floor_divide", lambda x, y: x + x // y * y, lambda x, y: x + x // y * y, (A, ROW)),
    ("remainder", operator.mod, operator.mod, (5 * A, COLUMN)),
    ("power", operator.pow, operator.pow, (positive(2, 3), A)),
    ("power", lambda x: x ** 3, lambda x: x ** 3, (A,)),
    ("power", lambda x, y: x ** y, lambda x, y: x ** y, (positive(3), np.array([0.0, 1.0, 2.0]))),
    ("exp", ag.exp, np.exp, (A,)),
    ("log", ag.log, np.log, (positive(2, 3),)),
    ("log1p", ag.log1p, np.log1p, (positive(2, 3),)),
    ("sqrt", ag.sqrt, np.sqrt, (positive(2, 3),)),
    ("tanh", ag.tanh, np.tanh, (A,)),
    ("sigmoid", ag.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (A,)),
    ("softplus", ag.softplus, lambda x: np.log(1 + np.exp(x)), (A,)),
    ("relu", ag.relu, lambda x: np.maximum(x, 0), (A,)),
    ("abs", ag.absolute, np.abs, (A,)),
    ("sign", lambda x: x * ag.sign(x), np.abs, (A,)),
    ("silu", ag.silu, lambda x: x / (1 + np.exp(-x)), (A,)),
    ("maximum", ag.maximum, np.maximum, (A, B)),
    ("minimum", ag.minimum, np.minimum, (A, B)),
    ("select", lambda x, y: ag.where(A > 0, x, y), lambda x, y: np.where(A > 0, x, y), (B, ROW)),
    ("where", lambda x: ag.where(MASK, x, 2.0), lambda x: np.where(MASK, x, 2.0), (ROW,)),
    ("astype", lambda x: x.astype(np.float64), lambda x: x.astype(np.float64), (A,)),
    ("sum", ag.sum, np.sum, (A,)),
    ("mean", lambda x: x.mean(axis=(0, 2)), lambda x: x.mean(axis=(0, 2)), (CUBE,)),
    ("max", lambda x: x.max(axis=-1), lambda x: x.max(axis=-1), (CUBE,)),
    ("min", lambda x: x.min(), lambda x: x.min(), (A,)),
    ("min", lambda x: ag.min(x, (0, 1), True), lambda x: x.min((0, 1), keepdims=True), (CUBE,)),
    ("cumsum", lambda x: ag.cumsum(x, axis=1), lambda x: np.cumsum(x, axis=1), (CUBE,)),
    ("cumsum", ag.cumsum, np.cumsum, (COLUMN,)),
    ("rescale", lambda x: ag.rescale(x, axis=(0, 1), m=0.5, eps=0.1),
     lambda x: x / np.sqrt(0.5 * (x * x).sum() + 0.1), (A,)),
    ("normalize", ag.normalize, lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True), (A,)),
    ("rms_normalize", ag.rms_normalize, lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6), (A,)),
    ("logsumexp", ag.logsumexp, lambda x: np.log(np.exp(x).sum(-1)), (A,)),
    ("softmax", ag.softmax, np_softmax, (A,)),
    ("softmax", lambda x: ag.softmax(x, axis=0), lambda x: np_softmax(x, axis=0), (A,)),
    ("log_softmax", ag.log_softmax, lambda x: np.log(np_softmax(x)), (A,)),
    ("reshape", lambda x: x.reshape(3, -1), lambda x: x.reshape(3, -1), (CUBE,)),
    ("transpose", lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(1, 2, 0), (CUBE,)),
    ("transpose", lambda x: x.T, lambda x: x.T, (CUBE,)),
    ("swapaxes", lambda x: x.swapaxes(0, -1), lambda x: x.swapaxes(0, -1), (CUBE,)),
    ("broadcast_to", lambda x: ag.broadcast_to(x, shape=(2, 2, 3)), lambda x: np.broadcast_to(x, (2, 2, 3)),
     (COLUMN,)),
    ("expand_dims", lambda x: ag.expand_dims(x, 1), lambda x: np.expand_dims(x, 1), (A,)),
    ("squeeze", ag.squeeze, np.squeeze, (COLUMN,)),
    ("flip", lambda x: ag.flip(x, axis=(0, 1)), lambda x: np.flip(x, (0, 1)), (A,)),
    ("tril", lambda x: ag.tril(x, k=1), lambda x: np.tril(x, 1), (CUBE,)),
    ("triu", lambda x: ag.triu(x, 1), lambda x: np.triu(x, 1), (CUBE,)),
    ("concatenate", lambda x, y: ag.concatenate([x, y], -1), lambda x, y: np.concatenate([x, y], -1),
     (A, COLUMN)),
    ("stack", lambda x, y: ag.stack([x, y, x], 1), lambda x, y: np.stack([x, y, x], 1), (A, B)),
    ("getitem", lambda x: x[:, 1:] * x[[0, 0]][:, 0:1], lambda x: x[:, 1:] * x[[0, 0]][:, 0:1], (A,)),
    ("scatter", lambda x: ag.scatter(x, index=np.array([2, 0, 2]), shape=(4,)), np_scatter, (ROW,)),
    ("take_along_axis", lambda x: ag.take_along_axis(x, np.array([[2, 2]]), 1),
     lambda x: np.take_along_axis(x, np.array([[2, 2]]), 1), (A,)),
    ("embedding", lambda x: ag.embedding(x, [[1, 0], [1, 1]]), lambda x: x[[[1, 0], [1, 1]]], (A,)),
    ("matmul", operator.matmul, operator.matmul, (A, normal(3, 2))),
    ("matmul", operator.matmul, operator.matmul, (normal(2, 1, 1, 3), normal(2, 3, 2))),
    ("einsum", lambda x, y: ag.einsum("ij,kj->ik", x, y), lambda x, y: x @ y.T, (A, B)),
    ("einsum", lambda x, y: ag.einsum("ji,jk", x, y), lambda x, y: x.T @ y, (A, B)),
    ("einsum", lambda x, y, w: ag.einsum("ij, jk, l -> kj", x, y, w),
     lambda x, y, w: np.einsum("ij,jk,l->kj", x, y, w), (A, normal(3, 2), ROW)),
    ("einsum", lambda x, y: ag.einsum("ij,ij->j", x, y), lambda x, y: (x * y).sum(0), (A, COLUMN)),
    ("solve_triangular", ag.solve_triangular, lambda a, b: np.linalg.solve(np.tril(a), b),
     (SQUARE, normal(3, 2))),
    ("solve_triangular", lambda a, b: ag.solve_triangular(a, b, unit=True),
     lambda a, b: np.linalg.solve(np.tril(a, -1) + np.eye(3), b), (SQUARE, normal(2, 3, 1))),
]
every_case = pytest.mark.parametrize("f, reference, point", [c[1:] for c in CASES],
                                     ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
CURVED = ["mul", "div", "power", "exp", "tanh", "softmax", "norm", "rescale", "silu", "logsumexp",
          "matmul", "einsum", "solve_triangular", "getitem"]


# every operation --------------------------------------------------------------------------------------------

def test_every_operation_and_every_function_has_a_check():
    checked = {name for name, *_ in CASES}
    operations = {name for name, f in ag.OPS.items() if f.__module__ == "autograd"}
    functions = {name for name, f in vars(ag).items() if inspect.isfunction(f) and f.__module__ == "autograd"
                 and not name.startswith("_") and f not in ag.OPS.values()}
    assert not operations - checked, "operations without a check case"
    assert not functions - set(ag.__all__) - {"main"} - checked, "functions without a check case"


@every_case
def test_forward_is_numpys(f, reference, point):
    with no_grad():
        found = f(*map(Tensor, point))
    expected = reference(*point)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.data, expected, rtol=1e-12, atol=1e-14)


@every_case
def test_first_and_second_derivatives_match_central_differences(f, reference, point):
    assert check_grad(f, *point, order=2) < 1e-6


@pytest.mark.parametrize("f", [ag.tanh, ag.softmax, ag.normalize, ag.silu, lambda x: x ** 4,
                               lambda x: (x @ x.T) * x])
def test_third_derivatives_match_central_differences(f):
    assert check_grad(f, normal(2, 2), order=3) < 1e-5


@every_case
def test_float32_stays_float32_with_its_gradient(f, reference, point):
    xs = [leaf(x.astype(np.float32)) for x in point]
    z = f(*xs)
    assert z.dtype == np.float32 or "astype" in inspect.getsource(f)
    z.backward(np.ones_like(z.data))
    for x in xs:
        assert type(x.grad) is np.ndarray and x.grad.dtype == np.float32 and x.grad.shape == x.shape


def test_powers_of_zero_have_the_derivatives_of_their_limits():
    """Values and derivatives as PyTorch gives them; with respect to the exponent of a negative base, 0."""
    for base, exponent, z, to_base, to_exponent in [
            (0.0, -1.0, np.inf, -np.inf, -np.inf), (0.0, 0.0, 1, 0, 0), (0.0, 0.5, 0, np.inf, 0), (0.0, 2.0, 0, 0, 0),
            (-2.0, 3.0, -8, 12, 0), (np.inf, 2.0, np.inf, np.inf, np.inf)]:
        x, y = leaf(np.array([base])), leaf(np.array([exponent]))
        with np.errstate(divide="ignore"):
            found = (x ** y, *grad(x ** y, [x, y]))
        assert [v.item() for v in found] == [z, to_base, to_exponent]


def test_powers_are_differentiable_at_zero_and_below():
    x, y = leaf(np.array([0.0, 0.0, 0.0, -2.0])), leaf(np.array([0.0, 1.0, 2.0, 3.0]))
    dx, dy = grad((x ** y).sum(), [x, y], create_graph=True)
    np.testing.assert_array_equal(dx.data, [0, 1, 0, 12])
    np.testing.assert_array_equal(dy.data, [0, 0, 0, 0])
    np.testing.assert_array_equal(grad(dx.sum(), [x])[0].data, [0, 0, 2, -12])
    for kind in (np.uint8, np.int8):
        np.testing.assert_array_equal(grad((x ** np.array([0, 1, 2, 3], kind)).sum(), [x])[0].data, [0, 1, 0, 12])


def test_every_operation_has_a_derivative_of_empty_arrays():
    empty = np.zeros((2, 0, 3))
    for f in (ag.exp, ag.sum, ag.softmax, ag.relu, ag.normalize, ag.tril, lambda x: x.mean(axis=-1),
              lambda x: x[:, :, 1:], lambda x: ag.concatenate([x, x], 1), lambda x: x @ x.mT,
              lambda x: x.mT @ x, lambda x: x.reshape(-1, 6), lambda x: ag.cumsum(x, axis=0),
              lambda x: ag.einsum("abc->c", x)):
        x = leaf(empty)
        f(x).sum().backward()
        assert x.grad.shape == empty.shape


# the checker ------------------------------------------------------------------------------------------------

@pytest.fixture
def registry(monkeypatch):
    """Operations made inside a test are forgotten after it."""
    monkeypatch.setattr(ag, "OPS", dict(ag.OPS))


def askew(x):
    """x, with a rule that is wrong by one part in a thousand."""
    return op(lambda x: (x.data * 1, (lambda g: g * 1.001,)), name="askew")(x)


@every_case
def test_checker_rejects_a_rule_wrong_by_one_part_in_a_thousand(f, reference, point, registry):
    for i in range(len(point)):
        with pytest.raises(AssertionError, match=f"order 1, input {i}"):
            check_grad(lambda *xs, i=i: f(*xs[:i], askew(xs[i]), *xs[i + 1:]), *point, order=1)


@pytest.mark.parametrize("f, point", [pytest.param(c[1], c[3], id=c[0]) for c in CASES if c[0] in CURVED])
def test_checker_rejects_a_second_derivative_wrong_by_one_part_in_a_thousand(f, point, registry):
    for i in range(len(point)):
        def skewed_rule(*xs, i=i):
            def rules(g):  # the value of f's own rule; its derivative with respect to input i is askew
                with enable_grad():
                    ys = [askew(x) if j == i else x * 1 for j, x in enumerate(xs)]
                    z = f(*ys)
                return grad(z, ys, g, create_graph=grad_enabled())
            with no_grad():
                return f(*xs).data, rules
        z = op(skewed_rule)
        assert check_grad(z, *point, order=1) < 1e-6
        with pytest.raises(AssertionError, match="order 2, input"):
            check_grad(z, *point, order=2)


def test_checker_rejects_nan_and_names_the_element(registry):
    bad = op(lambda x: (x.data * 1, (lambda g: g * np.array([1.0, np.nan]),)), name="bad")
    with pytest.raises(AssertionError, match=r"order 1, input 0, element \(1,\): the rule says nan"):
        check_grad(bad, np.ones(2))


def test_checker_sees_every_output_of_a_tuple():
    assert check_grad(lambda x: (x * x, ag.exp(x).sum()), A) < 1e-6
    with pytest.raises(AssertionError, match="order 1"):
        check_grad(lambda x: (x * x, ag.exp(x.detach()) * x), A)


# properties over shapes -------------------------------------------------------------------------------------

many = settings(max_examples=200)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
full_shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)


@many
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=3, max_side=3),
       st.sampled_from([operator.add, operator.sub, operator.mul, ag.maximum, ag.minimum, ag.div, ag.power,
                        lambda x, y: ag.where(x > y, x * y, y)]))
def test_broadcasting_is_undone_on_the_way_back(broadcast, f):
    x, y = (positive(*shape, seed=i) for i, shape in enumerate(broadcast.input_shapes))
    assert check_grad(f, x, y, order=1) < 1e-6
    assert f(Tensor(x), Tensor(y)).shape == broadcast.result_shape


@many
@given(st.data(), st.booleans(), st.sampled_from([
    (ag.sum, np.sum), (ag.mean, np.mean), (ag.max, np.max), (lambda x, **k: x.min(**k), np.min),
    (ag.logsumexp, lambda x, **k: np.log(np.sum(np.exp(x), **k)))]))
def test_reductions_along_any_axes(data, keepdims, pair):
    f, reference = pair
    shape = data.draw(shapes if f is ag.sum else full_shapes)
    axes = st.none() | hnp.valid_tuple_axes(len(shape))
    axes = axes | st.integers(-len(shape), len(shape) - 1) if shape else axes
    how = {"axis": data.draw(axes), "keepdims": keepdims}
    x = normal(*shape)
    np.testing.assert_allclose(f(Tensor(x), **how).data, reference(x, **how), atol=1e-12, strict=True)
    assert check_grad(lambda x: f(x, **how), x, order=1) < 1e-6


@many
@given(st.data(), full_shapes, st.sampled_from([
    ag.log_softmax, ag.normalize, ag.rms_normalize, lambda x, axis: ag.softmax(x, axis=axis),
    lambda x, axis: ag.cumsum(x, axis=axis), lambda x, axis: ag.flip(x, axis=axis),
    lambda x, axis: ag.concatenate([x, x * x], axis), lambda x, axis: ag.stack([x, x * x], axis),
    lambda x, axis: ag.squeeze(ag.expand_dims(x, axis), axis)]))
def test_functions_along_any_axis(data, shape, f):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert check_grad(lambda x: f(x, axis), normal(*shape), order=1) < 1e-6


@many
@given(hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, min_side=0, max_dims=2, max_side=3))
def test_matmul_of_any_shapes_that_numpy_multiplies(shapes):
    x, y = (normal(*s, seed=i) for i, s in enumerate(shapes.input_shapes))
    np.testing.assert_allclose((Tensor(x) @ Tensor(y)).data, np.asarray(x @ y), atol=1e-14, strict=True)
    assert check_grad(operator.matmul, x, y, order=1) < 1e-6


@st.composite
def indices(draw):
    """A shape and any index NumPy takes: basic, integer arrays with repeats, masks, and mixtures of them."""
    shape = draw(full_shapes)
    integers = hnp.integer_array_indices(shape[:1], result_shape=hnp.array_shapes(max_dims=2, max_side=4))
    rest = hnp.basic_indices(shape[1:], allow_ellipsis=False) if shape[1:] else st.just(())
    mixed = st.tuples(integers, rest).map(lambda p: (*p[0], *(p[1] if isinstance(p[1], tuple) else (p[1],))))
    lists = st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=4)
    masks = hnp.arrays(bool, shape) | hnp.arrays(bool, shape[:1]).map(lambda mask: (mask, ...))
    basic, advanced = hnp.basic_indices(shape, allow_newaxis=True), hnp.integer_array_indices(shape)
    return shape, draw(st.one_of(basic, advanced, mixed, masks, lists))


@many
@given(indices())
def test_indexing_adds_up_where_an_index_repeats(drawn):
    shape, index = drawn
    x, data = leaf(normal(*shape)), normal(*shape)
    np.testing.assert_array_equal(x[index].data, x.data[index])
    c = normal(*x.data[index].shape, seed=2)
    expected = data.copy()
    np.add.at(expected, index, c)
    x.grad = data.copy()  # what an earlier backward left there
    x[index].backward(c)
    np.testing.assert_allclose(x.grad, expected, atol=1e-14)
    (differentiable,) = grad(x[index], [x], c, create_graph=True)
    np.testing.assert_allclose(differentiable.data, expected - data, atol=1e-14)


@many
@given(st.data(), full_shapes)
def test_shape_moves_only_move(data, shape):
    axes = tuple(data.draw(st.permutations(range(-len(shape), 0))))
    x = normal(*shape)
    for f in (lambda x: x.transpose(*axes), lambda x: x.reshape(-1), lambda x: x.swapaxes(axes[0], 0)):
        np.testing.assert_array_equal(f(Tensor(x)).data, f(x))
        assert check_grad(f, x, order=1) < 1e-6


@many
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_any_expression_has_its_second_derivative(program):
    """A random graph in which values are used again and again."""
    functions = [operator.add, operator.mul, operator.matmul, lambda x, y: ag.tanh(x) - y.T,
                 lambda x, y: ag.concatenate([x[:1] * y[1:], y[:1]]),
                 lambda x, y: ag.softmax(x) * y.sum(axis=0)]

    def run(x, y):
        pool = [x, y]
        for f, i, j in program:
            pool.append(ag.tanh(functions[f](pool[i % len(pool)], pool[j % len(pool)])))
        return pool[-1] * pool[len(pool) // 2]
    assert check_grad(run, normal(2, 2), normal(2, 2, seed=1), order=2) < 1e-5


# numbers and dtypes -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_python_numbers_and_lists_take_the_precision_they_meet(dtype):
    x = Tensor(np.ones(2, dtype))
    numbers = [0.1, 0.2]
    for z in (x + 1, 2.5 * x, 1 - x, x / 3, 3 / x, x ** 2, 2 ** x, x + numbers, ag.where(x > 0, x, 0.0)):
        assert z.dtype == dtype
    assert (x + numbers).data[0] == dtype(1) + dtype(0.1)
    assert ag.stack([x[0], 0.1]).data[1] == dtype(0.1)


def test_python_numbers_and_lists_beside_integers_are_what_numpy_makes_of_them():
    for dtype in (np.int64, np.int8, np.uint8, bool):
        n = np.array([0, 1, 1], dtype)
        for f in (lambda x: x * 0.1, lambda x: 0.1 + x, lambda x: x + 1, lambda x: x * [0.1, 0.2, 0.3],
                  lambda x: x * [1, 2, 3], lambda x: x / 3, lambda x: np.where(x > 0, x, 0.1)):
            np.testing.assert_array_equal(f(Tensor(n)).data, f(n), strict=True)
    assert (Tensor(np.arange(3)) * 0.1).data[1] == 0.1
    with pytest.raises(OverflowError):  # as in NumPy
        Tensor(np.uint8([1])) + 300


def test_a_list_of_tensors_is_a_tensor_with_their_history():
    x, y = leaf([1.0, 2.0]), leaf(3.0)
    z = ag.tensor([[x[0], y], [x[1], 4.0]])
    assert z.tolist() == [[1, 3], [2, 4]] and z.dtype == np.float32
    for g, expected in zip(grad((z * z).sum(), [x, y]), ([2, 4], 6), strict=True):
        assert g.tolist() == expected
    assert (leaf([1.0, 2.0]) * [y, x[1]]).tolist() == [3, 4]
    assert Tensor([Tensor(1.0), Tensor(2.0)]).tolist() == [1, 2]
    with pytest.raises(TypeError, match="for a list of tensors stack"):
        Tensor([x, x])


def test_tensor_gives_what_is_asked_for():
    x = Tensor([1.0, 2.0])
    assert ag.tensor(x) is x and ag.tensor(x, dtype=np.float32) is x
    weight = ag.tensor(x.detach(), requires_grad=True)
    assert weight.requires_grad and not x.requires_grad and ag.tensor(weight, requires_grad=True) is weight
    wide = ag.tensor(weight, dtype=np.float64)
    assert wide.dtype == np.float64 and grad(wide.sum(), [weight])[0].tolist() == [1, 1]
    assert ag.tensor(x, dtype=np.float64, requires_grad=True).requires_grad
    with pytest.raises(TypeError, match="only floating-point tensors"):
        ag.tensor(Tensor([1, 2]), requires_grad=True)


def test_numbers_in_foreign_byte_order_are_turned_round():
    for dtype in (">f4", ">f8", ">i2"):
        x = Tensor(np.array([1, 2], dtype))
        assert x.dtype.isnative and x.dtype.kind == dtype[1] and x.tolist() == [1, 2]


def test_tensors_of_python_numbers_are_float32_and_arrays_keep_their_dtype():
    assert Tensor(1.5).dtype == Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64
    assert Tensor(np.zeros(2)).dtype == Tensor(np.float64(1)).dtype == np.float64
    assert Tensor([0.1], dtype=np.float64).data[0] == 0.1


def test_mixed_precision_returns_each_gradient_in_its_own():
    x, y = leaf(np.ones(3, np.float32)), leaf(np.ones((2, 3)))
    z = x * y
    z.sum().backward()
    assert (z.dtype, x.grad.dtype, y.grad.dtype) == (np.float64, np.float32, np.float64)


def test_integers_are_never_differentiable():
    for data in ([1, 2], [True, False], np.arange(3, dtype=np.uint8)):
        with pytest.raises(TypeError, match=r"only floating-point tensors have gradients.*astype"):
            Tensor(data, requires_grad=True)
    x, n = leaf([1.5, 2.5]), Tensor([3, 4])
    (x * n).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 4])
    assert n.grad is None and not x.astype(int).requires_grad and not (n * n).requires_grad


@pytest.mark.parametrize("thing", [None, "text", 1j, [None]])
def test_what_is_no_number_is_refused(thing):
    with pytest.raises(TypeError, match="a tensor holds real numbers, not"):
        Tensor(thing)
    with pytest.raises(TypeError, match="a tensor holds real numbers, not"):
        Tensor([1.0]) + thing


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f, low, high", [
    (ag.sigmoid, 0, 1), (ag.softplus, 0, 1e4), (ag.tanh, -1, 1), (ag.silu, 0, 1e4),
    (lambda x: ag.logsumexp(x, keepdims=True) + x * 0, 1e4, 1e4), (ag.softmax, 0, 1),
    (ag.log_softmax, -2e4, 0)])
def test_large_inputs_neither_overflow_nor_warn(f, low, high, dtype):
    x = leaf(np.array([-1e4, 1e4], dtype))
    z = f(x)
    np.testing.assert_array_equal(z.data, np.array([low, high], dtype))
    (g,) = grad(z, [x], np.ones_like(z.data), create_graph=True)
    (h,) = grad(g, [x], np.ones_like(z.data))
    assert np.isfinite(g.data).all() and np.isfinite(h.data).all()


any_kind = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes(
    endianness="=", sizes=(32, 64))


@many
@given(st.data(), any_kind)
def test_extremes_of_numbers_of_any_kind_are_numpys(data, dtype):
    x, y = (data.draw(hnp.arrays(dtype, (3,))) for _ in range(2))
    for f, g in ((ag.min, np.min), (ag.max, np.max)):
        np.testing.assert_array_equal(f(Tensor(x)).data, g(x))
    for f, g in ((ag.minimum, np.minimum), (ag.maximum, np.maximum)):
        np.testing.assert_array_equal(f(Tensor(x), Tensor(y)).data, g(x, y))


def test_extremes_are_right_for_unsigned_for_the_lowest_and_for_truth_values():
    assert Tensor(np.array([0, 5, 3], np.uint8)).min().item() == 0
    assert Tensor(np.array([-128, 5], np.int8)).min().item() == -128
    assert ag.minimum(Tensor([True, True]), Tensor([False, True])).tolist() == [False, True]


@many
@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=4), elements=st.floats(allow_nan=True)))
def test_logsumexp_of_any_numbers_is_numpys(x):
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(ag.logsumexp(x).data, np.logaddexp.reduce(x, axis=-1), rtol=1e-12, atol=1e-12)


def test_rows_with_infinities_and_nan_are_as_in_pytorch():
    inf, nan = np.inf, np.nan
    for row, logsumexp, slope, softmax, largest in [
            ([-inf, -inf], -inf, [nan, nan], [nan, nan], [0.5, 0.5]), ([inf, 0.0], inf, [nan, 0], [nan, nan], [1, 0]),
            ([-inf, 0.0], 0, [0, 1], [0, 1], [0, 1]), ([nan, 0.0], nan, [nan, nan], [nan, nan], [nan, nan]),
            ([-inf, inf], inf, [0, nan], [nan, nan], [0, 1]), ([], -inf, [], [], None)]:
        x = leaf(np.array(row))
        z = ag.logsumexp(x)  # of itself without a warning
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(z.data, logsumexp)
            np.testing.assert_array_equal(grad(z, [x])[0].data, slope)
            np.testing.assert_array_equal(ag.softmax(x).data, softmax)
            if row:
                np.testing.assert_array_equal(grad(x.max(), [x])[0].data, largest)
                np.testing.assert_array_equal(grad((-x).min(), [x])[0].data, -np.array(largest))
    with pytest.warns(RuntimeWarning, match="invalid value"):
        ag.softmax(Tensor([-inf, -inf]))
    for a, b, to_a, to_b in [(nan, 1, 1, 1), (1, nan, 1, 1), (inf, inf, 0.5, 0.5), (-inf, 1, 0, 1)]:
        x, y = leaf(np.float64(a)), leaf(np.float64(b))
        for f, g, (to_x, to_y) in ((ag.maximum, np.maximum, (to_a, to_b)), (ag.minimum, np.minimum,
                                   (to_b, to_a) if a != b == b == 1 and a == -inf else (to_a, to_b))):
            np.testing.assert_array_equal(f(x, y).data, g(a, b))
            assert [v.item() for v in grad(f(x, y), [x, y])] == [to_x, to_y]


def test_functions_of_an_empty_axis_are_empty_or_what_nothing_sums_to():
    x = leaf(np.zeros((2, 0)))
    assert ag.softmax(x).shape == ag.log_softmax(x).shape == (2, 0) and ag.softmax(x, 0).shape == (2, 0)
    assert ag.logsumexp(x).tolist() == [-np.inf, -np.inf] and ag.sum(x, 1).tolist() == [0, 0]
    assert grad(ag.softmax(x).sum(), [x])[0].shape == (2, 0)


def test_numpy_arrays_work_on_both_sides_of_every_operator():
    array = positive(2, 2)
    for f in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul,
              operator.floordiv, operator.mod):
        for pair in ((Tensor(array), array), (array, Tensor(array))):
            z = f(*pair)
            assert type(z) is Tensor
            np.testing.assert_array_equal(z.data, f(array, array))
    for f in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
        for pair in ((Tensor(array), array.T), (array, Tensor(array.T)), (Tensor(array), Tensor(array.T))):
            np.testing.assert_array_equal(f(*pair), f(array, array.T))


def test_a_tensor_becomes_an_array_only_without_gradients():
    x = leaf([1.0, 2.0])
    for convert in (np.asarray, np.array, np.cbrt, lambda x: np.ones(2) + np.asarray(x)):
        with pytest.raises(TypeError):
            convert(x)
    assert np.asarray(x.detach()) is x.data
    copy = np.array(x.detach())
    copy[:] = 9
    np.testing.assert_array_equal(x.data, [1, 2])


def test_a_tensor_behaves_like_an_array_in_python():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2 and [row.data.tolist() for row in x] == x.data.tolist() and x[1, 1].item() == 4
    assert float(x.sum()) == 10 and bool(Tensor(0.0)) is False and len({x, x}) == 1
    assert repr(leaf([1.0])) == "Tensor([1.], requires_grad=True)" and "from mul" in repr(leaf(1.0) * 2)
    assert int(Tensor(2.7)) == 2 and [10, 11, 12][Tensor(2)] == 12 and abs(-x).tolist() == (+x).tolist() == x.tolist()
    assert (7 // x).tolist() == [[7, 3], [2, 1]] and (7 % x).tolist() == [[0, 1], [1, 3]]
    assert f"{x.sum():.2f} {x[0]}" == "10.00 Tensor([1. 2.])"
    assert x.transpose((1, 0)).tolist() == x.transpose(1, 0).tolist() == x.T.tolist() == [[1, 3], [2, 4]]
    assert x.reshape((4, 1)).shape == x.view(4, -1).shape == (4, 1) and x.permute(1, 0).shape == (2, 2)
    with pytest.raises(TypeError):
        list(Tensor(1.0))
    with pytest.raises(TypeError, match=r"a tensor is not written into: .* where"):
        x[0] = 1.0
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)


def test_an_array_takes_a_tensor_in_place_only_without_gradients():
    array, x = np.ones(2), leaf(np.ones(2))
    array += x.detach()
    assert type(array) is np.ndarray and array.tolist() == [2, 2]
    with pytest.raises(TypeError, match=r"np\.add into an array has no derivative; without out="):
        array += x


@given(st.sampled_from([np.uint8, np.int8, np.uint16, np.uint64]), st.integers(1, 300), st.integers(1, 5))
def test_indices_of_any_integer_kind_find_their_way_back(dtype, rows, width):
    at = np.array([0, min(rows, np.iinfo(dtype).max) - 1, 0]).astype(dtype)
    x = leaf(np.zeros((rows, width)))
    x[at].sum().backward()
    expected = np.zeros((rows, width))
    np.add.at(expected, at, 1.0)
    np.testing.assert_array_equal(x.grad, expected)


# the walk back ----------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_100_000_chained_operations_work_and_can_be_dropped():
    def chain(x):
        for _ in range(100_000):
            x = x * 1.0
        return x
    x = leaf([3.0])
    chain(x).backward()
    np.testing.assert_array_equal(x.grad, [1])
    del x
    z = chain(leaf([3.0]))
    last = weakref.ref(z.node.inputs[0])
    del z
    assert last() is None


def test_backward_accumulates_and_grad_leaves_grad_alone():
    x = leaf([1.0, 2.0])
    for _ in range(2):
        (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 8])
    (g,) = grad((x ** 3).sum(), x)
    np.testing.assert_array_equal(g.data, [3, 12])
    np.testing.assert_array_equal(x.grad, [4, 8])


def test_grad_takes_several_outputs_cotangents_and_unused_inputs():
    x, y, unused, number = leaf([1.0, 2.0]), leaf([3.0, 4.0]), leaf(np.ones((2, 2))), Tensor([5])
    found = grad([x * y, x * 2, number], [x, y, unused], [Tensor([1.0, 1.0]), np.array([1, 0]), [0]])
    for g, expected in zip(found, ([5, 4], [1, 2], np.zeros((2, 2))), strict=True):
        np.testing.assert_array_equal(g.data, expected)
    hidden = x * 2
    np.testing.assert_array_equal(grad((hidden * hidden).sum(), [hidden, x])[0].data, [4, 8])
    np.testing.assert_array_equal(grad(hidden, [hidden], hidden.data)[0].data, hidden.data)


def test_grad_refuses_an_input_without_gradients_instead_of_calling_its_cotangent_zero():
    x = Tensor([2.0])
    with pytest.raises(ValueError, match="does not require gradients"):
        grad(x * leaf([3.0]), [x])


def test_each_leaf_is_ready_once_as_soon_as_its_gradient_is_complete():
    """The last weight of a chain before the first is asked for, a weight that is used twice after its first use."""
    weights = [Tensor(np.full(3, n + 1.0), requires_grad=True) for n in range(3)]
    passed = []

    @ag.op
    def watched(x, *, name):
        return x.data * 1, (lambda g: passed.append(name) or g,)

    def loss():
        x = Tensor(np.ones(3))
        for n in (0, 1, 2, 1):
            x = watched(x * weights[n], name=n)
        return sum(x)
    loss().backward()
    whole = [w.grad for w in weights]
    for w in weights:
        w.grad = None
    order = []

    def ready(leaf):
        n = next(i for i, w in enumerate(weights) if w is leaf)
        order.append((n, len(passed)))
        assert np.array_equal(leaf.grad, whole[n])
    passed.clear()
    loss().backward(ready=ready)
    assert order == [(2, 2), (1, 3), (0, 4)]  # (which, products that the walk back has passed)
    assert all(np.array_equal(w.grad, g) for w, g in zip(weights, whole, strict=True))


def test_grad_refuses_outputs_without_history_as_backward_does():
    x = leaf([1.0, 2.0])
    with no_grad():
        y = (x * x).sum()
    for call in (y.backward, lambda: grad(y, [x]), lambda: grad([y, y], [x], create_graph=True)):
        with pytest.raises(RuntimeError, match="depends on nothing requiring gradients"):
            call()


def test_weights_that_change_between_an_operation_and_the_way_back_are_noticed():
    def replace(w):
        w.data = w.data * 2

    def add(w):
        w.data += 1
    for change in (replace, add, Leaf.mark_changed):
        w, x = leaf(np.ones((2, 2))), leaf(np.ones((2, 2)))
        for f in (lambda w, x: (x @ w).sum(), lambda w, x: checkpoint(lambda x: (x * w).sum(), x, parameters=[w])):
            y = f(w, x)
            change(w)
            for back in (lambda y=y, x=x: grad(y, [x], retain_graph=True), y.backward):
                with pytest.raises(RuntimeError, match=r"of shape \(2, 2\), was changed after it was used"):
                    back()
            f(w, x).backward()  # a new graph is fine


def test_grad_is_the_total_derivative_and_frees_nothing_behind_what_is_asked():
    x, y = leaf([2.0]), leaf([3.0])
    h = x * y
    z = h * h * y  # x²y³
    assert [g.item() for g in grad(z, [x, y, h], retain_graph=True)] == [108, 108, 36]
    grad(z, [h])
    h.backward()
    assert (x.grad, y.grad) == (3, 2)


def test_second_backward_says_that_the_graph_is_freed():
    x = leaf([1.0, 2.0])
    hidden = ag.exp(x)
    y = hidden.sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad, 2 * np.exp([1, 2]), rtol=1e-6)
    freed = r"the graph behind '\w+' was freed by an earlier backward\(\) or grad\(\); pass retain_graph=True"
    for again in (y.backward, (hidden * 2).sum().backward, lambda: grad(hidden.sum(), [x])):
        with pytest.raises(RuntimeError, match=freed):
            again()
    (above,) = grad((hidden * 3).sum(), [hidden])  # does not ask for what lies behind
    np.testing.assert_array_equal(above.data, [3, 3])


@pytest.mark.parametrize("drop", ["backward", "forget", "create_graph"])
def test_a_used_graph_leaves_memory_without_the_garbage_collector(drop):
    gc.collect()
    gc.disable()
    try:
        x = leaf(np.ones(3))
        hidden = ag.softmax(ag.exp(x) / x)
        y = (checkpoint(ag.tanh, hidden) * hidden[[0, 0]][0]).sum()
        node, array = weakref.ref(hidden), weakref.ref(hidden.data)
        del hidden
        assert node() is not None
        if drop == "backward":
            y.backward()
        elif drop == "create_graph":
            (g,) = grad(y, [x], create_graph=True)
            grad(g.sum(), [x])
            del g, y
        else:
            del y
        assert node() is None and array() is None
    finally:
        gc.enable()


def test_gradients_share_no_memory_with_each_other_or_the_caller():
    x, y, z, row = (leaf(np.ones((2, 2))) for _ in range(4))
    cotangent = np.ones((2, 2))
    (x + y + z.T + row[0] * 1).backward(cotangent)
    arrays = [t.grad for t in (x, y, z, row)] + [cotangent]
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
    assert all(a.flags.writeable for a in arrays)
    alone = leaf(np.ones((2, 2)))
    alone.backward(cotangent)
    alone.sum().backward()
    np.testing.assert_array_equal(cotangent, np.ones((2, 2)))


def test_a_scalar_leaf_has_an_array_as_gradient():
    x = leaf(np.float32(3))
    (x * 2).backward()
    assert type(x.grad) is np.ndarray and x.grad.shape == () and x.grad == 2


def test_wrong_use_gets_one_clear_line():
    x = leaf(np.ones((2, 3)))
    for call, error, message in [
            (lambda: (x * 2).backward(), ValueError, r"has shape \(2, 3\); give a cotangent of that shape"),
            (lambda: (x * 2).backward(np.ones(3)), ValueError, r"has shape \(3,\), the output \(2, 3\)"),
            (lambda: x.detach().sum().backward(), RuntimeError, "depends on nothing requiring gradients"),
            (lambda: grad([x, x], [x], [np.ones((2, 3))]), ValueError, "1 cotangents for 2 outputs"),
            (lambda: x @ x, ValueError, r"matmul of shapes \(2, 3\) and \(2, 3\)"),
            (lambda: x @ Tensor(1.0), ValueError, "matmul of shapes"),
            (lambda: ag.einsum("ii->i", x), ValueError, "each index once"),
            (lambda: ag.einsum("...j->j", x), ValueError, "a letter for every axis"),
            (lambda: ag.embedding(x, [0.5]), TypeError, "must be integers"),
            (lambda: ag.solve_triangular(SQUARE, ROW), ValueError, "must be a matrix of columns")]:
        with pytest.raises(error, match=message):
            call()


# modes ------------------------------------------------------------------------------------------------------

def test_no_grad_and_enable_grad_work_as_blocks_and_as_decorators():
    x = leaf([1.0])

    @no_grad()
    def silent(depth=0):
        return silent(depth - 1) if depth else x * 2

    @enable_grad()
    def recorded():
        return x * 2

    with no_grad():
        assert not grad_enabled() and not (x * 2).requires_grad and recorded().requires_grad
        with enable_grad():
            assert (x * 2).requires_grad and not silent().requires_grad
        assert not grad_enabled()
    assert not silent(3).requires_grad and (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert grad_enabled()


def test_one_no_grad_serves_several_blocks_threads_and_itself():
    silent, seen, x = no_grad(), [], leaf([1.0])
    with silent:
        with silent:
            assert not grad_enabled()
        assert not grad_enabled()
        thread = threading.Thread(target=lambda: (seen.append(grad_enabled()), silent.__enter__(),
                                                  silent.__exit__(), seen.append(grad_enabled())))
        thread.start()
        thread.join()
    assert grad_enabled() and (x * 2).requires_grad and seen == [True, True]


def test_no_grad_in_one_thread_leaves_the_others_recording():
    x, inside, seen = leaf([1.0]), threading.Barrier(2, timeout=300), []

    def other():
        inside.wait()
        seen.append((x * 2).requires_grad)
        inside.wait()
    thread = threading.Thread(target=other)
    thread.start()
    with no_grad():
        inside.wait()
        inside.wait()
    thread.join()
    assert seen == [True]


def test_backward_records_nothing_and_detach_cuts():
    x = leaf([2.0])
    (g,) = grad(x * x, [x])
    assert not g.requires_grad and g.node is None
    y = (x * x).detach() * x
    y.backward()
    np.testing.assert_array_equal(x.grad, [4])
    assert x.detach().data is x.data


# checkpoint -------------------------------------------------------------------------------------------------

def block(x, w):
    return ag.tanh(x @ w) + ag.softmax(x)


def test_checkpoint_gives_the_same_bits():
    results = []
    for run in (block, lambda x, w: checkpoint(block, x, w),
                lambda x, w: checkpoint(lambda x: block(x, w), x, parameters=[w])):
        x, w = leaf(normal(4, 3)), leaf(normal(3, 3))
        z = run(run(x, w), w)
        z.sum().backward()
        results.append((z.data.tobytes(), x.grad.tobytes(), w.grad.tobytes()))
    assert results[0] == results[1] == results[2]


def test_checkpoint_has_derivatives_of_any_order():
    x, w = normal(2, 2), normal(2, 2, seed=1)
    assert check_grad(lambda x, w: checkpoint(block, x, w), x, w, order=3) < 1e-5
    assert check_grad(lambda x, w: checkpoint(lambda x: block(x, w), x, parameters=[w]), x, w, order=3) < 1e-5


def test_checkpoint_counts_an_input_that_is_reached_twice_once():
    def twice(x, w):  # w is behind a too, a is given twice, and one checkpoint lies within another
        a = x * w
        b, c = checkpoint(lambda a, b, w: (a * b, ag.tanh(w)), a, a, w)
        inner = lambda b: checkpoint(lambda b: b * c * w, b, parameters=[c, w])
        return checkpoint(inner, b, parameters=[c, w])
    assert check_grad(twice, A, B) < 1e-6


def test_checkpoint_passes_on_outputs_that_nothing_uses_and_inputs_that_need_nothing():
    x, mask = leaf(np.ones(3)), Tensor(np.array([1, 0, 1]))
    used, _ = checkpoint(lambda x, m: (x * m, ag.exp(x)), x, mask)
    used.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 0, 1])


def test_checkpoint_names_a_parameter_that_was_forgotten():
    x, w = leaf(np.ones(2)), leaf(np.ones(2))
    for forgotten, named in ((w, []), (w * 2, [w])):
        z = checkpoint(lambda x, forgotten=forgotten: x * forgotten, x, parameters=named)
        with pytest.raises(RuntimeError, match=r"of shapes \[\(2,\)\] .* name them in parameters="):
            z.sum().backward()


def test_checkpoint_of_inputs_without_gradients_names_a_parameter_that_was_forgotten():
    x, w = Tensor(np.ones(2)), leaf(np.ones(2))
    with pytest.raises(RuntimeError, match="name them in parameters="):
        checkpoint(lambda x: x * w, x)
    with no_grad():
        assert not checkpoint(lambda x: x * w, x).requires_grad
    assert not checkpoint(lambda x: x * 2, x).requires_grad
    checkpoint(lambda x: x * w, x, parameters=[w]).sum().backward()
    np.testing.assert_array_equal(w.grad, [1, 1])


def test_checkpoint_keeps_fewer_arrays():
    def deep(x):
        for _ in range(20):
            x = ag.tanh(x)
        return x

    def kept(run):
        x = leaf(np.zeros(100_000))
        tracemalloc.start()
        z = run(x)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size / z.data.nbytes
    assert kept(deep) > 19.9
    assert kept(lambda x: checkpoint(deep, x)) < 1.1


# triangular systems -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("unit", [True, False])
@given(n=st.integers(2, 9), scale=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 99))
def test_no_bit_of_a_triangular_solution_depends_on_a_later_row(unit, n, scale, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n, n)) * scale, rng.standard_normal((2, n, 3))
    before = ag.solve_triangular(a, b, unit=unit).data
    at = int(rng.integers(1, n))
    for strange in (rng.standard_normal() * 1e6, np.nan):
        a[:, at:], b[:, at:] = strange, strange
        after = ag.solve_triangular(a, b, unit=unit).data
        np.testing.assert_array_equal(after[:, :at], before[:, :at])
        assert np.isnan(strange) == np.isnan(after[:, at:]).all()


def test_triangular_systems_broadcast_and_refuse_a_zero_on_the_diagonal():
    a, b = np.tril(positive(3, 1, 4, 4)), normal(2, 4, 5)
    np.testing.assert_allclose(a @ ag.solve_triangular(a, b).data, np.broadcast_to(b, (3, 2, 4, 5)))
    assert ag.solve_triangular(a.astype(np.float32), b.astype(np.float32)).dtype == np.float32
    assert ag.solve_triangular(np.zeros((0, 0)), np.zeros((0, 2))).shape == (0, 2)
    a[1, 0, 2, 2] = 0
    with pytest.raises(np.linalg.LinAlgError, match="zero on its diagonal"):
        ag.solve_triangular(a, b)
    assert np.isfinite(ag.solve_triangular(a, b, unit=True).data).all()


# operations of one's own ------------------------------------------------------------------------------------

def products(x, y, *, scale):
    return x * y * scale, ag.exp(x) * y


def fused_products(reference, calls=None):
    @fused(reference=reference)
    def fused_products(x, y, *, scale):
        e = np.exp(x)

        def backward(z_bar, rest_bar):
            if calls is not None:
                calls.append("backward")
            return (z_bar * y * scale + rest_bar * e * y,
                    z_bar * x * scale + rest_bar * e)
        return (x * y * scale, e * y), backward
    return functools.partial(fused_products, scale=2.0)


def test_fused_operations_have_every_order_of_derivative(registry):
    assert check_grad(fused_products(products), normal(2, 2), ROW[:2], order=4) < 1e-5


def test_fused_operations_go_back_by_hand_unless_the_way_back_is_recorded(registry):
    calls: list[str] = []
    f = fused_products(products, calls)
    x, y = leaf([2.0]), leaf([3.0])
    z, _ = f(x, y)
    z.backward()  # nothing arrives at the other output
    assert (x.grad, y.grad) == (6, 4) and calls == ["backward"]
    z, _ = f(x, y)
    (g,) = grad(z, [x], create_graph=True)
    assert g.data == 6 and g.requires_grad and calls == ["backward"]


def test_fused_operations_take_inputs_that_depend_on_each_other_or_are_given_twice(registry):
    f = fused_products(products)

    def tangled(x):
        y = ag.tanh(x)
        return f(x, y)[0] + f(y, y)[1] + f(x, f(x, y)[1])[0]
    assert check_grad(tangled, normal(2), order=3) < 1e-5


def test_fused_operations_leave_inputs_alone_that_need_nothing(registry):
    x, y = leaf([2.0]), Tensor([3.0])
    z, _ = fused_products(products)(x, y)
    (g,) = grad(z, [x], create_graph=True)
    assert g.data == 6 and y.grad is None


def test_a_fused_operation_without_a_reference_says_so(registry):
    f = fused_products("products, slowly")
    assert check_grad(f, A, B, order=1) < 1e-6
    x = leaf([2.0])
    z, _ = f(x, x)
    with pytest.raises(RuntimeError, match=r"with first derivatives only.* orders use products, slowly"):
        grad(z, [x], create_graph=True)


def test_an_operation_may_return_all_cotangents_at_once_and_integers_beside_floats(registry):
    @op(output=True)
    def scaled(x, y):
        return x.data * ag.exp(y).data, lambda g, z: (g * ag.exp(y), g * z)

    @op
    def top(x):
        at = np.argmax(x.data)
        return (x.data[at], at), lambda g, _: (ag.scatter(g, index=at, shape=x.shape),)
    assert check_grad(scaled, A, ROW) < 1e-6
    value, at = top(leaf(ROW))
    assert value.requires_grad and not at.requires_grad
    assert check_grad(lambda x: top(x)[0] ** 2, ROW) < 1e-6


def test_rules_of_constants_are_not_evaluated(registry):
    def never(g):
        raise AssertionError("this input needs no cotangent")
    half = op(lambda x, y: (x.data * y.data, (lambda g: g * y, never)), name="half")
    x, y, number = leaf([2.0]), leaf([3.0]), 4.0
    half(x, number).backward()
    assert x.grad == 4
    grad(half(x, y), [x])  # y has a gradient, but nobody asked for it


@pytest.mark.parametrize("encoding, second", [("utf-8", "d²y/dx²"), ("cp1252", "d²y/dx²"), ("ascii", r"d\xb2y/dx\xb2")])
def test_the_file_explains_itself_in_terminals_of_any_encoding(encoding, second):
    done = subprocess.run([sys.executable, ag.__file__], capture_output=True, check=True,
                          env=os.environ | {"PYTHONIOENCODING": encoding})
    printed = done.stdout.decode(encoding)
    assert "recorded: tanh" in printed and second in printed and not done.stderr


# trees and NumPy's own words -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Any
    count: int = 3


def test_a_tree_keeps_its_shape_and_maps_a_leaf_that_stands_twice_once():
    x, y = Tensor([1.0]), np.array([2.0])
    tree = {"a": [x, (y, None, "word")], "b": Pair(x, {"c": 1.5})}
    called = []
    mapped = tree_map(lambda leaf: called.append(leaf) or leaf * 2, tree)
    assert mapped["a"][0] is mapped["b"].left and len(called) == 2
    assert mapped["a"][1][1:] == (None, "word") and mapped["b"].right == {"c": 1.5} and mapped["b"].count == 3
    assert [id(leaf) for leaf in tree_leaves(tree)] == [id(x), id(y)]
    leaves, rebuild = tree_flatten(tree)
    assert len(leaves) == 3 and rebuild([1, 2, 3]) == {"a": [1, (2, None, "word")], "b": Pair(3, {"c": 1.5})}


def _scaled(pair, factors):
    return Pair(pair.left * factors["l"], [pair.right * factors["r"] * pair.left])


@fused(reference=_scaled)
def fused_scaled(pair, factors):
    left, right = factors["l"], factors["r"]

    def backward(bars):
        L, (R,) = bars.left, bars.right
        return (Pair(L * left + R * pair.right * right, R * right * pair.left),
                {"l": np.sum(L * pair.left), "r": np.sum(R * pair.right * pair.left)})
    return Pair(pair.left * left, [pair.right * right * pair.left]), backward


del ag.OPS["fused_scaled"]  # not one of the engine's


def test_fused_operations_take_trees_and_return_trees_with_derivatives_of_any_order():
    def f(x, y, left, right):
        out = fused_scaled(Pair(x, y), {"l": left, "r": right})
        return out.left, out.right[0]
    check_grad(f, np.array([0.3, -1.2]), np.array([2.0, 0.7]), np.array(1.5), np.array(-0.4), order=3, tolerance=1e-4)


def test_a_fused_operation_may_say_none_for_a_whole_tree():
    @fused(reference="nothing")
    def half(tree, x):
        return x * 0.5, lambda g: (None, g * 0.5)
    leaf, x = Tensor([1.0], requires_grad=True), Tensor([2.0], requires_grad=True)
    half({"leaf": leaf}, x).backward()
    assert leaf.grad is None and x.grad == 0.5
    del ag.OPS["half"]


def test_a_definition_in_numpys_words_runs_on_arrays_and_on_tensors_with_derivatives():
    def f(x, w):
        y = np.where(x > 0, np.tanh(x), np.exp(x)) @ np.swapaxes(w, 0, 1)
        top = np.max(y, axis=-1, keepdims=True)
        return np.sum(np.sqrt(1 + y * y), axis=-1) + np.log(np.sum(np.exp(y - top), axis=-1)) + np.mean(
            np.concatenate([y, np.ones_like(y)], axis=-1), axis=-1)
    x, w = np.random.default_rng(0).standard_normal((3, 2)), np.random.default_rng(1).standard_normal((4, 2))
    assert np.allclose(f(Tensor(x), Tensor(w)).data, f(x, w))
    check_grad(f, x, w)


def test_what_numpy_cannot_differentiate_here_is_said_in_one_line():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"np.arctan2 has no rule .* \.data"):
        np.arctan2(x, 1.0)
    assert np.allclose(np.arctan2(x.detach(), 1.0), np.arctan2(np.float32([1, 2]), 1))


# what others change meanwhile -------------------------------------------------------------------------------

def test_an_index_is_what_it_was_when_it_was_used():
    table, rows = leaf(np.zeros((3, 2))), np.array([0, 0])
    total = Tensor(np.zeros(()))
    for i in range(3):
        rows[:] = i
        total = total + table[rows].sum() + ag.scatter(table[0], index=(rows[:1], ), shape=(3, 2)).sum()
    total.backward()
    np.testing.assert_array_equal(table.grad, [[5, 5], [2, 2], [2, 2]])
    mask, x = np.array([True, False]), leaf(np.ones(2))
    z = ag.where(mask, x, 0.0) + x[mask,] + x[[[0, 1]],].sum(axis=0)
    mask[:] = ~mask
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 1])


def test_a_tensor_that_is_told_later_to_require_gradients_is_a_leaf_like_any_other():
    x = Tensor(np.ones(2))
    x.requires_grad = True
    y = (x * x).sum()
    x.data = x.data * 5
    with pytest.raises(RuntimeError, match="was changed after it was used"):
        y.backward()
    whole = Tensor([1, 2])
    whole.requires_grad = True
    with pytest.raises(TypeError, match="only floating-point tensors have gradients, this one is int64"):
        whole * 2.0


def test_a_gradient_that_is_given_as_a_tensor_is_kept_as_an_array():
    x = leaf([3.0])
    x.grad = grad(x * x, [x])[0]
    assert type(x.grad) is np.ndarray and x.grad == 6


def test_numbers_and_lists_take_the_precision_of_what_they_meet_as_cotangents_too():
    x = leaf(np.ones(1))
    (x * 1).backward([0.1])
    assert x.grad[0] == 0.1
    assert grad((x * 1).sum(), [x], cotangents=0.1)[0].data[0] == 0.1


@pytest.mark.parametrize("reduce", [ag.sum, ag.max, ag.min, ag.mean])
def test_a_tensor_without_axes_reduces_along_its_last_as_in_numpy(reduce):
    x = leaf(np.array(3.0))
    reduce(x, axis=-1).backward()
    assert x.grad == 1


def test_tensors_of_what_is_no_real_number_are_refused():
    for call in (lambda: Tensor([1], dtype=complex), lambda: Tensor([1.0]).astype(complex),
                 lambda: Tensor([1.0], dtype=object)):
        with pytest.raises(TypeError, match="a tensor holds real numbers, not"):
            call()


def test_concatenate_without_an_axis_flattens_and_triu_of_a_vector_is_numpys():
    x, y = leaf(np.arange(4.0).reshape(2, 2)), leaf(np.array([5.0, 6]))
    z = np.concatenate([x, y], axis=None)
    np.testing.assert_array_equal(z.data, [0, 1, 2, 3, 5, 6])
    (z * np.arange(6)).sum().backward()
    np.testing.assert_array_equal(x.grad, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(y.grad, [4, 5])
    for k in (-1, 0, 1):
        np.testing.assert_array_equal(np.triu(y, k).data, np.triu(y.data, k))


def test_a_named_tuple_is_a_tree():
    pair = namedtuple("pair", "a b")
    made = tree_map(lambda x: x * 2, pair(Tensor([1.0]), [Tensor([2.0])]))
    assert type(made) is pair and made.a.data == 2 and made.b[0].data == 4
