"""A plan of one token gives what the model gives, and hands back the same running state."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decode
import kernels
from apps.runs import stack
from autograd import Tensor, no_grad
from config import CHOICES, MEMORIES, MIXERS, PRESETS
from hope import Hope, State
from kernels import program, runtime
from layers import Parameter
from titans import SelfModifyingTitans

SMALL = replace(PRESETS["tiny"][0], width=16, layers=2, hidden=12, segment=8, memory_chunk=4, projection_chunk=2,
                spans=(2, 3), generator_chunk=3, window=3, chunks=(1, 2), drift_rank=0)
AS_PRINTED = {"adaptive": MEMORIES, "step": "printed", "momentum": True, "retention": "zero", "reads": "chunk"}
CONFIGS = [*({"mixer": mixer} for mixer in (*MIXERS, "titans+attention")),
           *({"cms": variant} for variant in CHOICES["cms"]), *({"norm": norm} for norm in CHOICES["norm"]),
           {"activation": "swiglu"}, {"mixer": "attention", "biases": ("qkv", "output", "level")},
           {"tied": False, "scaled": False}, {"mixer": "attention", "window": 0, "positions": 40},
           {"memory": "matrix"}, {"through_writes": False}, {"retention": "zero"}, {"momentum": True},
           {"objective": "dot", "targets": "value"}, {"memory_hidden": 5, "adaptive": ("memory",)}, AS_PRINTED]
needs_jit = pytest.mark.skipif(not kernels.JIT, reason="nothing is compiled, and the model itself runs")


def model(**choices) -> Hope:
    made = Hope(replace(SMALL, **choices), np.random.default_rng(0))
    for p in made.parameters():  # what starts at zero or one would hide what it does
        p.data = p.data + np.random.default_rng(p.size).normal(0, 0.1, p.shape).astype(p.dtype)
    return made


def expect_equal(logits, state, others, other, exact: bool = True) -> None:
    """The same logits, and states of the same form, in which the same tensors are shared; with the same bits."""
    a, b = state.pack(), other.pack()
    assert str(a.pop("state")) == str(b.pop("state")) and a.keys() == b.keys()
    for x, y in [(logits.data, others.data), *((a[name], b[name]) for name in a)]:
        assert x.dtype == y.dtype and x.shape == y.shape
        if exact:
            assert np.array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def follow(made: Hope, tokens: np.ndarray, begin: State | None = None, exact: bool = True) -> State | None:
    """Read tokens (B,T) one by one, both ways; the state after them."""
    state = other = begin
    for t in range(tokens.shape[1]):
        with no_grad():
            others, other = made(tokens[:, t:t + 1], other)
        logits, state = made.step(tokens[:, t:t + 1], state)
        expect_equal(logits, state, others, other, exact)
    return state


def text(batch: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL.vocabulary, (batch, time))


@pytest.mark.parametrize("choices", CONFIGS, ids=str)
def test_every_mixer_and_variant_gives_the_same_bits_token_by_token(choices):
    follow(model(**choices), text(1, 9))


@needs_jit
def test_what_the_presets_are_made_of_is_planned_but_for_independent_levels():
    for name, (config, _) in PRESETS.items():
        made = Hope(replace(config, width=16, heads=2, layers=2), np.random.default_rng(0))
        blocks = decode.plan(made, 1).blocks
        assert all(block.kind != "other" and block.plain == (config.cms != "independent") for block in blocks), name


ATTENTION: list[dict[str, Any]] = [
    {"window": 0},
    {"window": 0, "key_heads": 1, "biases": ("qkv",), "activation": "swiglu", "norm": "rms"},
    {"window": 0, "heads": 6, "key_heads": 3, "head_size": 36, "rotary_base": 500.0, "rotary_scaling": (2.0,),
     "tied": False},
    {"window": 0, "rotary_base": 0.0, "heads": 2},
    {"window": 0, "rotary_base": 0.0, "cms": "spread", "biases": ("output",)}]


@pytest.mark.parametrize("choices", ATTENTION, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_with_a_cache_gives_the_same_to_rounding_with_or_without_a_prompt(choices, batch, monkeypatch):
    monkeypatch.setattr(decode, "ROOM", 2)  # so that what it has read is moved to where there is more
    made = model(mixer="attention", **choices)
    if kernels.JIT:
        assert ("output" in made.config.biases) == (decode.plan(made, batch).blocks[0].kind == "other")
    follow(made, text(batch, 9), exact=False)
    with no_grad():
        _, state = made(text(batch, 7))
    follow(made, text(batch, 9), state, exact=False)


def test_attention_goes_on_from_an_earlier_state_as_from_the_last():
    made = model(mixer="attention", window=0)
    state = follow(made, text(1, 5), exact=False)
    before = state.pack()
    one, other = (follow(made, text(1, 4, seed), state, exact=False) for seed in (1, 2))
    for begun, seed in ((other, 3), (one, 4)):
        follow(made, text(1, 2, seed), begun, exact=False)
    assert all(np.array_equal(before[name], array) for name, array in state.pack().items())


@needs_jit
@pytest.mark.parametrize("choices", [{}, *({"mixer": "attention", **choices} for choices in ATTENTION[:2])], ids=str)
def test_no_bit_depends_on_how_many_threads_walk_a_program(choices, monkeypatch):
    made, found = model(width=32, hidden=100, **choices), []
    monkeypatch.setattr(program, "TOGETHER", 0)
    monkeypatch.setattr(program, "BYTES", 1)
    for threads in (1, 4):
        decode._plans.of.clear() if hasattr(decode._plans, "of") else None
        monkeypatch.setattr(runtime, "_threads", threads)
        state = None
        for t in text(1, 12)[0]:
            logits, state = made.step([[t]], state)
        found.append(logits.data)
    assert np.array_equal(*found)


@settings(deadline=None, max_examples=15)
@given(prompt=st.integers(0, 13), time=st.integers(1, 9), batch=st.integers(1, 3), memory_chunk=st.integers(1, 6),
       projection_chunk=st.integers(1, 6), momentum=st.booleans())
def test_it_goes_on_from_any_place_in_a_chunk_with_any_number_of_sequences(
        prompt, time, batch, memory_chunk, projection_chunk, momentum):
    made, state = model(memory_chunk=memory_chunk, projection_chunk=projection_chunk, momentum=momentum), None
    if prompt:
        with no_grad():
            _, state = made(text(batch, prompt, 1), state)
    follow(made, text(batch, time), state, exact=batch == 1)


@pytest.mark.parametrize("choices", [{}, {"momentum": True, "memory_chunk": 3}, AS_PRINTED,
                                     {"adaptive": ("memory",), "targets": "value", "mixer": "plain-titans"},
                                     {"width": 72, "heads": 2, "memory_hidden": 5}], ids=str)
def test_a_token_of_the_kernel_is_the_definition(choices, monkeypatch):
    made, tokens = model(**choices).astype(np.float64), text(2, 9)
    state, found = None, []
    for t in range(9):
        logits, state = made.step(tokens[:, t:t + 1], state)
        found.append(logits.data)
    monkeypatch.setattr(SelfModifyingTitans, "known_to_kernel", lambda mixer: False)
    with no_grad():
        expected, other = made(tokens)
    np.testing.assert_allclose(np.concatenate(found, 1), expected.data, rtol=1e-9, atol=1e-10)
    for x, y in zip(state.leaves(), other.leaves(), strict=True):
        np.testing.assert_allclose(x.data, y.data, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("choices", [{}, {"momentum": True, "memory_chunk": 5, "projection_chunk": 3},
                                     {"mixer": "attention", "window": 0}, {"norm": "layer"}], ids=str)
def test_states_that_nobody_looks_at_are_those_that_somebody_did(choices):
    made, tokens = model(**choices), text(2, 11)
    looked: list[Any] = [None]
    blind: list[Any] = [None]
    for t in range(11):
        looked.append(made.step(tokens[:, t:t + 1], looked[-1])[1])
        looked[-1].pack()
        blind.append(made.step(tokens[:, t:t + 1], blind[-1])[1])
    for a, b in zip(looked[1:], blind[1:], strict=True):
        x, y = a.pack(), b.pack()
        assert str(x.pop("state")) == str(y.pop("state")) and all(np.array_equal(x[name], y[name]) for name in x)
    for t in (3, 7, 4):  # from any of them, in any order
        expect_equal(*made.step(tokens[:, t:t + 1], blind[t]), *made.step(tokens[:, t:t + 1], State.unpack(
            looked[t].pack())), exact="attention" not in str(choices))


@needs_jit
def test_a_program_has_only_the_loops_that_its_model_asks_for():
    programs = [decode.plan(model(**choices), 1).program for choices in ({}, {"mixer": "attention", "window": 0})]
    assert [(p.attends is None, p.remembers is None) for p in programs] == [(True, False), (False, True)]


@needs_jit
@pytest.mark.parametrize("many", [1, 100])
@pytest.mark.parametrize("choices", [{}, {"activation": "swiglu", "width": 36, "heads": 3}, AS_PRINTED,
                                     {"width": 64, "memory_hidden": 32}], ids=str)
def test_a_row_of_a_batch_has_the_bits_of_that_sequence_alone(choices, many, monkeypatch):
    monkeypatch.setattr(program, "MANY", many)  # sequences from which on both rounds of the memories are one loop
    monkeypatch.setattr(runtime, "_threads", 1)
    made, tokens = model(**choices), text(5, 7)
    begun = [made.step(row[None, :1])[1] for row in tokens]
    states = stack(begun)
    for t in range(1, 7):
        logits, states = made.step(tokens[:, t:t + 1], states)
        for b, alone in enumerate(begun):
            one, begun[b] = made.step(tokens[b:b + 1, t:t + 1], alone)
            assert np.array_equal(logits.data[b], one.data[0])


def test_in_float64_too():
    follow(model().astype(np.float64), text(1, 5))


def test_levels_that_have_learned_and_learning_between_tokens():
    for rank in (0, 2):
        made = model(drift_rank=rank)
        state = follow(made, text(1, 5))
        _, state = made.learn(text(1, 9, 1), state)
        _, state = made.learn(text(1, 9, 2), follow(made, text(1, 3), state))
        follow(made, text(1, 5), state)


def test_an_earlier_state_stays_as_it_was_and_can_be_gone_on_from():
    made = model()
    state = follow(made, text(1, 6))
    before, (first, _) = state.pack(), made.step(text(1, 1), state)
    follow(made, text(1, 7, 1), state)
    assert all(np.array_equal(before[name], array) for name, array in state.pack().items())
    assert np.array_equal(made.step(text(1, 1), state)[0].data, first.data)


def test_a_state_that_was_saved_is_gone_on_from(tmp_path):
    made = model(momentum=True)
    state = follow(made, text(1, 5))
    state.save(tmp_path / "state.npz")
    logits, after = made.step(text(1, 1), state)
    expect_equal(logits, after, *made.step(text(1, 1), State.load(tmp_path / "state.npz")))


@pytest.mark.parametrize("other", [
    lambda x: np.repeat(x, 2, axis=-1)[..., ::2], lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)],
    ids=["strided", "read-only"])
def test_a_state_that_lies_otherwise_is_read_as_it_is(other):
    made = model(momentum=True)
    state = follow(made, text(1, 5))
    logits, after = made.step(text(1, 1), state.map(lambda t: Tensor(other(t.data))))
    expect_equal(logits, after, *made.step(text(1, 1), state), exact=kernels.JIT)  # BLAS adds strided rows otherwise


@pytest.mark.parametrize("how", ["replaced", "loaded", "written into", "another mixer", "other settings",
                                 "other levels", "another map", "another embedding", "another epsilon", "unscaled"])
def test_what_changed_in_a_model_is_seen(how):
    made, other, table = model(), model(hidden=5), Parameter(model().embedding.data[::-1].copy())
    state = follow(made, text(1, 3))
    weight = made.blocks[0].mixer.output.weight
    if how == "replaced":
        weight.data = weight.data * 2
    elif how == "loaded":
        made.load_state_dict({name: array * 2 for name, array in made.state_dict().items()}, assign=True)
    elif how == "another epsilon":
        made.blocks[0].norm.eps = 0.1
    elif how == "unscaled":
        made.config = replace(made.config, scaled=False)
    elif how == "other levels":
        made.blocks[1].cms = other.blocks[0].cms
    elif how == "another map":
        made.blocks[0].mixer.output = other.blocks[1].mixer.output
    elif how == "another embedding":
        made.embedding = table
    elif how == "another mixer":
        made.blocks[0].mixer = model(eta_start=0.05).blocks[1].mixer
    elif how == "other settings":
        made.blocks[0].mixer.config = replace(made.config, eta_max=0.06)
    else:
        made.blocks[1].cms.levels[0].up.weight.data[...] *= 2
    follow(made, text(1, 3), state)


def test_batches_of_many_sizes_in_turn():
    made = model()
    states = {batch: follow(made, text(batch, 2), exact=batch == 1) for batch in range(1, decode.KEPT + 3)}
    for batch, state in states.items():
        follow(made, text(batch, 2), state, exact=batch == 1)


def test_weights_that_lie_by_columns_are_read_by_the_model():
    made = model()
    for p in made.parameters():
        p.data = np.asfortranarray(p.data)
    assert decode.plan(made, 1) is None
    follow(made, text(1, 2))


def test_bad_input_gets_the_models_own_words():
    made = model()
    state = follow(made, text(2, 2), exact=False)
    for tokens, match in (([[300], [0]], "0..255"), ([[0.5], [0]], "whole numbers"), ([[0]], "2 sequences")):
        with pytest.raises(ValueError, match=match):
            made.step(np.array(tokens), state)
    with pytest.raises(ValueError, match="must have shape"):
        made.step(5)


def test_generating_takes_the_plan_and_writes_what_the_model_writes():
    made, prompt = model(), text(1, 11)[0]
    written = [token for token, _ in made.generate(prompt, 12, temperature=0)]
    with no_grad():
        tokens, state = [], None
        for t in range(0, len(prompt), SMALL.segment):
            logits, state = made(prompt[None, t:t + SMALL.segment], state)
        for _ in written:
            tokens.append(int(np.argmax(logits.data[0, -1])))
            logits, state = made(np.array([[tokens[-1]]]), state)
    assert written == tokens


@needs_jit
@pytest.mark.parametrize("mixer", ["titans", "attention", "titans+attention", "cell"])
def test_one_plan_serves_all_tokens_and_another_where_blocks_or_levels_change_places(mixer, monkeypatch):
    made, tokens, count = model(mixer=mixer), text(1, 8), []
    build = decode.Plan.__init__
    monkeypatch.setattr(decode.Plan, "__init__", lambda self, *given: (count.append(1), build(self, *given))[1])
    follow(made, tokens)
    assert len(count) == 1
    for change in (made.blocks.reverse, made.blocks[0].cms.levels.reverse):
        change()
        with no_grad():
            expected = made(tokens[:, :1])[0]
        np.testing.assert_allclose(made.step(tokens[:, :1])[0].data, expected.data, rtol=1e-4, atol=1e-5)
    assert len(count) == 3


def test_a_model_that_is_gone_takes_its_plans_along():
    made = model()
    follow(made, text(1, 2))
    plans = vars(decode._plans).get("of", {})
    count = len(plans)
    del made
    assert not kernels.JIT or len(plans) == count - 1

