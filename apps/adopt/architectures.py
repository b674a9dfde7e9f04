"""Which Transformers can be adopted?  GPT-2 and Llama with its relatives: their settings as ours, their names as ours.

Every parameter of ours has one source: a tensor of theirs, or some of its rows, possibly transposed (GPT-2 keeps its
weights as (in, out)) or in another order: their rotary positions turn the pairs (x_i, x_{i+d/2}), ours (x_2i, x_2i+1).
All of it can be undone, so the same table reads and writes.

Legend: D width, F hidden size of an MLP, H heads, K heads of keys, d head size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.adopt.files import Entry
from config import Config, nearest

KNOWN = ("gpt2", "llama", "mistral", "qwen2")
SEGMENT = 512  # CHOICE: tokens of a training window, where the model does not have fewer
UNUSED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # masks and angles that some files hold
NAMES = {  # of their layers, by ours; {} is the number of a block
    "gpt2": {"embedding": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f",
             "unembedding": "lm_head", "block.norm": "transformer.h.{}.ln_1",
             **dict.fromkeys(("block.mixer.query", "block.mixer.key", "block.mixer.value"),
                             "transformer.h.{}.attn.c_attn"),
             "block.mixer.output": "transformer.h.{}.attn.c_proj", "block.level.norm": "transformer.h.{}.ln_2",
             "block.level.up": "transformer.h.{}.mlp.c_fc", "block.level.down": "transformer.h.{}.mlp.c_proj"},
    "llama": {"embedding": "model.embed_tokens", "norm": "model.norm", "unembedding": "lm_head",
              "block.norm": "model.layers.{}.input_layernorm", "block.mixer.query": "model.layers.{}.self_attn.q_proj",
              "block.mixer.key": "model.layers.{}.self_attn.k_proj",
              "block.mixer.value": "model.layers.{}.self_attn.v_proj",
              "block.mixer.output": "model.layers.{}.self_attn.o_proj",
              "block.level.norm": "model.layers.{}.post_attention_layernorm",
              "block.level.gate": "model.layers.{}.mlp.gate_proj", "block.level.up": "model.layers.{}.mlp.up_proj",
              "block.level.down": "model.layers.{}.mlp.down_proj"}}


@dataclass(frozen=True)
class Source:
    """Where a parameter of ours comes from."""

    name: str  # of the tensor
    transposed: bool = False
    part: int = 0  # of so many …
    parts: int = 1  # … equal parts, by rows
    heads: int = 0  # whose rows are pairs to be turned; 0: none are

    def ours(self, array: np.ndarray) -> np.ndarray:
        """The parameter, of the whole tensor."""
        rows = array.T if self.transposed else array
        size = len(rows) // self.parts
        rows = rows[self.part * size:(self.part + 1) * size]
        if self.heads:
            rows = np.swapaxes(rows.reshape(self.heads, 2, -1, *rows.shape[1:]), 1, 2).reshape(rows.shape)
        return np.ascontiguousarray(rows)

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """The tensor, or the rows of it, of the parameter."""
        if self.heads:
            array = np.swapaxes(array.reshape(self.heads, -1, 2, *array.shape[1:]), 1, 2).reshape(array.shape)
        return array


class Settings:
    """A config.json of theirs: what is asked of it is there, or has a default, and what we lack is refused."""

    def __init__(self, found: Mapping[str, Any], path: Path):
        self.found, self.path = found, path

    def __call__(self, name: str, default: Any = None) -> Any:
        value = self.found.get(name)
        if value is None and default is None:
            raise ValueError(f"{self.path} has no {name}")
        return default if value is None else value

    def expect(self, name: str, default: Any, *allowed: Any) -> None:
        """ValueError unless a setting is one of those that we compute."""
        if (value := self.found.get(name, default)) not in (default, *allowed):
            raise ValueError(f"{self.path} has {name} {value!r}, which is not known here; known: "
                             f"{', '.join(map(repr, (default, *allowed)))}")


def config(found: Mapping[str, Any], path: Path, **levels: Any) -> Config:
    """Our settings of a config.json of theirs; ValueError for an architecture that we do not know."""
    kind, c = found.get("model_type"), Settings(found, path)
    if kind not in KNOWN:
        raise ValueError(f"{path} is of the architecture {kind!r}{nearest(kind, KNOWN)}; known are {', '.join(KNOWN)}")
    try:
        made = gpt2(c) if kind == "gpt2" else llama(c, kind)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} holds a setting of another kind than it should be: {error}") from None
    return Config(vocabulary=c("vocab_size"), mixer="attention", scaled=False,
                  **{"chunks": (1,), "cms": "spread", **made, **levels})


def gpt2(c: Settings) -> dict[str, Any]:
    c.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
    c.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        c.expect(name, False)
    return dict(width=c("n_embd", 768), layers=c("n_layer", 12), heads=c("n_head", 12), norm="layer",
                hidden=c("n_inner", 4 * c("n_embd", 768)), norm_eps=c("layer_norm_epsilon", 1e-5),
                tied=c("tie_word_embeddings", True), positions=c("n_positions", 1024), rotary_base=0.0,
                biases=("qkv", "output", "level"), segment=min(SEGMENT, c("n_positions", 1024)))


def llama(c: Settings, kind: str) -> dict[str, Any]:
    c.expect("hidden_act", "silu")
    c.expect("use_sliding_window", False)
    longest, heads = c("max_position_embeddings", 2048), c("num_attention_heads")
    if kind == "mistral" and (window := c.found.get("sliding_window", 4096)) is not None and window < longest:
        raise ValueError(f"{c.path} has a sliding_window of {window} tokens, which is not known here; known is none")
    size = c("head_dim", c("hidden_size") // heads)
    attention = ["qkv"] if kind == "qwen2" else ["qkv", "output"] if c("attention_bias", False) else []
    base, scaling = rotary(c, longest)
    return dict(width=c("hidden_size"), layers=c("num_hidden_layers"), heads=heads, hidden=c("intermediate_size"),
                key_heads=c("num_key_value_heads", heads if kind == "llama" else None), activation="swiglu", norm="rms",
                head_size=0 if size * heads == c("hidden_size") else size, norm_eps=c("rms_norm_eps", 1e-6),
                tied=c("tie_word_embeddings", False), rotary_base=base, rotary_scaling=scaling,
                biases=(*attention, *["level"] * bool(c("mlp_bias", False))), segment=min(SEGMENT, longest))


def rotary(c: Settings, longest: int) -> tuple[float, tuple[float, ...]]:
    """Base and scaling of rotary positions, as they were written before `rope_parameters` and since."""
    rope = {**(c.found.get("rope_scaling") or {}), **(c.found.get("rope_parameters") or {})}
    base = float(rope.get("rope_theta") or c("rope_theta", 10000.0))
    kind, s = rope.get("rope_type", rope.get("type", "default")), Settings(rope, c.path)
    if kind == "linear":
        return base, (float(s("factor")),)
    if kind == "llama3":
        return base, tuple(float(s(name, default)) for name, default in (
            ("factor", None), ("low_freq_factor", None), ("high_freq_factor", None),
            ("original_max_position_embeddings", longest)))
    if kind != "default":
        raise ValueError(f"{c.path} scales rotary positions by {kind!r}; known are default, linear and llama3")
    return base, ()


def sources(kind: str, config: Config, names: Iterable[str]) -> dict[str, Source]:
    """Where the parameters of these names come from; levels that stand beside each other have one source in common."""
    found, theirs = {}, NAMES["gpt2" if kind == "gpt2" else "llama"]
    heads = {"block.mixer.query": config.heads, "block.mixer.key": config.key_heads or config.heads}
    for name in names:
        block, *_ = re.findall(r"^blocks\.(\d+)", name) or [""]
        layer, _, end = re.sub(r"^blocks\.\d+", "block", re.sub(r"cms\.levels\.\d+", "level", name)).rpartition(".")
        if end not in ("weight", "bias"):
            layer, end = end, "weight"
        if layer not in theirs:
            continue  # of ours alone: how levels side by side are mixed
        tensor = f"{theirs[layer].format(block)}.{end}"
        if kind == "gpt2":
            matrix = end == "weight" and layer.startswith("block") and not layer.endswith("norm")
            part = ("block.mixer.query", "block.mixer.key", "block.mixer.value")
            found[name] = Source(tensor, matrix, *((part.index(layer), 3) if layer in part else (0, 1)))
        else:
            found[name] = Source(tensor, heads=heads.get(layer, 0))
    return found


def named(entries: dict[str, Entry], kind: str) -> dict[str, Entry]:
    """The tensors under the names that the whole model has: some files hold it without its head, and without prefix."""
    prefix = "transformer." if kind == "gpt2" else "model."
    whole = any(name.startswith(prefix) for name in entries)
    return {name if whole or name == "lm_head.weight" else prefix + name: entry for name, entry in entries.items()
            if not name.endswith(UNUSED)}
