"""What apps.adopt promises: the function of somebody else's Transformer, levels it learns in, and the way back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import cms
import hope
import train
from apps import about, chat, evaluate, tasks
from apps.adopt import __main__ as program
from apps.adopt import example, files, models
from apps.adopt.architectures import KNOWN, Source
from autograd import no_grad
from data import Document, Text

GPT2 = {"model_type": "gpt2", "vocab_size": 31, "n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 48,
        "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
LLAMA = {"model_type": "llama", "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 4, "intermediate_size": 40, "rms_norm_eps": 1e-5, "hidden_act": "silu",
         "max_position_embeddings": 256, "tie_word_embeddings": False}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
OF: dict[str, dict] = {
    "GPT-2": GPT2,
    "Llama": LLAMA,
    "grouped queries": LLAMA | {"num_key_value_heads": 2},
    "one head of keys": LLAMA | {"num_key_value_heads": 1, "rope_theta": 500.0},
    "scaled as Llama 3": LLAMA | {"num_key_value_heads": 2, "rope_parameters": SCALED},
    "scaled linearly": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "tied": LLAMA | {"tie_word_embeddings": True},
    "wide heads": LLAMA | {"head_dim": 10},
    "biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "Qwen 2": LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2},
    "Mistral": LLAMA | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
}


# --- models made here, in files as theirs -------------------------------------------------------------------


def weights_of(about: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a model of theirs, by their names and in their shapes."""
    rng, found = np.random.default_rng(seed), {}

    def add(name, *shape, around=0.0, std=None):
        std = std or (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        found[name] = (around + std * rng.standard_normal(shape)).astype(np.float32)
    if about["model_type"] == "gpt2":
        D, V = about["n_embd"], about["vocab_size"]
        add("transformer.wte.weight", V, D, std=0.5)
        add("transformer.wpe.weight", about["n_positions"], D, std=0.5)
        for i in range(about["n_layer"]):
            for name, inputs, outputs in (("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D), ("mlp.c_fc", D, 4 * D),
                                          ("mlp.c_proj", 4 * D, D)):
                add(f"transformer.h.{i}.{name}.weight", inputs, outputs, std=inputs ** -0.5)
                add(f"transformer.h.{i}.{name}.bias", outputs)
            for name in ("ln_1", "ln_2"):
                add(f"transformer.h.{i}.{name}.weight", D, around=1.0)
                add(f"transformer.h.{i}.{name}.bias", D)
        add("transformer.ln_f.weight", D, around=1.0)
        add("transformer.ln_f.bias", D)
        return found
    D, F, H, K = (about[name] for name in (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    d = about.get("head_dim") or D // H
    attention = about.get("attention_bias", False)
    add("model.embed_tokens.weight", about["vocab_size"], D, std=0.5)
    for i in range(about["num_hidden_layers"]):
        for name, inputs, outputs, bias in (
                ("self_attn.q_proj", D, H * d, attention or about["model_type"] == "qwen2"),
                ("self_attn.k_proj", D, K * d, attention or about["model_type"] == "qwen2"),
                ("self_attn.v_proj", D, K * d, attention or about["model_type"] == "qwen2"),
                ("self_attn.o_proj", H * d, D, attention), ("mlp.gate_proj", D, F, about.get("mlp_bias")),
                ("mlp.up_proj", D, F, about.get("mlp_bias")), ("mlp.down_proj", F, D, about.get("mlp_bias"))):
            add(f"model.layers.{i}.{name}.weight", outputs, inputs)
            if bias:
                add(f"model.layers.{i}.{name}.bias", outputs)
        add(f"model.layers.{i}.input_layernorm.weight", D, around=1.0)
        add(f"model.layers.{i}.post_attention_layernorm.weight", D, around=1.0)
    add("model.norm.weight", D, around=1.0)
    if not about["tie_word_embeddings"]:
        add("lm_head.weight", about["vocab_size"], D)
    return found


def file_of(arrays: dict[str, np.ndarray], dtype: str = "F32") -> bytes:
    """The bytes of a safetensors file, spelled out: its writer is tested elsewhere."""
    about, parts, at = {}, [], 0
    for name, array in arrays.items():
        if dtype == "BF16":
            part = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            part = array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        about[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    head = json.dumps(about).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(parts)


def made(folder: Path, about: dict, dtype: str = "F32", shards: int = 1) -> dict[str, np.ndarray]:
    """A folder of theirs with random weights; returns these as they are in the files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(about))
    arrays = weights_of(about)
    if dtype in ("BF16", "F16"):  # what is left of them
        arrays = {name: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) if dtype == "BF16" else
                  a.astype(np.float16).astype(np.float32) for name, a in arrays.items()}
    if shards == 1:
        (folder / files.SINGLE).write_bytes(file_of(arrays, dtype))
        return arrays
    names = list(arrays)
    places: dict[str, str] = {}
    for n in range(shards):
        shard = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        places |= dict.fromkeys(names[n::shards], shard)
        (folder / shard).write_bytes(file_of({name: arrays[name] for name in names[n::shards]}, dtype))
    (folder / files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return arrays


# --- the same functions in plain NumPy, one sequence at a time, in float64 ----------------------------------


def reference(about: dict, arrays: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits (T,V) of tokens (T,), as the papers of GPT-2 and Llama have it."""
    W = {name: a.astype(np.float64) for name, a in arrays.items()}
    return (gpt2 if about["model_type"] == "gpt2" else llama)(about, W, tokens)


def attend(q, k, v, H, K):
    """Causal attention, head by head: q (T,H·d), k, v (T,K·d)."""
    T, d, reads = len(q), q.shape[1] // H, []
    for h in range(H):
        g = h // (H // K)
        s = q[:, h * d:(h + 1) * d] @ k[:, g * d:(g + 1) * d].T / np.sqrt(d)
        p = np.where(np.tri(T, dtype=bool), np.exp(s - s.max()), 0)
        reads.append(p / p.sum(1, keepdims=True) @ v[:, g * d:(g + 1) * d])
    return np.concatenate(reads, axis=1)


def gpt2(about, W, tokens):
    def norm(x, name):
        c = x - x.mean(-1, keepdims=True)
        return (c / np.sqrt((c * c).mean(-1, keepdims=True) + about["layer_norm_epsilon"]) * W[f"{name}.weight"]
                + W[f"{name}.bias"])

    def conv(x, name):
        return x @ W[f"{name}.weight"] + W[f"{name}.bias"]
    x = W["transformer.wte.weight"][tokens] + W["transformer.wpe.weight"][:len(tokens)]
    for i in range(about["n_layer"]):
        at = f"transformer.h.{i}"
        q, k, v = np.split(conv(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3, axis=1)
        x = x + conv(attend(q, k, v, about["n_head"], about["n_head"]), f"{at}.attn.c_proj")
        h = conv(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h ** 3)))
        x = x + conv(h, f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ W["transformer.wte.weight"].T


def llama(about, W, tokens):
    H, K, D = about["num_attention_heads"], about["num_key_value_heads"], about["hidden_size"]
    d, rope = about.get("head_dim") or D // H, about.get("rope_parameters") or about.get("rope_scaling") or {}

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + about["rms_norm_eps"]) * W[f"{name}.weight"]

    def through(x, name):
        return x @ W[f"{name}.weight"].T + W.get(f"{name}.bias", 0)

    def turned(x, heads):  # the halves of a head are the two axes
        w = (rope.get("rope_theta") or about.get("rope_theta", 1e4)) ** (-np.arange(0, d, 2) / d)
        if rope.get("rope_type") == "llama3":  # by wavelengths
            length, low, high = (rope[name] for name in (
                "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
            for i, wavelength in enumerate(2 * np.pi / w):
                smooth = (length / wavelength - low) / (high - low)
                if wavelength > length / low:
                    w[i] /= rope["factor"]
                elif wavelength >= length / high:
                    w[i] = (1 - smooth) * w[i] / rope["factor"] + smooth * w[i]
        elif rope:
            w = w / rope["factor"]
        angle = np.arange(len(x))[:, None] * w
        out = []
        for part in np.split(x, heads, axis=1):
            a, b = part[:, :d // 2], part[:, d // 2:]
            out += [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
        return np.concatenate(out, axis=1)
    x = W["model.embed_tokens.weight"][tokens]
    for i in range(about["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = norm(x, f"{at}.input_layernorm")
        q, k, v = (through(h, f"{at}.self_attn.{name}_proj") for name in "qkv")
        x = x + through(attend(turned(q, H), turned(k, K), v, H, K), f"{at}.self_attn.o_proj")
        h = norm(x, f"{at}.post_attention_layernorm")
        gate = through(h, f"{at}.mlp.gate_proj")
        x = x + through(gate / (1 + np.exp(-gate)) * through(h, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
    head = "model.embed_tokens.weight" if about["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "model.norm") @ W[head].T


TOKENS = np.random.default_rng(1).integers(0, 31, (2, 40))


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest number."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


# --- equal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("about", OF.values(), ids=OF)
def test_logits_are_those_of_the_published_function_read_at_once_or_token_by_token(tmp_path, about):
    arrays = made(tmp_path / "theirs", about)
    model = models.read(tmp_path / "theirs")
    expected = np.stack([reference(about, arrays, row) for row in TOKENS])
    with no_grad():
        whole = model(TOKENS)[0].data
        y, state = model(TOKENS[:, :9])
        parts = [y.data]
        for t in range(9, TOKENS.shape[1]):
            y, state = model(TOKENS[:, t:t + 1], state)
            parts.append(y.data)
    assert whole.dtype == np.float32 and apart(whole, expected) < 1e-5
    assert apart(np.concatenate(parts, axis=1), expected) < 1e-5
    shared = about.get("num_key_value_heads", 2) * (about.get("head_dim") or 24 // about.get("num_attention_heads", 2))
    assert state.blocks[0].mixer.key.data.size == 2 * 40 * shared  # what is kept is as small as they have it


@pytest.mark.parametrize("about", [GPT2, LLAMA | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}],
                         ids=lambda about: about["model_type"])
def test_gradients_of_every_parameter_are_those_of_central_differences(tmp_path, about):
    made(tmp_path / "theirs", about)
    model, tokens = models.read(tmp_path / "theirs").astype(np.float64), TOKENS[:, :7]
    model.loss(tokens)[0].backward()
    rng = np.random.default_rng(2)
    for name, p in model.named_parameters():
        step, at, values = rng.standard_normal(p.shape), p.data.copy(), []
        for sign in (1, -1):
            p.data[...] = at + sign * 1e-6 * step
            values.append(model.loss(tokens)[0].item())
        p.data[...] = at
        slope = np.sum(p.grad * step) if isinstance(p.grad, np.ndarray) else np.sum(p.grad.data * step)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-9), name


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_number_is_read_as_it_is_in_any_precision_from_one_file_or_shards(tmp_path, dtype, shards, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 100)  # so that tensors are read in several
    arrays = made(tmp_path / "theirs", LLAMA, dtype, shards)
    found = files.tensors(tmp_path / "theirs")
    assert found.keys() == arrays.keys()
    for name, entry in found.items():
        assert np.array_equal(entry.read(), arrays[name]), name


@pytest.mark.parametrize("source", [Source("w", True), Source("w", heads=2), Source("w", True, 1, 3)])
def test_a_parameter_goes_back_to_where_it_came_from(source):
    whole = np.random.default_rng(0).standard_normal((12, 24) if source.transposed else (24, 12))
    back = source.theirs(source.ours(whole))
    rows = whole.T if source.transposed else whole
    assert np.array_equal(back, rows[8:16] if source.parts == 3 else rows)


def test_names_without_a_prefix_and_masks_of_old_files_are_borne(tmp_path):
    arrays = made(tmp_path / "theirs", GPT2)
    bare = {name.removeprefix("transformer."): a for name, a in arrays.items()}
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 48, 48), np.float32))
    (tmp_path / "theirs" / files.SINGLE).write_bytes(file_of(bare))
    with no_grad():
        logits = models.read(tmp_path / "theirs")(TOKENS[:1])[0].data[0]
    assert apart(logits, reference(GPT2, arrays, TOKENS[0])) < 1e-5


def test_reading_takes_no_second_copy_of_the_model(tmp_path):
    import tracemalloc

    about = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 300}
    made(tmp_path / "theirs", about, "BF16")
    tracemalloc.start()
    model = models.read(tmp_path / "theirs")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.35 * 4 * hope.count(model.config)  # its own size, and two tensors on the way


# --- bad input ----------------------------------------------------------------------------------------------


def set_config(**changes):
    def change(folder):
        (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return change


def rewrite(keep=lambda name: True, **more):
    def change(folder):
        arrays = {name: a for name, a in weights_of(LLAMA).items() if keep(name)}
        (folder / files.SINGLE).write_bytes(file_of(arrays | more))
    return change


def cut(bytes_left):
    def change(folder):
        path = folder / files.SINGLE
        path.write_bytes(path.read_bytes()[:bytes_left])
    return change


def shard_lacking(folder):
    arrays = weights_of(LLAMA)
    (folder / files.SINGLE).unlink()
    rest = {name: a for name, a in arrays.items() if name != "model.norm.weight"}
    (folder / "a.safetensors").write_bytes(file_of(rest))
    (folder / files.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(arrays, "a.safetensors")}))


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "config.json").unlink(), "there is no file .*config.json"),
    (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    (lambda f: (f / files.SINGLE).unlink(), "there is no model.safetensors in .*nor"),
    (lambda f: (f / files.SINGLE).rename(f / "pytorch_model.bin"), "pytorch_model.bin is of a format that is not read"),
    (cut(5), "no whole safetensors file: it has 5 bytes"),
    (cut(3000), "no whole safetensors file"),
    (cut(-4), "no whole safetensors file: lm_head.weight should take"),
    (lambda f: (f / files.SINGLE).write_bytes(b"\4\0\0\0\0\0\0\0[]  "), "no whole safetensors file"),
    (set_config(model_type="lama"), "architecture 'lama', did you mean 'llama'"),
    (set_config(hidden_act="relu"), "hidden_act 'relu', which is not known"),
    (set_config(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "by 'yarn'; known are default, linear and llama3"),
    (set_config(model_type="mistral", sliding_window=64), "a sliding_window of 64 tokens"),
    (set_config(model_type="qwen2", num_key_value_heads=None), "has no num_key_value_heads"),
    (set_config(num_attention_heads=0), "a setting of another kind"),
    (set_config(hidden_size="wide"), "a setting of another kind"),
    (set_config(num_key_value_heads=3), "4 heads cannot share 3 of keys"),
    (set_config(num_hidden_layers=4), "lacks the tensor model.layers.3"),
    (set_config(intermediate_size=41), r"up_proj.weight of shape \[40, 24\]; by config.json it is \[41, 24\]"),
    (rewrite(lambda name: name != "model.norm.weight"), "lacks the tensor model.norm.weight"),
    (rewrite(**{"model.layers.0.self_attn.q_norm.weight": np.ones(6, np.float32)}), "1 tensors that no llama has here"),
    (shard_lacking, "a.safetensors lacks model.norm.weight"),
])
def test_what_is_missing_damaged_or_unknown_is_said_in_one_line(tmp_path, change, message):
    made(tmp_path / "theirs", LLAMA)
    change(tmp_path / "theirs")
    with pytest.raises(ValueError, match=message) as caught:
        models.read(tmp_path / "theirs")
    assert "\n" not in str(caught.value)


def test_there_is_no_other_architecture_than_the_tests_have():
    assert {about["model_type"] for about in OF.values()} == set(KNOWN)


def test_a_text_longer_than_the_positions_of_the_model_is_refused(tmp_path):
    made(tmp_path / "theirs", GPT2)
    model = models.read(tmp_path / "theirs")
    _, state = model(TOKENS)
    with pytest.raises(ValueError, match=r"positions for 48 tokens, and the text is 40 \+ 9 long"):
        model(TOKENS[:, :9], state)
    assert model(TOKENS[:, :8], state)[0].shape == (2, 8, 31)


# --- levels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("about", [GPT2, LLAMA], ids=["GPT-2", "Llama"])
def test_levels_are_the_same_function_until_one_moves(tmp_path, about):
    made(tmp_path / "theirs", about)
    one, spread, beside = (models.read(tmp_path / "theirs", **levels) for levels in (
        {}, {"chunks": (1, 2, 4)}, {"chunks": (1, 2, 4), "cms": "independent"}))
    logits = one(TOKENS)[0].data
    assert np.array_equal(spread(TOKENS)[0].data, logits)
    assert apart(beside(TOKENS)[0].data, logits) < 1e-5
    _, state = spread.learn(TOKENS)
    assert not np.array_equal(spread(TOKENS, state.reset("memory"))[0].data, logits)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("about", [GPT2, LLAMA], ids=["GPT-2", "Llama"])
def test_a_text_that_was_learned_while_reading_is_less_surprising(tmp_path, about, rank):
    made(tmp_path / "theirs", about)
    model = models.read(tmp_path / "theirs", chunks=(1, 2, 4), drift_rank=rank, level_rates=(1.0, 0.5, 0.25))
    state, losses = None, []
    for _ in range(8):
        loss, state = model.learn(TOKENS, state)
        losses.append(loss)
        state = state.reset("memory")
    assert losses[-1] < losses[0] - 0.02
    sizes = [sum(float(np.sum(d.data ** 2)) for d in block.levels[0].drift.values()) for block in state.blocks]
    assert min(sizes) > 0 and state.blocks[2].levels[0].pending is None  # the eighth segment was due for all
    assert set(state.blocks[0].levels[0].drift) == ({"up", "down"} if about is GPT2 else {"gate", "up", "down"})
    if rank:
        assert all(d.shape[-1] == rank for block in state.blocks for d in block.levels[0].drift.values())


def test_a_run_that_was_adopted_with_one_level_can_get_several_later(tmp_path):
    made(tmp_path / "theirs", LLAMA)
    for variant in ("spread", "independent"):
        one, many = (models.read(tmp_path / "theirs", chunks=chunks, cms=variant) for chunks in ((1,), (1, 2, 4)))
        stacked = cms.stack_levels(models.read(tmp_path / "theirs").state_dict(), one.config, many.config)
        assert stacked.keys() == many.state_dict().keys()
        assert all(np.array_equal(stacked[name], array) for name, array in many.state_dict().items())


# --- the way back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("about", OF.values(), ids=OF)
def test_what_is_written_back_is_bit_for_bit_what_was_read(tmp_path, about):
    arrays = made(tmp_path / "theirs", about)
    models.write(tmp_path / "back", models.read(tmp_path / "theirs", chunks=(1, 4)), about)
    found = {name: entry.read() for name, entry in files.tensors(tmp_path / "back").items()}
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("rank", [0, 3])
def test_what_was_learned_can_be_merged_into_what_is_written_back(tmp_path, rank):
    made(tmp_path / "theirs", LLAMA)
    model = models.read(tmp_path / "theirs", chunks=(1, 2), drift_rank=rank, learn_rate=1.0)
    _, state = model.learn(TOKENS[:1])
    models.write(tmp_path / "back", model, LLAMA, state)
    merged, again = (m(TOKENS[:1, :20], s)[0].data for m, s in (
        (models.read(tmp_path / "back"), None), (model, state.reset("memory"))))
    assert apart(merged, again) < 1e-5 and apart(merged, model(TOKENS[:1, :20])[0].data) > 1e-3


@pytest.mark.parametrize("about", [GPT2, OF["biases"], LLAMA], ids=["GPT-2", "Llama with biases", "Llama"])
def test_levels_beside_each_other_are_written_as_one_mlp_of_more_units(tmp_path, about):
    made(tmp_path / "theirs", about)
    model, rng = models.read(tmp_path / "theirs", chunks=(1, 2), cms="independent"), np.random.default_rng(0)
    for p in model.parameters():  # as if they had learned apart
        p.data += 0.1 * rng.standard_normal(p.shape).astype(np.float32)
    _, state = model.learn(TOKENS[:1], rate=1.0)
    models.write(tmp_path / "back", model, about, state)
    back = models.read(tmp_path / "back")
    assert back.config.hidden == 2 * model.config.hidden and back.config.chunks == (1,)
    assert apart(back(TOKENS[:1])[0].data, model(TOKENS[:1], state.reset("memory"))[0].data) < 1e-5


def test_levels_in_a_row_and_other_models_cannot_be_written_back(tmp_path):
    made(tmp_path / "theirs", LLAMA)
    row = models.read(tmp_path / "theirs", chunks=(1, 2), cms="sequential")
    with pytest.raises(ValueError, match="a block has 2 levels in a row, and one of llama holds one MLP"):
        models.write(tmp_path / "back", row, LLAMA)
    with pytest.raises(ValueError, match="the model has width 24, and what was adopted has 32"):
        models.write(tmp_path / "back", row, LLAMA | {"hidden_size": 32})
    assert not (tmp_path / "back").exists()


# --- a run --------------------------------------------------------------------------------------------------

TEXT = "".join(f"{n} birds and {n} birds are {2 * n} birds; été, 🙂.\n" for n in range(300))
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def with_tokenizer(folder, about, template=TEMPLATE, kind="bytes", begins=False):
    """A folder of theirs with a tokenizer of its own, learned from TEXT."""
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from tokenizers import decoders, normalizers, pre_tokenizers, trainers

    made_of = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=kind != "bytes"))
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "bytes":
        made_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made_of.decoder, alphabet = decoders.ByteLevel(), []
    else:  # as SentencePiece's
        made_of.normalizer = normalizers.Replace(" ", "▁")
        made_of.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made_of.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []))
    if begins:
        made_of.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    described = json.loads(made_of.to_str())
    described["added_tokens"] = described["added_tokens"][:3]  # bytes are tokens like others
    made_of = tokenizers.Tokenizer.from_str(json.dumps(described))
    about = about | {"vocab_size": made_of.get_vocab_size() + 2}  # some have rows that no token uses
    made(folder, about)
    made_of.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "chat_template": template}))
    return about


def adopted(tmp_path, about=LLAMA, *flags, **settings):
    with_tokenizer(tmp_path / "theirs", about, **settings)
    assert program.main([str(tmp_path / "theirs"), "--out", str(tmp_path / "run"), *flags]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_words_are_spelled_as_their_tokenizer_spells_them_byte_by_byte(tmp_path, kind):
    words = chat.Run.open(adopted(tmp_path, kind=kind)).words
    text = "7 birds; été, 🙂 and what it never saw: ∮ 漢."
    tokens = words.encode(text.encode())
    assert words.spell(tokens.tolist()).decode() == text == words.tokenizer.decode(tokens.tolist())
    assert words.count(tokens) == len(text.encode()) and len(tokens) < words.count(tokens)
    special = words.encode(b"<|im_start|>user")
    assert special[0] == 1 and words.spell(special.tolist()) == b"user"
    assert words.ends == (2,) and words.start is None and words.spell([words.size + 1]) == b""


def test_training_goes_on_from_an_adopted_model_in_its_own_tokens_and_it_can_be_resumed(tmp_path):
    run = adopted(tmp_path, LLAMA, "--chunks", "1,2", "--segment", "32")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    flags = ["--data", str(tmp_path / "text.txt"), "--quiet", "--batch", "2", "--sample-tokens", "5"]
    out = tmp_path / "on"
    assert train.main(["--from", str(run), "--out", str(out), "--steps", "3", "--lr", "3e-3", *flags]) == 0
    assert train.main(["--resume", str(out), "--steps", "12", "--quiet"]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 12 and np.mean([s["loss"] for s in steps[-3:]]) < np.mean([s["loss"] for s in steps[:3]])
    ratio = [s["bits_per_byte"] * np.log(2) / s["loss"] for s in steps]
    assert all(0.1 < each < 0.9 for each in ratio)  # a token is several bytes
    measured = next(line for line in lines if "validation_bits_per_byte" in line)
    assert measured["bytes"] > 2 * 32 and "birds" in (out / "sample.txt").read_text(encoding="utf-8")
    assert chat.Run.open(out).words.taught
    assert program.main(["--export", str(out), "--out", str(tmp_path / "back")]) == 0
    moved, before = (files.tensors(tmp_path / name)["model.layers.2.mlp.gate_proj.weight"].read()
                     for name in ("back", "theirs"))
    assert not np.array_equal(moved, before)
    about = json.loads((out / "adopted.json").read_text(encoding="utf-8"))  # of somebody else, who names other files
    about["files"] |= {str(tmp_path / "outside"): "x", "../outside": "x"}
    (out / "adopted.json").write_text(json.dumps(about), encoding="utf-8")
    assert program.main(["--export", str(out), "--out", str(tmp_path / "again")]) == 0
    assert not list(tmp_path.rglob("outside"))


def talk(run, capfd, monkeypatch, text, *flags):
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    assert chat.main([str(run), "--max-tokens", "6", "--seed", "0", *flags]) == 0
    return capfd.readouterr()


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_conversation_is_read_in_the_way_the_model_was_taught(tmp_path, capfd, monkeypatch, template):
    if template:
        pytest.importorskip("jinja2", reason="the package jinja2 is not installed")
    run = chat.Run.open(adopted(tmp_path, template=template))
    given = chat.parser().parse_args(["", "--max-tokens", "4", "--seed", "0", "--temperature", "0"])
    talking = chat.Chat(run, given, colours=False)
    answers = ["".join(talking.say(said)) for said in (b"hello", b"and again")]
    read = "".join(run.words.tokenizer.decode([t.byte for piece in talking.last for t in piece.tokens],
                                              skip_special_tokens=False))
    said = talking.said[-1][1]
    if template:
        assert read.endswith(f"<|im_start|>user\nand again<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n")
    else:
        assert read == f"user: and again\nassistant: {said}\n"
    assert len(answers) == 2 and talking.session.place.state is not None


def test_the_token_that_begins_a_text_is_read_once(tmp_path):
    pytest.importorskip("jinja2", reason="the package jinja2 is not installed")
    run = chat.Run.open(adopted(tmp_path, template="<|endoftext|>" + TEMPLATE, begins=True))
    assert run.words.start == 0 and run.words.encode(b"7 birds")[0] != 0
    talking = chat.Chat(run, chat.parser().parse_args(["", "--max-tokens", "0"]), colours=False)
    list(talking.say(b"7 birds"))
    read = run.words.encode(run.words.conversation(talking.said, answer=False).encode())
    assert list(read).count(0) == 1
    assert talking.session.place.state.blocks[0].mixer.key.shape[2] == len(read) - 1  # all but the last


def test_a_template_that_refuses_a_conversation_is_quoted(tmp_path):
    pytest.importorskip("jinja2", reason="the package jinja2 is not installed")
    words = chat.Run.open(adopted(tmp_path, template="{{ raise_exception('no system, ' + messages[0].role) }}")).words
    with pytest.raises(ValueError, match="cannot write this conversation: no system, user"):
        words.conversation([("user", "a")])
    words.template = "{{ messages.append(1) }}{{ ''.__class__.__mro__ }}"
    with pytest.raises(ValueError, match="cannot write this conversation"):  # it may compute, and nothing else
        words.conversation([("user", "a")])


def test_what_a_session_learned_is_small_is_kept_and_can_be_exported(tmp_path, capfd, monkeypatch):
    pytest.importorskip("jinja2", reason="the package jinja2 is not installed")
    run = adopted(tmp_path, LLAMA, "--chunks", "1,2", "--drift-rank", "2")
    assert "what a session learns takes" in capfd.readouterr().out
    talk(run, capfd, monkeypatch, "3 birds and 3 birds are 6 birds\n/surprise\n/save said\n", "--learn")
    model = hope.load(run / "checkpoint.npz")[0]
    session = chat.Session.load(chat.file_of(run / "sessions" / "chat", "said"), chat.Run.open(run).fingerprint)
    learned = [d for block in session.place.state.blocks for d in block.levels[0].drift.values()]
    assert sum(d.data.nbytes for d in learned) < 0.2 * 4 * sum(
        w.size for block in model.blocks for w in block.cms.levels[0].weights().values())
    assert program.main(["--export", str(run), "--out", str(tmp_path / "back"), "--session", "said"]) == 0
    with no_grad():
        state = session.place.state.reset("memory")
        assert apart(models.read(tmp_path / "back")(TOKENS)[0].data[:1], model(TOKENS[:1], state)[0].data) < 1e-5


@pytest.mark.parametrize("arguments, message", [
    (["--out", "x"], "name either a MODEL"),
    ([], "the following arguments are required: --out"),
    (["missing", "--out", "x"], "there is no folder missing"),
    (["--export", "missing", "--out", "x"], "there is no adopted.json in missing"),
    (["--export", "missing", "--out", "x", "--chunks", "1"], "--chunks belongs to a MODEL"),
    (["theirs", "--out", "x", "--session", "s"], "--session belongs to --export"),
    (["theirs", "--out", "x", "--chunks", "1,2,3,4"], "4 chunk sizes do not fit in 3 layers"),
    (["theirs", "--out", "x", "--drift-rank", "99"], "drift_rank is 99"),
    (["theirs", "--out", "theirs"], "theirs is in use"),
])
def test_commands_that_cannot_be_carried_out_leave_nothing_behind(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with_tokenizer(Path("theirs"), LLAMA)
    assert program.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said and not Path("x").exists()


def test_ctrl_c_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.chdir(tmp_path)
    with_tokenizer(Path("theirs"), LLAMA)
    monkeypatch.setattr(program.hope, "save", interrupted)
    assert program.main(["theirs", "--out", "x"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert program.main(["theirs", "--out", "x"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(program.words, "give_back", interrupted)
    assert program.main(["--export", "x", "--out", "y"]) == 130
    said = capsys.readouterr()
    assert said.err == "apps.adopt: stopped; nothing was written\n" and not said.out and not Path("y").exists()


def test_a_tokenizer_that_does_not_fit_or_is_none_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    about = with_tokenizer(Path("theirs"), LLAMA)
    (Path("theirs") / "config.json").write_text(json.dumps(about | {"vocab_size": 31}))
    assert program.main(["theirs", "--out", "x"]) == 2 and "do not belong together" in capsys.readouterr().err
    (Path("theirs") / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": about}))
    assert program.main(["theirs", "--out", "x"]) == 2 and "of the architecture 'llava'" in capsys.readouterr().err
    (Path("theirs") / "config.json").write_text(json.dumps(about))
    (Path("theirs") / "tokenizer_config.json").write_text("{")
    assert program.main(["theirs", "--out", "x"]) == 2 and "tokenizer_config.json of the" in capsys.readouterr().err
    (Path("theirs") / "tokenizer_config.json").write_text("{}")
    assert program.main(["theirs", "--out", "x"]) == 2 and "with which token a text ends" in capsys.readouterr().err
    (Path("theirs") / "tokenizer.json").write_text("{}")
    assert program.main(["theirs", "--out", "x"]) == 2 and "is no tokenizer" in capsys.readouterr().err
    (Path("theirs") / "tokenizer.json").unlink()
    assert program.main(["theirs", "--out", "x"]) == 2 and "there is no file" in capsys.readouterr().err
    assert not Path("x").exists()


def test_the_page_shows_what_was_measured():
    docs = Path(program.__file__).parents[2] / "docs"
    found, text = json.loads((docs / "adopt.json").read_text()), (docs / "adopt.md").read_text(encoding="utf-8")
    assert example.table(found) in text and example.readings(found) in text


# --- beside transformers ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("about", OF.values(), ids=OF)
def test_transformers_computes_the_same_and_writes_the_same_text_before_and_after(tmp_path, about):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    made(tmp_path / "theirs", about | {"bos_token_id": 0, "eos_token_id": None})
    model = models.read(tmp_path / "theirs")
    models.write(tmp_path / "back", model, about | {"bos_token_id": 0, "eos_token_id": None})
    for folder in ("theirs", "back"):
        other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32).eval()
        with torch.no_grad():
            expected = other(torch.tensor(TOKENS)).logits.numpy()
            text = other.generate(torch.tensor(TOKENS[:1, :9]), max_new_tokens=30, do_sample=False, pad_token_id=0)
        with no_grad():
            assert apart(model(TOKENS)[0].data, expected) < 1e-4
        assert [t for t, _ in model.generate(TOKENS[0, :9], 30, temperature=0)] == text[0, 9:].tolist()


def test_the_package_safetensors_reads_what_is_written_here(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    arrays = weights_of(LLAMA)
    files.write(tmp_path / "a.safetensors", {name: a.shape for name, a in arrays.items()}, arrays.__getitem__)
    found = safetensors.load_file(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_examples_for_a_model_that_others_trained_are_no_python(tmp_path):
    run = adopted(tmp_path)
    assert about.About.of(run).examples == about.PLAIN
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0, "bits_per_byte": 2.0}\n')  # now on this Python's own text
    assert about.About.of(run).examples == about.PYTHON


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_and_choices_are_scored_per_byte_of_text(tmp_path, begins, capsys):
    run = chat.Run.open(adopted(tmp_path, begins=begins))
    given, choices = "7 birds and 7 birds are 14 birds; été, 🙂", [" 14 birds", " 8"]
    (tmp_path / "a.txt").write_text(given, encoding="utf-8")
    (tmp_path / "q.jsonl").write_text(json.dumps({"context": given, "choices": choices, "answer": 0}))
    asked = ["--run", str(run.folder), "--quiet", "--out", str(tmp_path / "out"), "--segment", "256"]
    assert evaluate.main(["text", "--files", str(tmp_path / "a.txt"), *asked]) == 0
    assert evaluate.main(["multiple-choice", "--questions", str(tmp_path / "q.jsonl"), *asked]) == 0
    nothing = {"context": given, "choices": ["<|endoftext|>", " 8"], "answer": 0}
    (tmp_path / "none.jsonl").write_text(json.dumps(nothing))
    capsys.readouterr()
    assert evaluate.main(["multiple-choice", "--questions", str(tmp_path / "none.jsonl"), *asked]) == 2
    assert "the choice '<|endoftext|>' spells nothing" in capsys.readouterr().err
    found, scored = (json.loads((tmp_path / "out" / f"{task}.json").read_text())["results"]
                     for task in ("text", "multiple-choice"))

    def nats(text, after=""):
        parts = [run.words.encode(part.encode()) for part in (after, text)]
        tokens = np.concatenate([[0] if begins else [], *parts]).astype(int)
        with no_grad():
            logits = run.model(tokens[None, :-1])[0].data[0].astype(np.float64)
        each = np.log(np.sum(np.exp(logits), -1)) - logits[np.arange(len(tokens) - 1), tokens[1:]]
        return each[-len(parts[1]):] if after else each
    size = len(given.encode()) - (0 if begins else run.words.count(run.words.encode(given.encode())[:1]))
    assert found["off"]["bits per byte"] == pytest.approx(float(nats(given).sum()) / np.log(2) / size, rel=1e-4)
    costs = [float(nats(choice, given).sum()) for choice in choices]
    per_byte = [cost / len(choice.encode()) for cost, choice in zip(costs, choices, strict=True)]
    assert [scored["plain"], scored["per byte"]] == [float(np.argmin(costs) == 0), float(np.argmin(per_byte) == 0)]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_what_is_hidden_in_bytes_is_asked_for_in_a_models_own_tokens(tmp_path, kind):
    words = chat.Run.open(adopted(tmp_path, kind=kind, begins=True)).words
    hay = Text([Document("hay", "été, 🙂 birds ".encode() * 99, 99 * 18)])
    for draw, n in ((lambda rng, n: tasks.hidden(rng, 3, n, "multi-value", hay), 300),
                    (lambda rng, n: tasks.written_recall(rng, 3, n), 25)):
        bytes_, wanted = draw(np.random.default_rng(1), n)
        tokens, asked = evaluate.spelled(words, draw, np.random.default_rng(1), n)
        assert tokens.shape == asked.shape and np.all(tokens[:, 0] == words.start)
        for row, targets, text, answer in zip(tokens, asked, bytes_, wanted, strict=True):
            whole, digits = words.spell(row.tolist()), bytes(answer[answer != evaluate.IGNORE].tolist())
            kept = re.sub("[\udc80-\udcff]", "?", text.astype(np.uint8).tobytes().decode("utf-8", "surrogateescape"))
            assert whole.startswith(kept.encode()[:250])  # what is longer is the end, and what fills up
            told = words.spell(targets[targets != evaluate.IGNORE].tolist())
            assert bytes(byte for byte in told if chr(byte).isdigit()) == digits
            following = np.flatnonzero(targets[:-1] != evaluate.IGNORE)
            assert len(following) and np.all(targets[following] == row[following + 1])  # what the next token is


def test_every_task_but_languages_can_be_asked_of_an_adopted_model(tmp_path, capsys):
    run = adopted(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} birds and 7 birds are many birds. " * 200, encoding="utf-8")
    asked = ["--run", str(run), "--quiet", "--out", str(tmp_path / "out"), "--batch", "2", "--samples", "1"]
    assert evaluate.main(["recall", "--pairs", "2,4", "--steps", "1", *asked]) == 0
    assert evaluate.main(["needle", "--contexts", "400", "--files", str(tmp_path / "a.txt"), *asked]) == 0
    assert evaluate.main(["passkey", "--contexts", "200", *asked]) == 0
    assert evaluate.main(["forgetting", "--tasks", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--steps", "8",
                          "--chunks", "1", "1,4", "--lr", "0.02", *asked]) == 0
    assert evaluate.main(["--list", *asked]) == 0
    matrix = next(iter(json.loads((tmp_path / "out/forgetting.json").read_text())["results"].values()))["matrix"]
    assert matrix[1][0] > matrix[0][0] and matrix[2][1] > matrix[0][1]  # each was learned
    capsys.readouterr()
    assert evaluate.main(["languages", *asked]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "all other tasks can be asked" in said
