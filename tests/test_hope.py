"""What hope.py promises: one configuration, one state, one function, however a text is cut or continued."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layers
from autograd import Tensor, grad, no_grad, tree_map
from cms import LevelState
from config import CHOICES, MIXERS, Config, Training
from hope import BlockState, Hope, State, count, flops_per_token, load, sample, save, transformer, write_npz
from kernels import runtime

VARIANTS = ("sequential", "independent", "nested", "spread")


SMALL = Config(width=8, heads=2, layers=2, segment=8, vocabulary=11, hidden=6, chunks=(1, 2), memory_chunk=4,
               projection_chunk=4)  # fmt: skip


def small(**settings) -> Config:
    return replace(SMALL, **settings)


def model_of(config: Config, seed: int = 0) -> Hope:
    """In float64, with parameters away from their start."""
    rng = np.random.default_rng(seed)
    model = Hope(config, rng).astype(np.float64)
    for p in model.parameters():
        p.data += 0.2 * rng.standard_normal(p.shape)
    return model


def text(config: Config, batch: int = 2, length: int = 13, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocabulary, (batch, length))


def leaves(state: State) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    tree_map(lambda t: found.append(t.data), state.blocks)
    return found


def same(one: State, two: State) -> bool:
    return one.clock == two.clock and all(
        np.array_equal(a, b) for a, b in zip(leaves(one), leaves(two), strict=True)
    )


# --- configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mixer": "titan"}, r"mixer 'titan', did you mean 'titans'\?; choose from titans, "),
        ({"mixer": "zzzz"}, r"mixer 'zzzz'; choose from"),
        ({"cms": "sequental"}, "did you mean 'sequential'"),
        ({"form": "chunk"}, "did you mean 'chunked'"),
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"memory_chunk": 0}, "memory_chunk is 0"),
        ({"width": 10, "heads": 4}, r"width 10 over 4 heads gives heads of 2\.5"),
        ({"width": 9, "heads": 3}, "even multiple"),
        ({"chunks": (4, 1)}, r"\(4, 1\).*fast to slow"),
        ({"chunks": ()}, "chunks"),
        ({"chunks": (0, 1)}, "at least 1"),
        ({"adaptive": ("memory", "w")}, "choose from q, k, v, eta, alpha and memory"),
        ({"adaptive": ("k", "v")}, "memory among them"),
        ({"eta_start": 0.5, "eta_max": 0.1}, r"eta_start 0\.5 must lie between 0 and eta_max 0\.1"),
        ({"eta_start": float("nan")}, "eta_start"),
        ({"width": 64.0}, r"width is 64\.0; it must be a whole number"),
        ({"width": "64"}, "width is '64'; it must be a whole number"),
        ({"layers": True}, "layers is True; it must be a whole number"),
        ({"heads": None}, "heads is None; it must be a whole number"),
        ({"chunks": 4}, r"chunks is 4; it must be a list, such as \[1, 4, 16\]"),
        ({"chunks": "14"}, "chunks is '14'; it must be a list"),
        ({"chunks": (1, 2.5)}, r"chunks is 2\.5; it must be a whole number"),
        ({"adaptive": ("memory", 1)}, "adaptive is 1; it must be a word"),
        ({"mixer": 3}, "mixer is 3; it must be a word"),
        ({"through_writes": 1}, "through_writes is 1; it must be true or false"),
        ({"memory_hidden": -1}, "memory_hidden is -1; it must be at least 0"),
        ({"learn_rate": -0.5}, r"learn_rate is -0\.5; it must be at least 0"),
        ({"learn_rate": float("nan")}, "learn_rate is nan; it must be a finite number"),
        ({"learn_rate": True}, "learn_rate is True"),
        ({"eta_max": float("inf")}, "eta_max is inf; it must be a finite number"),
        ({"eta_max": "0.1"}, r"eta_max is '0\.1'"),
        ({"cms": "nested", "chunks": (2, 3)}, "divide"),
        ({"cms": "nested", "chunks": (1, 3), "segment": 8}, "divide"),
        ({"cms": "spread", "chunks": (1, 2, 4)}, "spread.*3 chunk sizes do not fit in 2 layers"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_whole_numbers_of_any_kind_are_taken_as_what_they_are():
    config = small(width=np.int64(8), chunks=[np.int32(1), 2], eta_max=1, adaptive=["memory"])
    assert config == small(eta_max=1.0, adaptive=("memory",)) and hash(config) == hash(replace(config))
    assert json.loads(json.dumps(asdict(config)))["chunks"] == [1, 2] and type(config.eta_max) is float


def test_an_unknown_key_is_refused_and_the_nearest_known_one_named():
    with pytest.raises(ValueError, match=r"unknown setting 'widht', did you mean 'width'\?"):
        Config.from_dict({"widht": 8})


def test_a_config_survives_json():
    config = small(chunks=(1, 4), adaptive=("memory", "k"))
    assert Config.from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert set(CHOICES) <= {f.name for part in (Config, Training) for f in fields(part)}


@given(st.sampled_from(MIXERS), st.sampled_from(VARIANTS), st.sampled_from([16, 24, 64]), st.integers(3, 6))
@settings(max_examples=40)
def test_the_transformer_of_a_config_is_one_level_of_attention_of_the_same_size(
    mixer, variant, width, layers
):
    config = Config(
        width=width,
        heads=2,
        layers=layers,
        hidden=2 * width,
        segment=16,
        mixer=mixer,
        cms=variant,
        chunks=(1, 2, 4),
    )
    twin = transformer(config)
    assert (twin.mixer, twin.chunks, twin.cms) == ("attention", (1,), "sequential")
    assert abs(count(twin) / count(config) - 1) < 0.01


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_count_is_the_number_of_parameters_there_are(mixer, variant):
    config = small(mixer=mixer, cms=variant)
    assert count(config) == sum(p.data.size for p in Hope(config, np.random.default_rng(0)).parameters())


def test_counting_a_large_model_needs_no_memory_for_it():
    config = Config(width=2048, layers=24, heads=16, hidden=4096, vocabulary=32000)
    arrays = [p.data for p in Hope(config, None).parameters()]
    assert count(config) > 1e9 and sum((a.base if a.base is not None else a).nbytes for a in arrays) < 1e6


# --- the running state --------------------------------------------------------------------------------------


def reading(model: Hope, tokens: np.ndarray, lengths) -> tuple[np.ndarray, Any]:
    state, parts, t = None, [], 0
    with no_grad():
        for n in lengths:
            logits, state = model(tokens[:, t : t + n], state)
            parts.append(logits.data)
            t += n
    return np.concatenate(parts, axis=1), state


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_text_reads_the_same_however_it_is_cut_and_in_whatever_batch(mixer):
    config = small(mixer=mixer, memory_chunk=6)
    model, tokens = model_of(config), text(config)

    @settings(max_examples=5)
    @given(st.lists(st.integers(1, 12), max_size=4).map(lambda cuts: sorted({0, *cuts, 13})))
    def holds(cuts):
        parts, state = reading(model, tokens, np.diff(cuts))
        assert np.allclose(parts, whole, atol=1e-10)
        assert all(np.allclose(a, b, atol=1e-10) for a, b in zip(leaves(state), leaves(end), strict=True))

    whole, end = reading(model, tokens, [13])
    holds()
    assert np.allclose(reading(model, tokens, [1] * 13)[0], whole, atol=1e-10)
    for n in range(2):
        assert np.allclose(reading(model, tokens[n : n + 1], [13])[0][0], whole[n], atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"mixer": "attention", "window": 0}, {"cms": "independent"}], ids=str)
@pytest.mark.parametrize("last", [1, 4])
def test_the_last_tokens_are_what_they_are_where_all_are_asked_for(settings, last):
    model = model_of(small(**settings)).astype(np.float64)
    tokens = text(model.config)
    with no_grad():
        (x, state), (y, other) = model.read(tokens), model.read(tokens, last=last)
    assert y.shape == (2, last, model.config.width) and same(state, other)
    assert np.allclose(y.data, x.data[:, -last:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"window": 0, "key_heads": 1}, {"window": 3}], ids=str)
def test_tokens_dealt_out_to_threads_are_read_as_by_one(settings, monkeypatch):
    model = model_of(small(mixer="attention", **settings)).astype(np.float64)
    tokens = text(model.config, length=16)
    _, drifted = model.learn(tokens[:, :9])
    with no_grad():
        wanted = [model(tokens, state) for state in (None, drifted)]
        monkeypatch.setattr(layers, "TOKENS", 1)
        monkeypatch.setattr(layers, "WORK", 0)
        monkeypatch.setattr(runtime, "GRAIN", 0)
        monkeypatch.setattr(runtime, "_threads", 3)
        for state, (logits, after) in zip((None, drifted), wanted, strict=True):
            found, other = model(tokens, state)
            assert np.allclose(found.data, logits.data, rtol=0, atol=1e-12)
            assert all(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(leaves(after), leaves(other), strict=True))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_bit_of_the_logits_depends_on_a_later_token(mixer, dtype):
    config = small(mixer=mixer)
    model, tokens = model_of(config).astype(dtype), text(config)
    before, _ = reading(model, tokens, [13])
    for t in range(13):
        other = tokens.copy()
        other[0, t] = (other[0, t] + 1) % 11
        after, _ = reading(model, other, [13])
        assert np.array_equal(after[0, :t], before[0, :t]) and not np.array_equal(after[0, t], before[0, t])


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_and_its_running_state_survive_a_file_bit_for_bit(mixer, dtype, tmp_path):
    config = small(mixer=mixer)
    model = model_of(config).astype(dtype)
    _, state = model.learn(text(config))  # drift, gathered gradients, half a chunk
    _, state = reading_on(model, text(config, length=3), state)
    save(tmp_path / "all.npz", model, state, progress=np.arange(3), state_of_play=np.array("late"))
    other, loaded, rest = load(tmp_path / "all.npz")
    assert other.config == config and set(rest) == {"progress", "state_of_play"}
    assert all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert same(state, loaded) and loaded.nbytes == state.nbytes
    one, two = model.learn(text(config, seed=1), state), other.learn(text(config, seed=1), loaded)
    assert one[0] == two[0] and same(one[1], two[1])
    state.save(tmp_path / "state.npz")
    assert same(State.load(tmp_path / "state.npz"), state)


def reading_on(model: Hope, tokens: np.ndarray, state: State) -> tuple[Tensor, State]:
    with no_grad():
        return model(tokens, state)


def test_what_shares_memory_shares_it_again_after_a_file(tmp_path):
    model = model_of(small(mixer="titans"))
    _, state = reading(model, text(model.config, length=6), [6])  # in a first chunk its start is the state before it
    state.save(tmp_path / "state.npz")
    for found in (state, state.detach(), State.load(tmp_path / "state.npz")):
        assert found.blocks[0].mixer.chunk_start
        assert found.nbytes == sum({id(a): a.nbytes for a in leaves(found)}.values()) == state.nbytes


def test_a_damaged_file_is_called_one_and_a_missing_one_missing(tmp_path):
    model = Hope(small(), np.random.default_rng(0))
    save(tmp_path / "good.npz", model)
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"bad\.npz is not a readable checkpoint"):
        load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")
    assert load(tmp_path / "good.npz")[1] is None


def test_a_file_that_cannot_be_finished_leaves_the_old_one_whole(tmp_path):
    write_npz(tmp_path / "a.npz", {"x": np.arange(3)})

    class Failing:
        def __array__(self, dtype=None, copy=None):
            raise OSError("no space left")

    with pytest.raises(OSError):
        write_npz(tmp_path / "a.npz", {"x": np.arange(4), "y": Failing()})
    with np.load(tmp_path / "a.npz") as file:
        assert list(file["x"]) == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_detaching_ends_gradients_and_keeps_values():
    model = model_of(small(mixer="titans"))
    _, state = model(text(model.config))
    first = state.blocks[0].mixer.drift["memory"][0]
    assert first.requires_grad and np.any(grad(first.sum(), [model.embedding])[0].data)
    assert same(state.detach(), state)
    assert not any(requires(t) for t in (state.detach().blocks,))


def requires(tree) -> bool:
    found: list[bool] = []
    tree_map(lambda t: found.append(t.requires_grad), tree)
    return any(found)


def test_gradients_pass_from_one_window_to_the_next_unless_detached():
    model, tokens = model_of(small(mixer="titans")), text(small())
    for cut in (False, True):
        _, state = model(tokens)
        later = model(tokens, state.detach() if cut else state)[0]
        through = grad(later.sum(), [model.blocks[0].mixer.initial["k"][0]])[0].data
        again = grad(model(tokens, state.detach())[0].sum(), [model.blocks[0].mixer.initial["k"][0]])[0].data
        assert np.array_equal(through, again) == cut


@pytest.mark.parametrize("mixer", MIXERS)
def test_reading_moves_the_memories_and_neither_the_levels_nor_their_clock(mixer):
    model = model_of(small(mixer=mixer))
    _, learned = model.learn(text(model.config))
    _, read = model(text(model.config, seed=1), learned)
    for before, after in zip(learned.blocks, read.blocks, strict=True):
        assert all(a is b for a, b in zip(after.levels, before.levels, strict=True))
        sums = [leaves(State([BlockState(block.mixer, ())]))[-1].sum() for block in (before, after)]
        assert sums[0] != sums[1]
    assert read.clock == learned.clock == 1


def test_reset_forgets_exactly_what_it_is_told_to():
    config = small(mixer="titans")
    model = model_of(config)
    _, state = model.learn(text(config))
    memory, levels, everything = (state.reset(what) for what in ("memory", "levels", "all"))
    for b in range(2):
        assert memory.blocks[b].mixer is None and memory.blocks[b].levels is state.blocks[b].levels
        assert levels.blocks[b].mixer is state.blocks[b].mixer
        assert levels.blocks[b].levels == (LevelState(None, None), LevelState(None, None))
    assert (memory.clock, levels.clock, everything.clock) == (1, 0, 0)
    fresh = model(text(config, seed=2))[0].data
    assert np.array_equal(model(text(config, seed=2), everything)[0].data, fresh)
    assert not np.allclose(model(text(config, seed=2), state)[0].data, fresh)
    with pytest.raises(ValueError, match="choose all, memory or levels"):
        state.reset("everything")


# --- alive at the start -------------------------------------------------------------------------------------


def at_start(mixer: str, seed: int = 0, **settings) -> Hope:
    config = Config(
        **{"width": 64, "heads": 4, "layers": 2, "segment": 512, "hidden": 64, "mixer": mixer, **settings}
    )
    return Hope(config, np.random.default_rng(seed))


@pytest.mark.parametrize("mixer", sorted({*MIXERS} - {"cell", "rnn"}))  # these forget: 0.95⁵⁰⁰ ≈ 10⁻¹¹
def test_the_first_token_changes_logits_500_positions_later(mixer):
    model, tokens = at_start(mixer), np.random.default_rng(1).integers(0, 256, (1, 512))
    other = tokens.copy()
    other[0, 0] = (other[0, 0] + 128) % 256
    one, two = (reading(model, t, [512])[0][0, 500:] for t in (tokens, other))
    assert np.abs(one - two).max(axis=-1).min() > 3e-5  # logits are of order 1/10


@pytest.mark.parametrize("mixer", ["titans", "gated", "linear", "attention"])
def test_single_precision_is_enough_over_512_tokens(mixer):
    model, tokens = at_start(mixer), np.random.default_rng(1).integers(0, 256, (1, 512))
    single, _ = reading(model, tokens, [512])
    double, _ = reading(model.astype(np.float64), tokens, [512])
    assert np.abs(single - double).max() < 1e-5


@pytest.mark.parametrize(
    "mixer, variant", [*((m, "sequential") for m in MIXERS), *(("titans", v) for v in VARIANTS)]
)
def test_every_parameter_receives_a_gradient_from_the_last_token(mixer, variant):
    """Element by element where it can be: every row of every matrix, every head of every memory."""
    model = at_start(
        mixer, cms=variant, chunks=(1, 4), width=16, hidden=16, memory_chunk=16, projection_chunk=16,
        spans=(2, 8, 32)
    )
    tokens = np.random.default_rng(1).integers(0, 256, (1, 40))
    logits, _ = model(tokens)
    (-logits[0, -1, 7]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and np.all(np.isfinite(p.grad)), name
        if p is not model.embedding:
            assert np.all(np.any(p.grad != 0, axis=-1)) if p.ndim > 1 else np.all(p.grad != 0), name


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_loss_before_training_is_that_of_knowing_nothing(mixer):
    """Within 5 % of ln(vocabulary), for every seed and size."""
    for seed, changes in enumerate(
        [{}, {}, {"width": 128, "layers": 1, "hidden": 256}, {"vocabulary": 50}, {"layers": 6, "hidden": 128}]
    ):
        model = at_start(mixer, seed, **changes)
        tokens = np.random.default_rng(seed + 9).integers(0, model.config.vocabulary, (4, 33))
        with no_grad():
            loss = model.loss(tokens)[0].item()
        assert abs(loss / np.log(model.config.vocabulary) - 1) < 0.05


# --- gradients of the whole model ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"mixer": "titans", "layers": 1, "chunks": (1,)},
        {"mixer": "plain-titans", "cms": "independent"},
        {"mixer": "attention", "cms": "spread"},
        {"mixer": "dgd-l2", "form": "chunked"},
    ],
    ids=lambda s: s["mixer"],
)
def test_gradients_of_the_whole_model_agree_with_finite_differences(settings):
    model = model_of(small(**settings))
    tokens = text(model.config, length=10)

    def loss() -> Tensor:
        first, state = model.loss(tokens[:, :6])
        return first + model.loss(tokens[:, 5:], state)[0]  # two windows, the state carried with its history

    parameters = dict(model.named_parameters())
    exact = grad(loss(), list(parameters.values()))
    for n, ((name, p), g) in enumerate(zip(parameters.items(), exact, strict=True)):
        middle, direction, sides = p.data, np.random.default_rng(n).standard_normal(p.shape), []
        for eps in (1e-5, -1e-5):
            p.data = middle + eps * direction
            with no_grad():
                sides.append(loss().item())
        p.data = middle
        numeric = (sides[0] - sides[1]) / 2e-5
        assert abs(numeric - np.sum(g.data * direction)) < 1e-6 * (1 + abs(numeric)), name
        assert np.any(g.data), name


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_in_single_precision_stays_in_it(mixer):
    model = Hope(small(mixer=mixer, cms="independent"), np.random.default_rng(0))
    _, state = model.learn(text(model.config))
    loss, after = model.loss(text(model.config), state)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    arrays = [loss.data, *leaves(state), *leaves(after), *gradients]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.uint64])
def test_tokens_of_any_whole_type_are_as_good_as_int64(dtype):
    tokens = np.random.default_rng(0).integers(0, SMALL.vocabulary, (2, 9))
    found = []
    for kind in (np.int64, dtype):
        model = Hope(small(), np.random.default_rng(0))
        loss, _ = model.loss(tokens.astype(kind))
        loss.backward()
        found.append([loss.data, *(p.grad for p in model.parameters()), model.learn(tokens.astype(kind))[0]])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match="tokens must be whole numbers, not float64"):
        model.loss(tokens.astype(np.float64))


def test_loss_is_the_mean_surprise_at_every_token_after_the_first():
    model = model_of(small(mixer="attention"))
    tokens = text(model.config)
    z = reading(model, tokens, [13])[0][:, :-1]
    p = np.exp(z) / np.sum(np.exp(z), axis=-1, keepdims=True)
    expected = -np.mean(np.log(np.take_along_axis(p, tokens[:, 1:, None], axis=-1)))
    assert model.loss(tokens)[0].item() == pytest.approx(expected, abs=1e-12)


def test_tokens_of_a_wrong_shape_are_refused():
    model = model_of(small())
    for tokens in (np.zeros(3, int), np.zeros((1, 0), int)):
        with pytest.raises(ValueError, match=r"shape \(batch, time\)"):
            model(tokens)
    assert model([[1, 2, 3]])[0].shape == (1, 3, 11)


def test_tokens_outside_the_vocabulary_are_refused():
    model = model_of(small())
    for tokens, found in (([[3, -1]], r"-1\.\.3"), ([[0, 11]], r"0\.\.11")):
        for read in (model, model.loss, model.learn):
            with pytest.raises(ValueError, match=rf"tokens must lie in 0\.\.10.* these lie in {found}"):
                read(np.array(tokens * 2 if read == model else [[*tokens[0], 0]]))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_state_of_another_batch_size_is_refused(mixer):
    model = model_of(small(mixer=mixer))
    for state in (model(text(model.config, 2))[1], model.learn(text(model.config, 2))[1].reset("memory")):
        for read in (model, model.learn):
            with pytest.raises(ValueError, match="the state is of 2 sequences and the tokens are of 3"):
                read(text(model.config, 3), state)


# --- writing ------------------------------------------------------------------------------------------------


def written(model: Hope, prompt, count: int = 12, **settings) -> list[int]:
    return [token for token, _ in model.generate(prompt, count, **settings)]


@pytest.mark.parametrize("mixer", ["titans", "attention", "gated"])
def test_generation_reads_each_token_once_and_knows_all_of_them(mixer):
    """The state it yields is that of reading everything before the token at once."""
    model, text_so_far = model_of(small(mixer=mixer, segment=4)), [1, 2, 3, 4, 5, 6]  # longer than a segment
    for token, state in model.generate(text_so_far, 10, temperature=0):
        logits, expected = reading(model, np.array([text_so_far]), [len(text_so_far)])
        assert token == np.argmax(logits[0, -1])
        assert all(
            np.allclose(a, b, atol=1e-10) for a, b in zip(leaves(state), leaves(expected), strict=True)
        )
        assert not requires(state.blocks)
        text_so_far.append(token)
    more = [token for token, _ in model.generate([text_so_far[-1]], 5, state, temperature=0)]
    assert more == written(model, text_so_far, 5, temperature=0)


def test_the_same_seed_writes_the_same_and_another_seed_something_else():
    model = model_of(small())
    assert (
        written(model, [1], seed=3)
        == written(model, [1], seed=3)
        == written(model, [1], seed=np.random.default_rng(3))
    )
    assert len({tuple(written(model, [1], seed=s)) for s in range(4)}) == 4


def test_top_k_of_one_is_the_likeliest_whatever_the_temperature():
    model = model_of(small())
    assert written(model, [1], top_k=1, temperature=5.0) == written(model, [1], temperature=0)
    assert written(model, [1], top_p=1e-9, temperature=5.0) == written(model, [1], temperature=0)


def test_generation_stops_after_a_stop_token_and_refuses_what_it_cannot_mean():
    model = model_of(small())
    whole = written(model, [1], seed=0)
    stop = whole[4]
    assert written(model, [1], seed=0, stop=[stop]) == whole[: whole.index(stop) + 1]
    assert written(model, [1], 0) == []
    with pytest.raises(ValueError, match="prompt is empty"):
        written(model, [])
    for tokens, how in ((-1, {}), (4, {"temperature": -0.5}), (4, {"temperature": float("nan")})):
        with pytest.raises(ValueError, match="neither can be less than 0"):
            written(model, [1], tokens, **how)


def test_generation_is_lazy_and_records_nothing_outside_itself():
    model = model_of(small())
    stream = model.generate([1], 10**9)
    next(stream)
    assert model.loss(text(model.config))[0].requires_grad  # no_grad does not leak between two tokens
    assert not next(stream)[1].blocks[0].mixer.tail.requires_grad


LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2])).astype(np.float32)


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 4]),
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_k": -1}, [0, 1, 2, 3, 4]),
    ],
)
def test_sampled_frequencies_are_the_probabilities_that_were_kept(settings, kept):
    rng, n = np.random.default_rng(0), 4000
    p = np.zeros(5)
    p[kept] = np.exp(LOGITS[kept] / settings.get("temperature", 1.0))
    p /= p.sum()
    found = np.bincount([sample(LOGITS, rng, **settings) for _ in range(n)], minlength=5) / n
    assert np.all(found[p == 0] == 0)
    assert np.all(np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n) + 1e-12)


def test_sampling_survives_logits_of_any_size():
    rng = np.random.default_rng(0)
    assert sample(np.array([-1e30, 3e38, 0], dtype=np.float32), rng, temperature=1e-3) == 1
    assert sample(np.array([-np.inf, 0.0, -np.inf]), rng) == 1


# --- groups, sizes, diagnosis -------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_hold_every_parameter_once_at_the_period_of_its_level(mixer, variant):
    model = Hope(small(mixer=mixer, cms=variant, layers=3, chunks=(1, 2, 8)), np.random.default_rng(0))
    groups = model.groups(weight_decay=0.3)
    held = [p for group in groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters())) and len(set(map(id, held))) == len(
        held
    )
    slow = {
        id(w): level.chunk
        for block in model.blocks
        for level in block.cms.levels
        for w in level.weights().values()
    }
    for group in groups:
        for p in group["params"]:
            assert group["period"] == (1 if variant == "nested" else slow.get(id(p), 1)), p.name
            matrix = p.ndim == 2 and p is not model.embedding
            assert group["weight_decay"] == (0.3 if matrix else 0.0)
            assert group.get("method", "own") == ("own" if matrix else "adamw")
    assert {group["period"] for group in groups} == ({1} if variant == "nested" else {1, 2, 8})


def test_parameters_keep_their_full_names_when_a_part_is_walked():
    model = Hope(small(), np.random.default_rng(0))
    model.blocks[1].cms.levels[0].parameters()
    model.groups()
    assert [p.name for p in model.parameters()] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("mixer", MIXERS)
def test_flops_count_the_dense_products_and_grow_with_the_model(mixer):
    config = small(mixer=mixer)
    matrices = sum(p.size for p in Hope(config, None).parameters() if p.ndim == 2)
    assert flops_per_token(config) > 2 * matrices or config.mixer in ("cell", "rnn")
    assert flops_per_token(replace(config, layers=4)) > 1.5 * flops_per_token(config)


def test_flops_count_what_is_multiplied_and_nothing_that_is_looked_up():
    config = Config(width=8, layers=1, heads=2, segment=16, vocabulary=10, hidden=12, chunks=(1,), mixer="attention")
    products = 4 * 8 * 8 + 2 * 8 * 12 + 10 * 8 + 16 * 8  # q, k, v and output; one MLP; logits; half of scores and reads
    assert flops_per_token(config) == 2 * products
    assert flops_per_token(replace(config, tied=False, positions=16)) == 2 * products
    matrix = 4 * 8 * 8 + 2 * 8 * 12 + 10 * 8 + 2 * 8 + 4 * 8 + 3 * 2 * 4 * 4  # α's gate, the filter, (H,d,d)
    assert flops_per_token(replace(config, mixer="retention")) == 2 * matrix


def test_learning_at_a_rate_of_numpys_keeps_the_precision():
    model = Hope(small(mixer="gated"), np.random.default_rng(0))
    _, state = model.learn(text(model.config), rate=np.float64(0.1))
    assert {leaf.dtype for leaf in state.leaves()} == {np.dtype(np.float32)}


def test_a_level_that_overflows_on_what_the_one_before_hands_on_is_found():
    model = Hope(small(mixer="attention", chunks=(1, 2), activation="gelu"), np.random.default_rng(0))
    tokens, (first, second) = text(model.config), model.blocks[0].cms.levels
    first.down.weight.data[...] = 1e10
    second.up.weight.data[...] = 1
    second.down.weight.data[...] = 7.5e36
    assert model.first_non_finite(tokens) == "block 0, its levels"


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_first_number_that_is_not_finite_is_found(mixer):
    config = small(mixer=mixer)
    model, tokens = Hope(config, np.random.default_rng(0)), text(config)
    assert model.first_non_finite(tokens) == ""
    weight = model.blocks[1].cms.levels[1].down.weight
    weight.data[0, 0] = np.nan
    assert model.first_non_finite(tokens) == "the weight blocks.1.cms.levels.1.down.weight"
    weight.data[0, 0] = 0
    _, state = model.learn(tokens)
    state = state.detach()
    state.blocks[1].levels[1].drift["up"].data[0, 0, 0] = np.inf
    assert model.first_non_finite(tokens, state) == "block 1, the level with chunk size 2"
    _, state = model.learn(tokens)
    tree_map(lambda t: t.data.fill(np.nan), state.blocks[0].mixer)
    assert model.first_non_finite(tokens, state) == f"block 0, {mixer}"
    model.norm.weight.data[...] = 3e38
    assert model.first_non_finite(tokens) == "the unembedding"
