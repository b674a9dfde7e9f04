"""What cms.py promises: a level stays as it is, to the bit, until its clock is due; then it has learned."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cms
import optimizers
from autograd import Tensor, grad, no_grad
from autograd import sum as total
from cms import LevelState
from config import MIXERS, Config
from hope import BlockState, Hope, State, load, save
from tools.timetable import timetable

VARIANTS = ("sequential", "independent", "nested", "spread")


SMALL = Config(width=8, heads=2, layers=2, segment=8, vocabulary=7, hidden=6, chunks=(1, 2, 4), mixer="gated",
               memory_chunk=4, projection_chunk=4, form="chunked")  # fmt: skip


def small(**settings) -> Config:
    return replace(SMALL, **settings)


def model_of(config: Config, seed: int = 0) -> Hope:
    """In float64, with parameters away from their start."""
    rng = np.random.default_rng(seed)
    model = Hope(config, rng).astype(np.float64)
    for p in model.parameters():
        p.data += 0.3 * rng.standard_normal(p.shape)
    return model


def text(config: Config, batch: int = 2, length: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocabulary, (batch, length))


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def mlp(level: cms.Level, x: np.ndarray) -> np.ndarray:
    return gelu(x @ level.up.weight.data.T) @ level.down.weight.data.T


# --- the function of a chain --------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_a_clock_is_due_at_whole_multiples_of_its_chunk_size(clock, chunk):
    assert cms.due(clock * chunk, chunk) and (chunk == 1 or not cms.due(clock * chunk + 1, chunk))


@pytest.mark.parametrize("variant", ["sequential", "nested"])
def test_a_chain_is_the_composition_of_its_residual_levels_fast_to_slow(variant):
    block = model_of(small(cms=variant)).blocks[0]
    x = draw(1, 2, 5, 8)
    h = x
    for level in block.cms.levels:
        h = h + mlp(level, rms(h))
    assert [level.chunk for level in block.cms.levels] == [1, 2, 4]
    assert np.allclose(block.cms(Tensor(x)).data, h, atol=1e-12)


def test_independent_levels_are_mixed_by_the_softmax_of_learned_weights():
    chain = model_of(small(cms="independent")).blocks[0].cms
    x, weight = draw(1, 2, 5, 8), np.exp(chain.mix.data) / np.sum(np.exp(chain.mix.data))
    expected = x + np.sum(
        [w * mlp(level, rms(x)) for w, level in zip(weight, chain.levels, strict=True)], axis=0
    )
    assert np.ptp(weight) > 0.01 and np.allclose(chain(Tensor(x)).data, expected, atol=1e-12)


def test_spread_levels_get_slower_with_depth_one_per_block():
    model = Hope(small(cms="spread", layers=6), None)
    assert [[level.chunk for level in block.cms.levels] for block in model.blocks] == [
        [1],
        [1],
        [2],
        [2],
        [4],
        [4],
    ]


def test_what_a_sequence_has_drifted_is_added_to_its_own_weights():
    level, x = model_of(small()).blocks[0].cms.levels[0], draw(1, 3, 5, 8)
    drift = {name: Tensor(draw(2, 3, *w.shape)) for name, w in level.weights().items()}
    y = level(Tensor(x), drift).data
    for n in range(3):
        up, down = (level.weights()[name].data + drift[name].data[n] for name in ("up", "down"))
        assert np.allclose(y[n], gelu(x[n] @ up.T) @ down.T, atol=1e-12)
    assert np.allclose(level(Tensor(x), level.zero_drift(3)).data, level(Tensor(x)).data, atol=1e-14)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_drift_of_low_rank_is_the_full_one_projected_on_directions_that_stay(activation, rank):
    level = model_of(small(activation=activation, biases=("level",), drift_rank=rank)).blocks[0].cms.levels[0]
    x, weights = Tensor(draw(1, 2, 5, 8)), level.weights()
    drift = {name: Tensor(draw(2, 2, len(w), rank or w.shape[1])) for name, w in weights.items()}
    y = level(x, drift).data
    for n in range(2):
        merged = level.merged({name: Tensor(d.data[n:n + 1]) for name, d in drift.items()})
        assert all(np.linalg.matrix_rank(merged[name] - w.data) <= (rank or 8) for name, w in weights.items())
        other = model_of(small(activation=activation, biases=("level",))).blocks[0].cms.levels[0]
        for name, w in other.weights().items():
            w.data[...] = merged[name]
        assert np.allclose(y[n], other(Tensor(x.data[n:n + 1])).data[0], atol=1e-12)
        if rank:  # its size is that of the matrix it stands for
            sizes = [np.linalg.norm(merged[name] - w.data) for name, w in weights.items()]
            assert np.allclose(sizes, [np.linalg.norm(d.data[n]) for d in drift.values()])
    assert np.allclose(level(x, level.zero_drift(2)).data, level(x).data, atol=1e-14)
    assert all(merged is w.data for merged, w in zip(level.merged(None).values(), weights.values(), strict=True))


def attend(layer, x: np.ndarray) -> np.ndarray:
    """Causal softmax attention of one sequence x (T,D), rotary positions as rotations of complex numbers."""
    T, D = x.shape
    d, mixed = D // layer.heads, np.zeros((T, D))
    turn = np.exp(1j * np.arange(T)[:, None] * 10000.0 ** (-np.arange(d // 2) / (d // 2)))
    for h in range(layer.heads):
        rows = slice(h * d, (h + 1) * d)
        q, k, v = (x @ f.weight.data[rows].T for f in (layer.query, layer.key, layer.value))
        q, k = ((z[:, 0::2] + 1j * z[:, 1::2]) * turn for z in (q, k))
        for t in range(T):
            p = np.exp(np.real(k[: t + 1].conj() @ q[t]) / np.sqrt(d))
            mixed[t, rows] = p / p.sum() @ v[: t + 1]
    return mixed @ layer.output.weight.data.T


def test_one_level_behind_attention_is_a_transformer():
    config = small(mixer="attention", chunks=(1,))
    model, tokens = model_of(config), text(config, 2, 6)
    for n, sequence in enumerate(tokens):
        x = model.embedding.data[sequence] * np.sqrt(8)
        for block in model.blocks:
            x = x + attend(block.mixer, rms(x))
            x = x + mlp(block.cms.levels[0], rms(x))
        logits = (rms(x) * model.norm.weight.data) @ model.embedding.data.T
        assert np.allclose(model(tokens)[0].data[n], logits, atol=1e-11)


def test_hope_is_titans_and_then_its_levels_in_a_chain():
    """[A 94–97]"""
    model, tokens = model_of(small(mixer="titans")), text(SMALL, 2, 6)
    x = model.embedding.data[tokens] * np.sqrt(8)
    for block in model.blocks:
        x = x + block.mixer(Tensor(rms(x)))[0].data
        for level in block.cms.levels:
            x = x + mlp(level, rms(x))
    logits = (rms(x) * model.norm.weight.data) @ model.embedding.data.T
    assert np.allclose(model(tokens)[0].data, logits, atol=1e-11)


# --- the clocks while training ------------------------------------------------------------------------------


LADDER = ("SGD", "Momentum", "AdamW", "Muon", "M3", "DeltaMomentum", "MultiTimescale")


@pytest.mark.parametrize("accumulate", ["updates", "gradients"])
@pytest.mark.parametrize(
    "variant, name",
    [*(("sequential", name) for name in LADDER), ("independent", "AdamW"), ("spread", "AdamW")],
)
def test_in_training_a_level_moves_at_exactly_the_steps_its_clock_says(variant, name, accumulate):
    config = small(cms=variant, layers=3, mixer="attention")
    model = Hope(config, np.random.default_rng(0))
    optimizer = getattr(optimizers, name)(model.groups(), lr=0.01, accumulate=accumulate)
    period = {
        p.name: level.chunk
        for block in model.blocks
        for level in block.cms.levels
        for p in level.weights().values()
    }
    assert set(period.values()) == {1, 2, 4}
    for step in range(1, 10):
        before = {p.name: p.data.copy() for p in model.parameters()}
        model.zero_grad()
        model.loss(text(config, seed=step))[0].backward()
        fired = optimizer.step()
        assert fired == [chunk for chunk in (1, 2, 4) if step % chunk == 0]
        for p in model.parameters():
            moved = not np.array_equal(p.data, before[p.name])
            assert moved == (step % period.get(p.name, 1) == 0), (p.name, step)


# --- learning while reading ---------------------------------------------------------------------------------


def drifts(state: State) -> dict[tuple[int, int, str], np.ndarray]:
    return {
        (b, n, name): d.data
        for b, block in enumerate(state.blocks)
        for n, level in enumerate(block.levels)
        if level.drift
        for name, d in level.drift.items()
    }


@pytest.mark.parametrize(
    "mixer, variant",
    [("titans", "sequential"), ("gated", "sequential"), *(("attention", variant) for variant in VARIANTS)],
)
def test_in_reading_a_level_moves_at_exactly_the_segments_its_clock_says(mixer, variant):
    config = small(cms=variant, mixer=mixer, layers=3)
    model, state = Hope(config, np.random.default_rng(0)), None
    weights = {name: w.copy() for name, w in model.state_dict().items()}
    for segment in range(1, 10):
        before = {} if state is None else drifts(state)
        _, state = model.learn(text(config, seed=segment), state)
        assert state.clock == segment
        for (b, n, name), now in drifts(state).items():
            moved = not np.array_equal(now, before.get((b, n, name), np.zeros_like(now)))
            assert moved == (segment % config.block_chunks(b)[n] == 0), (segment, b, n, name)
    assert all(
        np.array_equal(w, weights[name]) for name, w in model.state_dict().items()
    )  # initial states: not a bit
    assert all(p.grad is None for p in model.parameters())


def test_learning_leaves_the_state_it_was_given_as_it_was():
    config = small(mixer="titans")
    model = model_of(config)
    _, state = model.learn(text(config))
    packed = {name: a.copy() for name, a in state.pack().items()}
    model.learn(text(config, seed=1), state)
    assert all(np.array_equal(a, packed[name]) for name, a in state.pack().items())


def sequence_loss(model: Hope, tokens: np.ndarray, state: State, n: int) -> float:
    """Mean loss of sequence n alone, in a batch that starts from `state`."""
    with no_grad():
        logits, _ = model(tokens[:, :-1], state)
    z = logits.data[n]
    return float(np.mean(np.log(np.sum(np.exp(z), axis=-1)) - z[np.arange(len(z)), tokens[n, 1:]]))


def numeric_drift_gradients(model: Hope, tokens: np.ndarray, state: State) -> dict:
    """(block, level, name) → the gradient (B,out,in) of each sequence's loss in its drift, numerically."""
    found, batch = {}, len(tokens)
    drift = [
        [
            {
                name: np.zeros((batch, *w.shape)) if past.drift is None else past.drift[name].data.copy()
                for name, w in level.weights().items()
            }
            for level, past in zip(block.cms.levels, b.levels, strict=True)
        ]
        for block, b in zip(model.blocks, state.blocks, strict=True)
    ]
    asked = State(
        [
            BlockState(b.mixer, tuple(LevelState({name: Tensor(a) for name, a in level.items()}) for level in levels))
            for b, levels in zip(state.blocks, drift, strict=True)
        ],
        state.clock,
    )
    for b, levels in enumerate(drift):
        for n, level in enumerate(levels):
            for name, array in level.items():
                g = np.zeros_like(array)
                for at in np.ndindex(array.shape):
                    sides = []
                    for eps in (1e-5, -2e-5):
                        array[at] += eps
                        sides.append(sequence_loss(model, tokens, asked, at[0]))
                    array[at] += 1e-5
                    g[at] = (sides[0] - sides[1]) / 2e-5
                found[b, n, name] = g
    return found


def clipped(gradients: dict) -> dict:
    """Each sequence's gradient of each level, up and down together, brought to a norm of at most 1."""
    scale = {}
    for b, n, _ in gradients:
        squares = np.sum([np.sum(gradients[b, n, name] ** 2, axis=(1, 2)) for name in ("up", "down")], axis=0)
        scale[b, n] = 1 / np.maximum(1, np.sqrt(squares))[:, None, None]
    return {key: g * scale[key[:2]] for key, g in gradients.items()}


@pytest.mark.parametrize("variant, sharp", [("sequential", 1.0), ("independent", 1.0), ("sequential", 12.0)])
def test_a_level_moves_by_minus_rate_times_the_clipped_gradients_it_has_gathered(variant, sharp):
    """Against central differences, for chunk sizes 1 and 2; sharp logits make the gradients long."""
    config = small(width=4, heads=1, hidden=3, layers=1, chunks=(1, 2), cms=variant)
    model, rate = model_of(config), 0.7
    model.norm.weight.data *= sharp
    one, two = text(config, seed=1, length=6), text(config, seed=2, length=6)
    first = numeric_drift_gradients(model, one, State.start(config))
    loss, state = model.learn(one, rate=rate)
    assert abs(loss - np.mean([sequence_loss(model, one, State.start(config), n) for n in range(2)])) < 1e-12
    second = numeric_drift_gradients(model, two, state)
    _, after = model.learn(two, state, rate=rate)
    long = [np.sum(g**2) > 1 for g in first.values()]
    assert any(long) if sharp > 1 else not any(long)
    first, second = clipped(first), clipped(second)
    for name in ("up", "down"):
        assert np.allclose(drifts(state)[0, 0, name], -rate * first[0, 0, name], atol=1e-8)
        assert not np.any(drifts(state)[0, 1, name])
        assert np.allclose(
            drifts(after)[0, 0, name], -rate * (first[0, 0, name] + second[0, 0, name]), atol=1e-8
        )
        assert np.allclose(
            drifts(after)[0, 1, name], -rate * (first[0, 1, name] + second[0, 1, name]), atol=1e-8
        )


@pytest.mark.parametrize(
    "mixer, variant", [("titans", "sequential"), *(("gated", variant) for variant in VARIANTS)]
)
def test_learning_in_a_batch_is_learning_alone(mixer, variant):
    config = small(mixer=mixer, cms=variant, layers=3)
    model, alone = model_of(config), []
    for n in range(3):
        state, losses = None, []
        for i in range(4):
            loss, state = model.learn(text(config, 3, seed=i)[n : n + 1], state)
            losses.append(loss)
        alone.append((losses, drifts(state)))
    state, together = None, []
    for i in range(4):
        loss, state = model.learn(text(config, 3, seed=i), state)
        together.append(loss)
    assert np.allclose(together, np.mean([losses for losses, _ in alone], axis=0), atol=1e-10)
    for key, d in drifts(state).items():
        assert np.allclose(d, np.concatenate([moved[key] for _, moved in alone]), atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_a_text_lowers_its_loss(variant):
    config = small(cms=variant, chunks=(1, 2), mixer="attention")
    model, tokens, state, losses = Hope(config, np.random.default_rng(0)), text(config), None, []
    for _ in range(6):
        loss, state = model.learn(tokens, None if state is None else state.reset("memory"), rate=0.5)
        losses.append(loss)
    rests = 2 if variant == "nested" else 1  # its fast level returns at every second segment
    assert losses[1] < losses[0] and all(np.diff(losses[::rests]) < 0)
    with no_grad():
        frozen = model.loss(tokens)[0].item()
    assert losses[0] == pytest.approx(frozen, rel=1e-6)  # the loss it returns is the one before learning


def test_rate_zero_moves_nothing_and_the_config_gives_the_rate():
    config = small(learn_rate=0.25)
    model = model_of(config)
    _, still = model.learn(text(config), rate=0.0)
    assert not any(np.any(d) for d in drifts(still).values())
    _, moved = model.learn(text(config))
    _, same = model.learn(text(config), rate=0.25)
    assert all(
        np.array_equal(a, b) for a, b in zip(drifts(moved).values(), drifts(same).values(), strict=True)
    )


def test_learning_works_where_nothing_else_is_recorded():
    config = small()
    model = model_of(config)
    with no_grad():
        _, state = model.learn(text(config))
    assert np.any(drifts(state)[0, 0, "up"])


def test_a_state_in_the_middle_of_a_chunk_survives_its_file(tmp_path):
    config = small(mixer="titans")
    model = model_of(config)
    _, state = model.learn(text(config))
    save(tmp_path / "half.npz", model, state)
    other, loaded, _ = load(tmp_path / "half.npz")
    one, two = model.learn(text(config, seed=1), state), other.learn(text(config, seed=1), loaded)
    assert one[0] == two[0] and one[1].clock == two[1].clock == 2
    assert all(
        np.array_equal(a, b) for a, b in zip(drifts(one[1]).values(), drifts(two[1]).values(), strict=True)
    )


# --- the nested variant -------------------------------------------------------------------------------------


def nested(**settings) -> Config:
    return small(
        **{
            "cms": "nested",
            "width": 4,
            "heads": 1,
            "hidden": 3,
            "vocabulary": 5,
            "segment": 8,
            "learn_rate": 2.0,
            "chunks": (1, 2, 4),
            **settings,
        }
    )


def nested_by_hand(model: Hope, tokens: np.ndarray, rate: float, held: list | None = None) -> float:
    """The window's loss, one piece at a time; an inner gradient is that of its own piece alone.

    An empty list `held` collects the inner gradients, a full one replaces them: so they can be held still.
    """
    chunks, levels = model.config.chunks, range(len(model.config.chunks) - 1)
    batch, length = len(tokens), (tokens.shape[1] - 1) // chunks[-1]
    drift = [
        [
            {name: np.zeros((batch, *w.shape)) for name, w in level.weights().items()}
            for level in block.cms.levels[:-1]
        ]
        for block in model.blocks
    ]
    gathered = [[{name: 0 * d for name, d in level.items()} for level in block] for block in drift]
    replay, state, losses = iter(held or []), State.start(model.config), []
    for i in range(1, chunks[-1] + 1):
        leaf = [
            [{name: Tensor(d, requires_grad=True) for name, d in level.items()} for level in block]
            for block in drift
        ]
        asked = [
            BlockState(past.mixer, (*map(LevelState, block), LevelState()))
            for past, block in zip(state.blocks, leaf, strict=True)
        ]
        loss, state = model.loss(tokens[:, (i - 1) * length : i * length + 1], State(asked))
        losses.append(loss.item())
        found = {}
        for b, n in product(range(len(leaf)), levels):
            for name, d in leaf[b][n].items():
                found[b, n, name] = next(replay, None)
                if found[b, n, name] is None:
                    found[b, n, name] = grad(loss * batch, [d], retain_graph=True)[0].data
                    if held is not None:
                        held.append(found[b, n, name])
        found = clipped(found)
        for b, n in product(range(len(leaf)), levels):
            for name in leaf[b][n]:
                gathered[b][n][name] = gathered[b][n][name] + found[b, n, name]
                if i % chunks[n] == 0:
                    drift[b][n][name] = drift[b][n][name] - rate * gathered[b][n][name]
                    gathered[b][n][name] = 0 * found[b, n, name]
                if i % chunks[n + 1] == 0:
                    drift[b][n][name] = 0 * drift[b][n][name]
        state = state.detach()
    return float(np.mean(losses))


NESTED = [(1, 2), (2, 4), (1, 2, 4), (2, 2, 4), (1, 1), (2,)]


def test_nested_levels_learn_while_reading_as_they_do_in_their_window():
    """The pieces of a window, given to `learn` one by one, lead to the same losses and the same moves."""
    config = nested(chunks=(1, 2, 4), mixer="gated")
    model, tokens = model_of(config), text(config)
    state, losses, moved = None, [], []
    for i in range(0, 8, 2):
        loss, state = model.learn(tokens[:, i : i + 3], state)
        losses.append(loss)
        levels = state.blocks[0].levels
        moved.append([level.drift is not None and np.any(level.drift["up"].data) for level in levels])
    assert np.mean(losses) == pytest.approx(model.context_loss(tokens)[0].item(), abs=1e-12)
    assert moved == [[True, False, False], [False, True, False], [True, True, False], [False, False, True]]


def test_the_initial_states_of_all_nested_levels_are_learned_at_the_end_of_every_window():
    model = Hope(nested(mixer="attention"), np.random.default_rng(0))
    optimizer = optimizers.AdamW(model.groups(), lr=0.01)
    for seed in range(2):
        before = [p.data.copy() for p in model.parameters()]
        model.zero_grad()
        model.context_loss(text(model.config, seed=seed))[0].backward()
        assert optimizer.step() == [1]
        assert not any(np.array_equal(p.data, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("chunks", NESTED)
@pytest.mark.parametrize("mixer", ["titans", "attention", "gated"])
def test_context_loss_is_its_explicit_loop(mixer, chunks):
    config = nested(mixer=mixer, chunks=chunks)
    model, tokens = model_of(config), text(config)
    expected = nested_by_hand(model, tokens, 2.0)
    loss, state = model.context_loss(tokens)
    assert abs(loss.item() - expected) < 1e-12
    assert abs(model.context_loss(tokens, first_order=True)[0].item() - expected) < 1e-12
    assert all(level.drift is None for block in state.blocks for level in block.levels)


def test_a_nested_level_returns_to_its_initial_state_at_the_end_of_its_context():
    config = nested(segment=16, chunks=(1, 2, 8), mixer="attention")
    model, drift = model_of(config), []
    read = model.loss

    def watched(tokens, state):
        drift.append([[np.any(level.drift["up"].data) for level in b.levels[:-1]] for b in state.blocks])
        return read(tokens, state)

    model.loss = watched  # type: ignore[method-assign]
    model.context_loss(text(config, length=17))
    for b in range(2):
        assert [moved[b][0] for moved in drift] == [False, True] * 4  # moves every piece, its context is 2
        assert [moved[b][1] for moved in drift] == [False, False, *[True] * 6]  # every other piece, 8


@pytest.mark.parametrize(
    "setting", [{}, {"chunks": (1, 4)}, {"mixer": "plain-titans", "chunks": (1, 2), "memory": "matrix"}]
)
def test_the_gradient_of_context_loss_runs_through_its_inner_moves_or_holds_them_still(setting):
    config = nested(**setting)
    model, tokens = model_of(config), text(config)
    exact = grad(model.context_loss(tokens)[0], model.parameters())
    simple = grad(model.context_loss(tokens, first_order=True)[0], model.parameters())
    held: list = []
    nested_by_hand(model, tokens, 2.0, held)
    middle = [p.data for p in model.parameters()]
    for seed in range(4):
        rng, sides = np.random.default_rng(seed), []
        directions = [rng.standard_normal(p.shape) / np.sqrt(p.size) for p in middle]
        for eps in (2e-6, -2e-6):
            for p, array, direction in zip(model.parameters(), middle, directions, strict=True):
                p.data = array + eps * direction
            sides.append([nested_by_hand(model, tokens, 2.0), nested_by_hand(model, tokens, 2.0, held)])
        for numeric, gradients in zip((np.array(sides[0]) - sides[1]) / 4e-6, (exact, simple), strict=True):
            found = np.sum([np.sum(g.data * d) for g, d in zip(gradients, directions, strict=True)])
            assert abs(numeric - found) < 1e-6 * (1 + abs(numeric))
    assert not any(np.allclose(a.data, b.data, rtol=1e-3) for a, b in zip(exact, simple, strict=True))


def test_all_forms_of_the_delta_rule_have_the_same_nested_gradient():
    models = [model_of(nested(form=form, mixer="titans")) for form in ("chunked", "recurrent", "fused")]
    for first_order in (True, False):
        able = models
        runs = [model.context_loss(text(model.config), first_order=first_order)[0] for model in able]
        found = [grad(loss, model.parameters()) for loss, model in zip(runs, able, strict=True)]
        for other in found[1:]:
            assert all(np.allclose(a.data, b.data, atol=1e-10) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("length", [4, 8, 10])
def test_a_nested_window_that_does_not_divide_is_refused(length):
    with pytest.raises(ValueError, match=f"multiple of 4 tokens and one more, not {length}"):
        model_of(nested()).context_loss(text(nested(), length=length))


def test_inner_learning_in_the_nested_variant_stops_at_rate_zero():
    config = nested(learn_rate=0.0, mixer="attention")
    model, tokens = model_of(config), text(config)
    assert model.context_loss(tokens)[0].item() == pytest.approx(model.loss(tokens)[0].item(), abs=1e-12)


def test_nested_training_reaches_every_initial_state():
    config = nested(mixer="titans", hidden=6, width=8)
    model = model_of(config)
    model.context_loss(text(config))[0].backward()
    assert all(p.grad is not None and np.any(p.grad) for p in model.parameters())


# --- levels from a trained model ----------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["attention", "titans"])
def test_stacked_levels_leave_the_function_unchanged(mixer):
    old = small(mixer=mixer, chunks=(1,), layers=4)
    model, tokens = model_of(old), text(old)
    for variant in ("spread", "independent"):
        new = small(mixer=mixer, cms=variant, layers=4)
        stacked = Hope(new, np.random.default_rng(5)).astype(np.float64)
        stacked.load_state_dict(cms.stack_levels(model.state_dict(), old, new))
        one, two = model(tokens)[0].data, stacked(tokens)[0].data
        assert (
            np.array_equal(one, two) if variant == "spread" else np.allclose(one, two, rtol=1e-12, atol=1e-12)
        )
        arrays = [p.data for p in stacked.parameters()]
        assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
        for level in stacked.blocks[3].cms.levels:
            assert np.array_equal(level.up.weight.data, model.blocks[3].cms.levels[0].up.weight.data)


def test_stacking_refuses_what_would_change_the_function():
    one, many = small(chunks=(1,)), small()
    weights = model_of(one).state_dict()
    with pytest.raises(ValueError, match="independent or spread"):
        cms.stack_levels(weights, one, many)
    with pytest.raises(ValueError, match=r"one level.*\(1, 2, 4\)"):
        cms.stack_levels(model_of(many).state_dict(), many, small(cms="spread", layers=3))


# --- alive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_level_of_every_variant_receives_gradients_at_the_start(variant):
    config = small(cms=variant, layers=3)
    model = Hope(config, np.random.default_rng(0))
    logits, _ = model(text(config, length=8))
    total(logits[:, -1] * draw(1, 7).astype(np.float32)).backward()
    assert all(p.grad is not None and np.any(p.grad) for p in model.parameters())


def test_the_trace_shows_the_slow_level_moving_every_fourth_segment(capsys):
    cms.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [" ".join(row[4:]) for row in rows] == ["chunk 1", "chunk 1", "chunk 1", "chunk 1, chunk 4"] * 2


# --- levels that move in the context, in every variant -------------------------------------------------------


def in_context(**settings) -> Config:
    return small(**{"segment": 12, "chunks": (1, 2, 4), "tick": 2, "moves": "context", "layers": 3,
                    "level_rates": (0.9, 0.5, 0.3), **settings})  # fmt: skip


def context_by_hand(model: Hope, tokens: np.ndarray) -> tuple[list[float], dict[str, np.ndarray]]:
    """One sequence, by moving the very weights of the model: losses of every tick, and how far each weight went."""
    config, state, losses = model.config, None, []
    levels = [(block, n, level) for block in model.blocks for n, level in enumerate(block.cms.levels)]
    before = {p.name: p.data.copy() for _, _, level in levels for p in level.parameters()}
    gathered = {name: np.zeros_like(w) for name, w in before.items()}
    for clock, t in enumerate(range(0, tokens.shape[1] - 1, config.tick), 1):
        model.zero_grad()
        loss, state = model.loss(tokens[:, t : t + config.tick + 1], state and state.detach())
        loss.backward()
        losses.append(loss.item())
        for block, n, level in levels:
            size = np.sqrt(sum(float(np.sum(np.asarray(p.grad) ** 2)) for p in level.parameters()) + 1e-12)
            slower = [clock % other.chunk == 0 for other in block.cms.levels[n + 1 : n + 2]]
            for p in level.parameters():
                gathered[p.name] += p.grad * min(1, 1 / size)
                ends = config.level_drift == "ends" and any(slower)
                if ends or clock % level.chunk == 0:
                    rate = np.exp(block.cms.log_rate.data[n])
                    p.data = before[p.name].copy() if ends else p.data - rate * gathered[p.name]
                    gathered[p.name] = np.zeros_like(p.data)
    moved = {name: p.data - before[name] for name, p in model.named_parameters() if name in before}
    for _, _, level in levels:
        for p in level.parameters():
            p.data = before[p.name]
    model.zero_grad()
    return losses, moved


@pytest.mark.parametrize("drift", ["kept", "ends"])
@pytest.mark.parametrize("variant", ["sequential", "independent", "spread", "sequential 2,3"])
def test_levels_that_move_in_the_context_are_weights_that_move(variant, drift):
    cms, _, chunks = variant.partition(" ")
    others = {"chunks": (2, 3), "level_rates": (0.9, 0.5)} if chunks else {}
    model = model_of(in_context(cms=cms, level_drift=drift, mixer="gated", **others))
    tokens = text(model.config, length=13)[:1]
    losses, moved = context_by_hand(model, tokens)
    loss, state = model.context_loss(tokens, carry=True)
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-10) and state.clock == 6
    for b, (block, past) in enumerate(zip(model.blocks, state.blocks, strict=True)):
        for n, its in enumerate(past.levels):
            for name in block.cms.levels[n].weights():
                expected = moved[f"blocks.{b}.cms.levels.{n}.{name}.weight"]
                found = 0 * expected if its.drift is None else its.drift[name].data[0]
                assert np.allclose(found, expected, rtol=1e-8, atol=1e-10)
    alone, none = model.context_loss(tokens)
    assert alone.item() == pytest.approx(loss.item(), abs=1e-12)
    assert none.clock == 0 and all(its.drift is None for past in none.blocks for its in past.levels)


def test_a_window_goes_on_where_the_last_one_ended_if_it_is_carried():
    model, tokens = model_of(in_context(mixer="gated")), text(in_context(segment=24), length=25)
    whole, end = model.context_loss(tokens[:, :13], carry=True)
    second, last = model.context_loss(tokens[:, 12:], end, carry=True)
    longer = Hope(in_context(segment=24, mixer="gated"), np.random.default_rng(0)).astype(np.float64)
    longer.load_state_dict(model.state_dict())
    total, final = longer.context_loss(tokens, carry=True)
    assert (whole.item() + second.item()) / 2 == pytest.approx(total.item(), abs=1e-10) and last.clock == final.clock
    for a, b in zip(last.leaves(), final.leaves(), strict=True):
        assert np.allclose(a.data, b.data, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", ["sequential", "independent", "spread", "nested"])
def test_initial_states_and_rates_are_learned_through_the_moves(variant):
    settings = {"cms": variant, "mixer": "attention", "segment": 8}
    model = model_of(in_context(**settings))
    tokens = text(model.config)
    parameters = dict(model.named_parameters())
    exact = grad(model.context_loss(tokens)[0], list(parameters.values()))
    gradients, rng = dict(zip(parameters, exact, strict=True)), np.random.default_rng(0)
    kinds = {name: "rate" if name.endswith("log_rate") else "level" if "levels" in name else "other"
             for name in parameters}
    assert set(kinds.values()) == {"rate", "level", "other"}
    for kind in ("rate", "level", "level", "other", "other"):  # along a direction in which all of a kind change
        names, sides = [name for name in parameters if kinds[name] == kind], []
        middles = {name: parameters[name].data for name in names}
        directions = {name: rng.standard_normal(parameters[name].shape) for name in names}
        for eps in (1e-5, -1e-5, 0.0):
            for name in names:
                parameters[name].data = middles[name] + eps * directions[name]
            sides.append(model.context_loss(tokens)[0].item() if eps else 0.0)
        numeric = (sides[0] - sides[1]) / 2e-5
        found = sum(float(np.sum(gradients[name].data * directions[name])) for name in names)
        assert abs(numeric - found) < 2e-6 * (1 + abs(numeric)), (kind, numeric, found)
    rates = [g.data for (name, _), g in zip(parameters.items(), exact, strict=True) if name.endswith("log_rate")]
    due = np.array([[level.chunk < model.config.ticks for level in block.cms.levels] for block in model.blocks])
    assert np.array_equal(np.array(rates) != 0, due)  # who moves in the window learns its rate
    first = grad(model.context_loss(tokens, first_order=True)[0], list(parameters.values()))
    assert any(not np.allclose(a.data, b.data) for a, b in zip(first, exact, strict=True))


def test_in_the_context_the_optimiser_moves_the_initial_states_at_every_step():
    model = Hope(in_context(mixer="attention"), np.random.default_rng(0))
    assert {group["period"] for group in model.groups()} == {1}


def test_a_window_goes_on_from_a_state_without_a_history_as_from_one_with():
    model, tokens = model_of(in_context(mixer="gated")), text(in_context(segment=24), length=25)
    _, end = model.context_loss(tokens[:, :13], carry=True)
    loss, last = model.context_loss(tokens[:, 12:], end, carry=True)
    again, other = model.context_loss(tokens[:, 12:], end.detach(), carry=True)
    assert again.item() == loss.item() and other.clock == last.clock
    assert all(np.all(np.isfinite(g.data)) for g in grad(again, model.parameters()))


def test_reading_with_learning_on_is_the_same_window_tick_by_tick():
    model = model_of(in_context(mixer="gated", cms="spread"))
    tokens, state, losses = text(model.config, length=13), None, []
    for t in range(0, 12, 2):
        loss, state = model.learn(tokens[:, t : t + 3], state)
        losses.append(loss)
    whole, after = model.context_loss(tokens, carry=True)
    assert np.mean(losses) == pytest.approx(whole.item(), abs=1e-10) and after.clock == state.clock


@pytest.mark.parametrize("settings, message", [
    ({"learn_rate": 0.0, "level_rates": ()}, "learn_rate 0; "),
    ({"level_rates": (0.1, 0.2)}, "give each of the 3 levels one"), ({"tick": 5}, "ticks of 5; choose a tick"),
    ({"level_drift": "lost"}, "choose from kept, ends"), ({"moves": "never"}, "choose from optimizer, context")])
def test_settings_of_moves_in_the_context_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        in_context(**settings)


def test_only_the_writes_of_titans_can_stop_a_gradient():
    for mixer, reach in (("titans", 1), ("plain-titans", 1), ("delta", 512), ("attention", 512), ("ada", 512)):
        rows = timetable(Config(segment=512, mixer=mixer, through_writes=False), 512)
        moving = [row[3] for row in rows if row[0].startswith(("main memory", "what makes"))]
        assert set(moving or [rows[0][3]]) == {reach}


def test_the_timetable_says_of_every_component_its_chunk_frequency_and_reach():
    """[§7.1, Fig. 5]: C_ℓ = max C/f_ℓ, and the slowest has f = 1."""
    found = timetable(Config(segment=512, chunks=(1, 4, 16), memory_chunk=64, projection_chunk=16), 2048)
    assert found == [
        ("main memory", 64, 512, 512),
        ("what makes k, v, eta, alpha", 16, 2048, 512),
        ("level 1, chunk size 1", 2048, 16, 1),
        ("level 2, chunk size 4", 8192, 4, 1),
        ("level 3, chunk size 16", 32768, 1, 1),
        ("embedding, projections, initial states of memories", 2048, 16, 1),
    ]
    moving = timetable(in_context(mixer="attention"), 24)
    assert moving[0] == ("attention", 0, np.inf, 12)
    assert [row[1:] for row in moving[1:4]] == [(2, 12, 12), (4, 6, 12), (8, 3, 12)]
    assert moving[-2] == ("initial states of the levels", 24, 1, 1)
    resting = timetable(in_context(mixer="attention", tick=0, segment=12), 24)
    assert [row[1:] for row in resting[1:4]] == [(3, 8, 12), (6, 4, 12), (12, 2, 1)]  # the slowest is due at the end
    for mixer in MIXERS:
        assert all(chunk * frequency == 24 for _, chunk, frequency, _ in timetable(small(mixer=mixer, chunks=(1,),
                   spans=(2,)), 24) if chunk)  # fmt: skip
