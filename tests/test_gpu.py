"""The root runs where its arrays are, and the CUDA twins compute what their references do.

Three devices: the CPU; a stand-in that refuses what CuPy refuses and counts what is copied; and a card, where there
is one. The source of the kernels is tested with a C++ compiler as well, so that a card is not the first to see it.
"""

import ctypes
import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import cuda_on_cpu
import numpy as np
import pytest
from refusing import Refusing
from test_kernels import by_definition

import gpu
import hope
import kernels
import optimizers
import train
from autograd import Tensor, grad, host
from config import CHOICES, MIXERS, PRESETS, Config
from data import Corpus
from gpu import kernels as twins
from gpu import products
from hope import Hope
from kernels import titans as titans_kernel
from titans import SelfModifyingTitans, Span
from tools import machine
from train import Run

WHY_NO_CARD = gpu.problem()
CARD = pytest.param("cuda", marks=pytest.mark.skipif(bool(WHY_NO_CARD), reason=f"no card: {WHY_NO_CARD}"))
COMPILED = pytest.param("compiled", marks=pytest.mark.skipif(not cuda_on_cpu.COMPILER, reason="no C++ compiler"))
SMALL = dict(width=8, layers=1, heads=2, segment=16, vocabulary=16, hidden=8, memory_chunk=4, projection_chunk=8,
             chunks=(1, 2), spans=(2, 8), generator_hidden=4, generator_chunk=4)
TOKENS = np.random.default_rng(1).integers(0, 16, (2, 17))


def put(thing, device):
    """A model, a state or an array on one of the devices."""
    if device == "cpu":
        return thing
    return gpu.to_device(thing) if device == "cuda" else gpu.move(thing, Refusing)


def model_on(device, **settings):
    return put(Hope(Config(**{**SMALL, **settings}), np.random.default_rng(0)).astype(np.float64), device)


def steps(device, optimizer="adamw", count=2, **settings):
    """The weights after a few steps, and what each part of the last one copied between host and card."""
    model, state, copied = model_on(device, **settings), None, {}
    rung = optimizers.build(optimizer, model.groups(), 1e-2)

    def note(part):
        copied[part] = dict(Refusing.moved)
        Refusing.moved.clear()
    for _ in range(count):
        rung.zero_grad()
        Refusing.moved.clear()
        loss, state = (model.context_loss if settings.get("cms") == "nested" else model.loss)(TOKENS, state)
        note("forward")
        (loss * 0.5).backward()
        note("backward")
        optimizers.clip_grad_norm(rung.params, 0.1)
        note("clip")
        rung.step()
        note("step")
        state = None if "attention" in settings.get("mixer", "") else state.detach()
    return {name: host(p.data) for name, p in model.named_parameters()}, copied


def assert_close(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


# The root on any device ----------------------------------------------------------------------------------------

KINDS = [*({"mixer": name} for name in (*MIXERS, "attention+banks+generated")),
         *({"cms": name, "layers": 2, "mixer": "gated"} for name in CHOICES["cms"]),
         {"memory": "matrix"}, {"retention": "zero"}, {"reads": "chunk"}, {"through_writes": False},
         {"objective": "dot"}, {"targets": "value"}, {"form": "chunked"}, {"form": "recurrent"},
         *({"optimizer": name, "mixer": "gated"} for name in optimizers.OPTIMIZERS)]


@pytest.mark.parametrize("device", ["stand-in", CARD])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_steps_of_every_mixer_level_and_optimizer_are_those_of_numpy(kind, device):
    found, copied = steps(device, **kind)
    assert_close(found, steps("cpu", **kind)[0], 1e-9 if device == "stand-in" else 1e-7)
    if device == "stand-in":
        constants = 3 if kind.get("mixer") == "cell" else 0  # its rates
        assert copied == {"forward": {"upload": 1 + constants}, "backward": {}, "clip": {"read": 1}, "step": {}}


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), "stand-in", CARD])
def test_learning_while_reading_and_generation_are_those_of_numpy(device):
    ours, theirs = model_on(device, layers=2), model_on("cpu", layers=2)
    (loss, state), (loss_cpu, state_cpu) = (m.learn(TOKENS, m.learn(TOKENS)[1]) for m in (ours, theirs))
    assert loss == pytest.approx(loss_cpu, rel=1e-9)
    for a, b in zip(state.leaves(), state_cpu.leaves(), strict=True):
        np.testing.assert_allclose(host(a.data), b.data, rtol=1e-7, atol=1e-9)
    written, written_cpu = ([token for token, _ in m.generate([1, 2, 3], 12, seed=0)] for m in (ours, theirs))
    assert written == written_cpu


@pytest.mark.parametrize("device", ["stand-in", CARD])
def test_a_state_saved_on_a_card_is_read_on_the_cpu_and_back(device, tmp_path):
    model = model_on(device)
    _, state = model.loss(TOKENS)
    hope.save(tmp_path / "file.npz", model, state)
    read, state_cpu, _ = hope.load(tmp_path / "file.npz")
    loss_cpu, _ = read.loss(TOKENS, state_cpu)
    again = put(state_cpu, device)
    assert all(type(t.data) is type(model.embedding.data) for t in again.leaves())
    assert model.loss(TOKENS, again)[0].item() == pytest.approx(loss_cpu.item(), rel=1e-9)
    assert all(type(a) is np.ndarray for a in gpu.to_host(model).state_dict().values())


def test_tokens_that_the_vocabulary_lacks_are_found_before_they_go_to_a_card():
    with pytest.raises(ValueError, match=r"0\.\.15"):
        model_on("stand-in").loss(np.full((1, 4), 16))


# The stand-in ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("refused", [
    np.asarray, lambda x: x + np.ones(3), lambda x: np.add.reduce(x), lambda x: np.add.at(x, x, x),
    lambda x: x[np.array([0])], lambda x: np.where(np.ones(3, dtype=bool), x, x), lambda x: np.median(x),
    lambda x: np.concatenate([x, np.ones(3)]), lambda x: x.__setitem__(0, np.ones(3)),
    lambda x: x.reshape(3, 1).mT[:, ::2].view(np.complex128),
])
def test_the_stand_in_refuses_what_cupy_refuses(refused):
    with pytest.raises((TypeError, ValueError)):
        refused(Refusing(np.ones(3)))


def test_the_stand_in_counts_every_copy_between_host_and_card():
    x = Refusing(np.ones(1))
    Refusing.moved.clear()
    float(x), bool(x), x.item(), x.get(), np.asarray(np.ones(3), like=x), np.asarray(x, like=x), x + x
    assert Refusing.moved == {"read": 3, "get": 1, "upload": 1}


# The kernels -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    return cuda_on_cpu.compiler(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on(request, compiler, monkeypatch):
    """Puts arrays where the twins take them: on a card, or on the CPU, where a compiler stands in for CUDA's."""
    if request.param == "cuda":
        return gpu.ready().asarray
    monkeypatch.setattr(twins, "compiled", compiler)
    return Refusing


@pytest.fixture
def unregistered(monkeypatch):
    """The kernels without twins for other arrays than NumPy's; what a test registers is forgotten after it."""
    forget(monkeypatch)


def forget(monkeypatch):
    for kernel in kernels.KERNELS.values():
        monkeypatch.setattr(kernel, "twins", {np.ndarray: kernel.twins[np.ndarray]})
    monkeypatch.setattr(titans_kernel, "REGISTERED", {})


def calls(dtype, N, T, d_k, d_v):
    """Arrays, settings and cotangents of the results for every kernel that has a twin, at a size of each."""
    rng = np.random.default_rng(T)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)
    x, w, g, targets = normal(N, T, d_v), normal(d_v), normal(N, T, d_v), rng.integers(0, d_v, (N, T))
    targets.flat[::3] = -100
    yield "gelu", [x], {}, [g]
    yield "swiglu", [x, normal(N, T, d_v)], {}, [g]
    yield "rms_norm", [x, w], {}, [g]
    yield "cross_entropy", [x], {"targets": targets}, [normal(N, T)]
    yield "causal_conv", [x, normal(N, 3, d_v), normal(4, d_v)], {}, [g, normal(N, 3, d_v)]
    yield ("adamw", [normal(N, T), normal(N, T), normal(N, T), normal(N, T) ** 2],
           dict(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=3), [])
    rule = [normal(N, T, d_k), normal(N, T, d_k) / d_k**0.5, x, -rng.random((N, T)).astype(dtype),
            rng.random((N, T)).astype(dtype), normal(N, T), normal(N, d_v, d_k)]
    yield "delta_rule", rule, {}, [g, normal(N, d_v, d_k)]


def check(on, dtype, *size):
    tolerance = {"float64": 1e-11, "float32": 2e-4}[dtype]
    checked = set()
    for name, arrays, settings, bars in calls(dtype, *size):
        ours = [on(x.copy()) for x in arrays]
        moved = {key: on(x) if isinstance(x, np.ndarray) else x for key, x in settings.items()}
        forward, *backward = twins.TWINS[name]
        z, kept = forward(*ours, **moved)
        if backward:
            expected = by_definition(name, arrays, settings, bars)
            found = [*(z if isinstance(z, tuple) else (z,)), *backward[0](kept, *map(on, bars))]
        else:  # in place
            kernels.KERNELS[name].definition(*arrays, **settings)
            expected, found = arrays, ours
        for a, b in zip(expected, found, strict=True):
            assert b.dtype == a.dtype
            np.testing.assert_allclose(host(b), a, rtol=tolerance, atol=tolerance, err_msg=f"{name} {size}")
        checked.add(name)
    assert checked == twins.TWINS.keys()


@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
@pytest.mark.parametrize("size", [(2, 1, 4, 4), (1, 33, 4, 4), (2, 0, 4, 4)], ids=str)
def test_every_twin_computes_what_its_reference_does(on, size):
    check(on, "float64", *size)


@pytest.mark.slow
@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(2, 7, 4, 4), (1, 65, 16, 70), (1, 64, 70, 16), (3, 63, 4, 4)], ids=str)
def test_every_twin_computes_what_its_reference_does_at_more_sizes(on, dtype, size):
    check(on, dtype, *size)


@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
def test_a_target_that_does_not_exist_gives_nan_and_reads_nothing(on):
    loss, _ = twins.cross_entropy(on(np.zeros((3, 4))), on(np.array([4, -1, 2])))
    np.testing.assert_array_equal(np.isnan(host(loss)), [True, True, False])


@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
def test_nan_comes_out_of_the_kernels_as_nan(on):
    x = np.zeros((4, 4))
    x[2, 1] = np.nan
    for y, _ in (twins.gelu(on(x)), twins.rms_norm(on(x), on(np.ones(4))), twins.cross_entropy(
            on(x), on(np.zeros(4, dtype=np.int64)))):
        assert np.isnan(host(y)[2]).any() and not np.isnan(host(y)[[0, 1, 3]]).any()


@pytest.mark.parametrize("mixer", [pytest.param("gated", marks=pytest.mark.slow), "titans"])
@pytest.mark.parametrize("on", [COMPILED], indirect=True)
def test_training_through_the_cuda_sources_is_training_through_numpy(on, mixer, unregistered):
    twins.register_all(Refusing)
    found, copied = steps("stand-in", mixer=mixer, count=1)
    assert_close(found, steps("cpu", mixer=mixer, count=1)[0])
    assert copied == {"forward": {"upload": 1}, "backward": {}, "clip": {"read": 1}, "step": {}}


# A chunk of self-modifying Titans --------------------------------------------------------------------------------

FIVE = ("k", "v", "eta", "alpha", "memory")


def chunk_and_gradients(on, form, dtype, n, d, h, moved=(), ends=0, **settings):
    """o and the drifts after one chunk of two sequences with two heads, and the gradients of all that goes in.

    With `ends`, another chunk begins after so many tokens, for all but the last memory.
    """
    config = Config(width=2 * d, layers=1, heads=2, memory_hidden=h, form=form, **settings)
    rng = np.random.default_rng(0)
    mixer, tensors = SelfModifyingTitans(rng, config).astype(dtype), []

    def normal(*shape):
        tensors.append(Tensor(on(rng.standard_normal(shape).astype(dtype)), requires_grad=True))
        return tensors[-1]

    def drift(name):
        return [normal(2, *m.shape) * 0.2 for m in mixer.initial[name]]
    for p in mixer.parameters():
        p.data = on((p.data + 0.3 * rng.standard_normal(p.shape)).astype(dtype))
    asked = {name: normal(2, 2, n, d) for name in mixer.projection}
    now = {name: drift(name) for name in config.adaptive}
    start = {name: drift(name) for name in now if name in moved}
    seen = {name: -(name in moved) for name in now}
    last = dict.fromkeys(now, 1) | {config.adaptive[-1]: seen[config.adaptive[-1]]}
    spans = [Span(ends, seen), Span(n - ends, last)]
    o, after, _ = mixer.read(asked, spans if ends else [Span(n, seen)], start, now, {})
    outputs = [o, *(S for layers in after.values() for S in layers)]
    tensors += [p for name, p in mixer.named_parameters() if name.startswith(("initial", "bias", "readout"))]
    weights = [Tensor(on(rng.standard_normal(x.shape).astype(dtype))) for x in outputs]
    return [host(x.data) for x in (*outputs, *grad(outputs, tensors, weights))]


def check_chunk(on, monkeypatch, dtype, *size, **settings):
    """The CUDA twin against the definition in memory.py and Numba's twin, where there is one."""
    launched, run, tolerance = [], twins.run, {"float64": 1e-10, "float32": 5e-3}[dtype]
    forget(monkeypatch)
    twins.register_all(type(on(np.zeros(1))))
    monkeypatch.setattr(twins, "run", lambda name, *args, **constants: (
        launched.append(name), run(name, *args, **constants)))
    found = chunk_and_gradients(on, "fused", dtype, *size, **settings)
    count = 2 if settings.get("ends") else 1
    assert launched == ["titans"] * count + ["titans_backward"] * count
    for form in ("recurrent", "fused"):
        for a, b in zip(chunk_and_gradients(np.array, form, dtype, *size, **settings), found, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * max(1, np.abs(a).max()))


@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
@pytest.mark.parametrize(("size", "settings"), [
    ((7, 4, 6), {"moved": FIVE}),
    ((1, 6, 3), {"adaptive": ("q", "memory"), "objective": "dot", "targets": "value"}),
    ((65, 4, 2), {"adaptive": ("memory", "alpha"), "moved": ("alpha",), "objective": "dot"}),
    ((9, 4, 2), {"ends": 4}),
    ((9, 4, 2), {"ends": 4, "moved": FIVE}),
    ((9, 4, 2), {"adaptive": ("v", "eta", "memory"), "ends": 5, "moved": ("v", "memory")}),
], ids=str)
def test_a_chunk_of_titans_on_a_card_is_the_one_in_memory(on, size, settings, monkeypatch):
    check_chunk(on, monkeypatch, "float64", *size, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
@pytest.mark.parametrize(("dtype", "size"), [
    ("float64", (1, 4, 4)), ("float64", (33, 18, 20)), ("float64", (63, 2, 80)), ("float64", (65, 66, 1)),
    ("float32", (64, 16, 16))], ids=str)
@pytest.mark.parametrize("adaptive", [("memory",), ("q", *FIVE), ("v", "eta", "memory")], ids="-".join)
def test_a_chunk_of_titans_of_every_form_on_a_card_is_the_one_in_memory(on, dtype, size, adaptive, monkeypatch):
    for objective, targets, moved in (("l2", "self", ()), ("l2", "value", adaptive[-1:]), ("dot", "self", adaptive),
                                      ("dot", "value", ())):
        check_chunk(on, monkeypatch, dtype, *size, adaptive=adaptive, moved=moved, objective=objective,
                    targets=targets)


@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
def test_more_sequences_than_blocks_share_their_workspaces(on, monkeypatch):
    monkeypatch.setattr(twins, "BLOCKS", 3)
    check_chunk(on, monkeypatch, "float64", 2, 2, 2, adaptive=("k", "memory"))


def test_titans_run_in_operations_where_no_kernel_is_registered_for_the_arrays(unregistered):
    has_titans = titans_kernel.has_titans
    assert not has_titans(Refusing(np.zeros(1)))
    twins.register_all(Refusing)
    assert has_titans(Refusing(np.zeros(1))) and not has_titans(Refusing(np.zeros(1, np.float16)))
    assert not has_titans(Refusing(np.zeros(1)), plain=False)  # momentum, the printed step
    assert has_titans(np.zeros(1), plain=False) == kernels.JIT


def test_every_kernel_has_a_twin():
    """But attention: on a GPU its definition runs, all scores at once in large products."""
    assert twins.TWINS.keys() == kernels.KERNELS.keys() - {"attention"}


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("rows", [1, 16, 64, 96, twins.WIDEST])
def test_the_delta_rule_fits_in_the_shared_memory_that_every_card_has(rows, itemsize):
    n = twins.sizes(rows, itemsize)["tile"]
    of_delta_rule = itemsize * (2 * n * (rows + 1) + 2 * n * n + n * twins.LANES) + 8 * (n + 1)
    assert max(of_delta_rule, itemsize * 3 * n * rows) <= 48 * 1024


def test_heads_that_are_too_wide_for_registers_are_left_to_the_definition(monkeypatch, unregistered):
    monkeypatch.setattr(twins, "compiled", None)
    twins.register_all(Refusing)
    arrays = next(arrays for name, arrays, *_ in calls("float64", 1, 2, twins.WIDEST + 1, 2) if name == "delta_rule")
    ours = kernels.delta_rule(*map(Refusing, arrays))
    for a, b in zip(ours, kernels.delta_rule.definition(*arrays), strict=True):
        np.testing.assert_allclose(host(a), b, rtol=1e-12, atol=1e-12)


# Products in fewer bits ------------------------------------------------------------------------------------------

def bfloat16(x):
    """The nearest bfloat16, by the distance to both neighbours."""
    down = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    up = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    below, above = np.abs(x.astype(np.float64) - down), np.abs(up.astype(np.float64) - x)
    odd = (x.view(np.uint32) >> 16) & 1 == 1
    return np.where((below < above) | ((below == above) & ~odd), down, up)


@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
def test_bfloat16_is_rounded_to_the_nearest_and_to_the_even_one_between_two(on):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    x[:8] = [0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, -1e-40, 2**-133, 65504]
    found = host(products.to_bfloat16(on(x))).astype(np.uint32) << 16
    np.testing.assert_array_equal(found, bfloat16(x).view(np.uint32))
    special = np.array([np.inf, -np.inf, 3.4028234e38, np.nan], np.float32)  # of NaN, one whose upper half is none
    special.view(np.uint32)[3] = 0x7F800001
    found = (host(products.to_bfloat16(on(special))).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, [np.inf, -np.inf, np.inf, np.nan])


class Blas:
    """Stands in for cuBLAS: gemmStridedBatchedEx as its manual words it, on addresses, down columns."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT = 0, 1, 68, 77, -1

    def __init__(self):
        self.calls = []

    def gemmStridedBatchedEx(self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA,
                             B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC, count, compute, algo):
        def matrix(address, kind, lead, step, i, rows, columns):
            number = {"single": np.float32, "half": np.uint16}[kind]
            flat = np.ctypeslib.as_array(ctypes.cast(
                address + i * step * np.dtype(number).itemsize, ctypes.POINTER(np.ctypeslib.as_ctypes_type(number))),
                (columns * lead,))
            return np.reshape(flat, (lead, columns), order="F")[:rows]

        def value(x, turned):
            x = (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x
            return x.T if turned else x
        assert ctypes.c_float.from_address(alpha).value == 1 and ctypes.c_float.from_address(beta).value == 0
        for i in range(count):
            a = matrix(A, Atype, lda, strideA, i, *((k, m) if transa else (m, k)))
            b = matrix(B, Btype, ldb, strideB, i, *((n, k) if transb else (k, n)))
            matrix(C, Ctype, ldc, strideC, i, m, n)[...] = value(a, transa) @ value(b, transb)
        self.calls.append((Atype, compute, count))


@pytest.fixture
def blas(on, monkeypatch):
    """cuBLAS, or on the CPU what stands in for it; afterwards `@` is what it was."""
    if on is not Refusing:
        yield None
    else:
        stand_in = Blas()
        monkeypatch.setattr(products, "library", lambda: (stand_in, 0, "single", "half"))
        yield stand_in
    for array_type, plain in products.ORIGINAL.items():
        array_type.__matmul__ = plain


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("on", [COMPILED, CARD], indirect=True)
def test_products_in_fewer_bits_are_those_of_rounded_numbers(on, blas, precision):
    rng = np.random.default_rng(0)
    products.use(precision, type(on(np.zeros(1))))
    for left, right in [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 1, 4), (3, 4, 5)), ((2, 1, 3, 4), (2, 6, 4, 1)),
                        ((1, 1, 3, 4), (2, 4, 5)), ((3, 0), (0, 5)), ((0, 3, 4), (4, 5)), ((1, 1), (1, 1))]:
        for turn in (lambda x: x, lambda x: np.swapaxes(np.ascontiguousarray(np.swapaxes(x, -1, -2)), -1, -2),
                     lambda x: np.repeat(x, 2, -1)[..., ::2]):
            a, b = (rng.standard_normal(shape).astype(np.float32) for shape in (left, right))
            a, b = turn(a), turn(b)
            found = on(a) @ on(b)
            expected = bfloat16(np.array(a)) @ bfloat16(np.array(b)) if precision == "bfloat16" else a @ b
            assert found.dtype == np.float32 and found.shape == expected.shape
            np.testing.assert_allclose(host(found), expected, atol=1e-5 if blas or precision == "bfloat16" else 1e-2)
    if blas:
        kind, compute = {"tf32": ("single", 77), "bfloat16": ("half", 68)}[precision]
        assert {call[:2] for call in blas.calls} == {(kind, compute)} and max(call[2] for call in blas.calls) == 12
    with pytest.raises(ValueError, match="4 columns, 5 rows"):
        on(np.ones((3, 4), np.float32)) @ on(np.ones((5, 4), np.float32))


@pytest.mark.parametrize("on", [COMPILED], indirect=True)
def test_other_precisions_and_vectors_are_multiplied_as_before_and_float32_brings_all_back(on, blas):
    products.use("bfloat16", Refusing)
    x = np.linspace(0, 1, 6).reshape(2, 3)
    for a, b in ((x, x.T), (x.astype(np.float32), x[0].astype(np.float32)), (x.astype(np.float32), x.T)):
        np.testing.assert_array_equal(host(on(a) @ on(b)), a @ b)
    products.use("float32", Refusing)
    x = x.astype(np.float32)
    np.testing.assert_array_equal(host(on(x) @ on(x.T.copy())), x @ x.T.copy())
    assert not blas.calls and Refusing.__matmul__ is products.ORIGINAL[Refusing]


@pytest.mark.parametrize(("precision", "far"), [("tf32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize("on", [COMPILED], indirect=True)
def test_a_step_with_products_in_fewer_bits_is_near_the_step_in_float32(on, blas, precision, far):
    def loss_and_gradients(device):
        model = put(Hope(Config(**{**SMALL, "mixer": "gated"}), np.random.default_rng(0)), device)
        loss, _ = model.loss(TOKENS)
        loss.backward()
        return [loss.item(), *(host(p.grad) for p in model.parameters())]
    expected = loss_and_gradients("cpu")
    products.use(precision, Refusing)
    found = loss_and_gradients("stand-in")
    assert found[0] == pytest.approx(expected[0], rel=far) and len(blas.calls) > 20
    difference = sum(np.sum((a - b) ** 2) for a, b in zip(found[1:], expected[1:], strict=True))
    size = sum(np.sum(b**2) for b in expected[1:])
    assert difference < far**2 * size and (precision == "tf32" or difference > 0)


@pytest.mark.parametrize(("device", "place"), [("cpu", "the CPU;"), ("auto", "the CPU (the card is on fire);")])
def test_products_in_fewer_bits_are_refused_on_the_cpu_in_one_line(device, place, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "problem", lambda: "the card is on fire")
    command = ["--preset", "tiny", "--device", device, "--matmul", "bfloat16", "--out", str(tmp_path / "run")]
    assert train.main(command) == 2
    said = capsys.readouterr().err
    assert f"matmul bfloat16 is for a GPU, and this run is on {place} --matmul float32" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
    assert train.main(["--preset", "tiny", "--matmul", "bf16"]) == 2
    assert "choose from float32, tf32, bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "precision", "works"), [
    ("75", "float32", True), ("75", "tf32", False), ("80", "tf32", True), ("120", "bfloat16", True)])
def test_fewer_bits_take_a_card_that_has_them(capability, precision, works, monkeypatch):
    cupy = SimpleNamespace(ndarray=type("Array", (Refusing,), {}), cuda=SimpleNamespace(
        Device=lambda: SimpleNamespace(compute_capability=capability)))
    monkeypatch.setattr(gpu, "ready", lambda: cupy)
    if works:
        gpu.set_matmul(precision)
    else:
        with pytest.raises(ValueError, match=r"8\.0 or later, this one has 7\.5; --matmul float32"):
            gpu.set_matmul(precision)


# What it says ------------------------------------------------------------------------------------------------------

def fake_cupy(monkeypatch, driver=12080, built=12090, cards=1, error=None):
    def count():
        if error:
            raise RuntimeError(error)
        return cards
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            driverGetVersion=lambda: driver, runtimeGetVersion=lambda: built, getDeviceCount=count,
            getDeviceProperties=lambda device: {"name": b"NVIDIA H100", "major": 9, "minor": 0}),
        Device=lambda: SimpleNamespace(id=0, mem_info=(1, 80 * 10**9), compute_capability="90"))
    cupy.zeros, cupy.ndarray, cupy.__version__ = lambda n: SimpleNamespace(get=lambda: None), Refusing, "14.2.0"
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: cupy)


@pytest.mark.parametrize(("machine", "words"), [
    ({"driver": 0}, "no NVIDIA driver"),
    ({"driver": 11080}, "for CUDA 11.8 and CuPy for CUDA 12.9"),
    ({"cards": 0}, "finds no card"),
    ({"error": "cudaErrorNoDevice: no CUDA-capable device is detected"}, "CUDA_VISIBLE_DEVICES"),
    ({"error": "libcublas.so.12: cannot open shared object file"}, "libcublas"),
    ({}, ""), ({"driver": 13000}, ""),
], ids=str)
def test_what_keeps_a_card_from_being_used_is_named(machine, words, monkeypatch):
    fake_cupy(monkeypatch, **machine)
    assert words in gpu.problem() if words else not gpu.problem()


def test_auto_takes_a_card_that_can_be_used_and_the_doctor_reports_it(monkeypatch, capsys, unregistered):
    fake_cupy(monkeypatch)
    monkeypatch.setattr(gpu, "ready", gpu.ready.__wrapped__)
    card = "NVIDIA H100, 80 GB, compute capability 9.0, driver for CUDA 12.8, CuPy 14.2.0"
    assert machine.choose("auto") == machine.choose("cuda", "tf32") == (gpu, card)
    monkeypatch.setattr(machine, "one_layer", lambda config, batch: (1.0, 1.0))
    assert train.main(["--doctor"]) == 0
    assert f"GPU  usable: {card}" in capsys.readouterr().out


def test_without_cupy_the_words_say_how_to_install_it(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert "pip install -r gpu/requirements.txt" in gpu.problem()


def test_a_card_that_was_asked_for_and_is_not_there_is_an_error_and_auto_says_what_it_took(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "problem", lambda: "the card is on fire")
    assert train.main(["--preset", "tiny", "--device", "cuda"]) == 2
    assert "device cuda: the card is on fire" in capsys.readouterr().err
    assert machine.choose("auto") == (None, "the CPU (the card is on fire)")
    assert machine.choose("cpu") == (None, "the CPU")


# Runs --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def stand_in(monkeypatch):
    """train.py finds a card: the stand-in."""
    card = SimpleNamespace(to_device=lambda thing: put(thing, "stand-in"), memory=lambda: 10**9, full=gpu.full,
                           held=lambda model, tokens: 10**8, set_matmul=lambda precision: None)
    chosen = machine.choose
    monkeypatch.setattr(machine, "choose", lambda device, matmul="float32": (
        (card, "a stand-in") if device == "cuda" else chosen(device, matmul)))


def run_on(device, folder, text, **changed):
    config, training = PRESETS["tiny"]
    config = replace(config, layers=1, segment=32, width=16, hidden=16)
    training = replace(training, batch=2, steps=4, warmup=0, sample_tokens=2, sample_every=0, quiet=True, device=device,
                       order="consecutive", data=(str(text),), **changed)
    return Run(folder, "tiny", config, training, Corpus.from_paths(str(text)))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} and {n} are {2 * n}\n" for n in range(400)), encoding="utf-8")
    return path


@pytest.mark.parametrize("there", ["stand-in", CARD])
@pytest.mark.parametrize(("first", "second"), [("there", "cpu"), ("cpu", "there")])
def test_a_run_goes_on_on_another_device(first, second, there, request, text, tmp_path):
    if there == "stand-in":
        request.getfixturevalue("stand_in")
    devices = {"cpu": "cpu", "there": "cuda"}
    whole = run_on("cpu", tmp_path / "whole", text).begin()
    whole.train(4)
    run_on(devices[first], tmp_path / "parts", text).begin().train(2)
    last = run_on(devices[second], tmp_path / "parts", text).restore()
    last.train(4)
    with np.load(tmp_path / "parts" / "checkpoint.npz") as parts, np.load(tmp_path / "whole" / "checkpoint.npz") as one:
        assert set(parts.files) == set(one.files)
        for name in one.files:
            if one[name].dtype.kind == "f":
                np.testing.assert_allclose(parts[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert last.sample() and last.evaluate()[0] > 0


def test_a_step_of_a_run_copies_its_tokens_and_reads_back_the_loss_and_the_norm(stand_in, text, tmp_path):
    run = run_on("cuda", tmp_path / "run", text).begin()
    run.advance()
    Refusing.moved.clear()
    run.advance()
    assert Refusing.moved == {"upload": 1, "read": 2}


@pytest.mark.parametrize("error", [
    MemoryError("Out of memory allocating 1,000,000 bytes"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    RuntimeError("cudaErrorMemoryAllocation: out of memory"), RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")], ids=str)
def test_out_of_memory_names_the_batch_that_would_fit(error, stand_in, text, tmp_path, monkeypatch, capsys):
    def full(run, write):
        raise error
    monkeypatch.setattr(Run, "advance", full)
    command = ["--preset", "tiny", "--layers", "1", "--device", "cuda", "--data", str(text), "--quiet",
               "--batch", "64", "--out", str(tmp_path / "run")]
    assert train.main(command) == 1
    said = capsys.readouterr().err
    assert "out of memory on a stand-in" in said and "--batch 6 would fit" in said
    assert train.main([*command[:-1], str(tmp_path / "other"), "--batch", "1"]) == 1
    assert "--segment" in capsys.readouterr().err
