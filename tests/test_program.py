"""A program computes what its docstring says, by however many threads, whenever they come."""

import threading

import numpy as np
import pytest

import kernels
from kernels import program
from kernels.program import DONE, TAKEN, Program, walk

pytestmark = pytest.mark.skipif(not kernels.JIT, reason="nothing is compiled")


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(dtype)


def chain(loops: int, n: int = 96) -> tuple[Program, np.ndarray]:
    """y ← W x, x ← x + V y, again and again; the program, and x"""
    made, x, y = Program(np.float32), random(1, n), np.empty((1, n), np.float32)
    for W, V in random(loops, 2, n, n) / np.float32(n):
        made.product(W, x, y)
        made.product(V, y, x, x)
    made.ready()
    return made, x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_loop_is_its_formula(dtype):
    made, n, m, d, t = Program(dtype), 40, 37, 6, 3
    W, x, bias, z, onto = (random(*s, dtype=dtype) for s in ((n, m), (1, m), (n,), (1, n), (1, n)))
    gate, up, half = random(3, 1, 50, dtype=dtype)
    expected_onto = onto + x @ W.T
    w, normed = random(m, dtype=dtype), np.empty((1, m), dtype)
    opened, bent = np.empty_like(gate), np.empty_like(half)
    q, k, v, read = (random(rows, d, dtype=dtype) for rows in (4, 2, 2, 4))
    keys, values, turn = random(1, 2, 5, d, dtype=dtype), random(1, 2, 5, d, dtype=dtype) * 2, random(d, dtype=dtype)
    by = turn.view(np.result_type(dtype, np.complex64))
    expected_keys, expected_values = keys.copy(), values.copy()
    expected_keys[0, :, t], expected_values[0, :, t] = (k.view(by.dtype) * by).view(dtype), v
    turned = (q.view(by.dtype) * by).view(dtype)
    expected = kernels.attention.definition(*(np.repeat(a, s, 1) for a, s in (
        (turned.reshape(1, 4, 1, d), 1), (expected_keys[:, :, :t + 1], 2), (expected_values[:, :, :t + 1], 2))))

    made.product(W, x, z, bias)
    made.product(W, x, onto, onto, beside=True)
    made.norm(1e-5, x, w, normed)
    made.swiglu(gate, up, opened)
    made.gelu(half, bent)
    row = made.attention(q, k, v, read, d)
    made.ready()
    made.place(row, keys, values)
    made.turn_to([row], t, [turn])
    made.to(made.end)
    for found, wanted in ((z, x @ W.T + bias), (onto, expected_onto), (normed, kernels.rms_norm.definition(x, w, 1e-5)),
                          (opened, kernels.swiglu.definition(gate, up)), (bent, kernels.gelu.definition(half)),
                          (keys, expected_keys), (values, expected_values), (read, expected.reshape(4, d))):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("threads", [2, 5])
def test_many_threads_walk_a_long_program_to_the_same_bits(threads, monkeypatch):
    monkeypatch.setattr(program, "BYTES", 1)
    alone, x = chain(200)
    before = x.copy()
    alone.to(alone.end)
    wanted = x.copy()
    for _ in range(5):
        x[...], counters = before, np.zeros(16, np.int64)
        walkers = [threading.Thread(target=walk, args=(
            alone.table, alone.numbers, 0, alone.end, counters, alone.like, alone.attends,
            alone.remembers)) for _ in range(threads)]
        for walker in walkers:
            walker.start()
        for walker in walkers:
            walker.join()
        assert np.array_equal(x, wanted)
        assert counters[DONE] == alone.parts and counters[TAKEN] == alone.parts + threads


def test_who_comes_late_finds_nothing_to_do():
    made, x = chain(3)
    counters = np.zeros(16, np.int64)
    arguments = made.table, made.numbers, 0, made.end, counters, made.like, made.attends, made.remembers
    walk(*arguments)
    found = x.copy()
    walk(*arguments)
    assert np.array_equal(x, found)


@pytest.mark.parametrize("starts", ["nothing", "bias", "itself"])
@pytest.mark.parametrize("n, m, rows", [(40, 37, 3), (41, 64, 5), (6, 32, 2)])
def test_a_row_of_a_product_has_the_bits_of_that_row_alone(starts, n, m, rows):
    W, x, bias, before = random(n, m), random(rows, m), random(n), random(rows, n)

    def product(x: np.ndarray, before: np.ndarray) -> np.ndarray:
        made, z = Program(np.float32), before.copy()
        made.product(W, x, z, {"nothing": None, "bias": bias, "itself": z}[starts])
        made.ready()
        made.to(made.end)
        return z
    found = product(x, before)
    begun = {"nothing": 0, "bias": bias, "itself": before}[starts]
    np.testing.assert_allclose(found, begun + x @ W.T, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found, np.concatenate([product(x[b:b + 1], before[b:b + 1]) for b in range(rows)]))
