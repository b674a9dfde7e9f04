"""How does a Transformer of theirs become a model of ours, and back?

    model = read(folder, chunks=(1, 4, 16), cms="spread")
    write(folder, model, about)                     what transformers loads, if the architecture can hold it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.adopt import architectures, files
from apps.adopt.architectures import Source
from config import Config
from hope import Hope, State
from tools.folder import read_json, write_text

COMPUTED = ("vocabulary", "width", "layers", "heads", "mixer", "hidden", "activation", "norm", "norm_eps", "scaled",
            "tied", "positions", "biases", "window", "key_heads", "head_size", "rotary_base", "rotary_scaling")


def read(folder: Path, **settings: Any) -> Hope:
    """The model in a folder, with these settings of ours for its levels; ValueError says what is wrong where.

    Weights are read one after another into place: no second copy of the model is ever in memory.
    """
    found = settings_of(folder)
    config = architectures.config(found, folder / "config.json", **settings)
    kind, model = found["model_type"], Hope(config, None)
    entries = architectures.named(files.tensors(folder), kind)
    own = dict(model.named_parameters())
    table = architectures.sources(kind, config, own)
    for name, source in table.items():
        if source.name not in entries:
            raise ValueError(f"{folder} lacks the tensor {source.name}; config.json promises it")
        entry, wanted = entries[source.name], shape_of(source, own[name].shape)
        if entry.shape != wanted:
            raise ValueError(f"{entry.path} has {source.name} of shape {list(entry.shape)}; by config.json it is "
                             f"{list(wanted)}")
        own[name].data = source.ours(entry.read())
    used = {source.name for source in table.values()} | ({"lm_head.weight"} if config.tied else set())
    if unknown := sorted(entries.keys() - used):
        raise ValueError(f"{folder} has {len(unknown)} tensors that no {kind} has here, such as {unknown[0]}: it is of "
                         "another architecture than its config.json says")
    return model


def settings_of(folder: Path) -> dict[str, Any]:
    """config.json of a model of theirs."""
    if not folder.is_dir():
        what = f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}"
        raise ValueError(f"{what}; give one with config.json, model.safetensors, tokenizer.json")
    return read_json(folder / "config.json")


def shape_of(source: Source, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor of theirs, from that of a parameter that comes from it."""
    whole = (ours[0] * source.parts, *ours[1:])
    return whole[::-1] if source.transposed else whole


def write(folder: Path, model: Hope, about: Mapping[str, Any], state: State | None = None) -> None:
    """Write config.json and model.safetensors, with what the levels have learned if a state is given.

    ValueError where their architecture cannot hold the model: a block of theirs has one MLP. (Levels side by side are
    one, of as many times the hidden units.)
    """
    config = expect_theirs(model.config, about)
    weights = {name: p.data for name, p in model.named_parameters()}
    if state:
        if (sequences := {len(t) for t in state.leaves()}) - {1}:
            raise ValueError(f"the state is of {max(sequences)} sequences; what one has learned can be written")
        for i, (block, past) in enumerate(zip(model.blocks, state.blocks, strict=True)):
            for n, (level, its) in enumerate(zip(block.cms.levels, past.levels, strict=True)):
                for name, merged in level.merged(its.drift).items():
                    weights[f"blocks.{i}.cms.levels.{n}.{name}.weight"] = merged
    if config.cms == "independent":
        config = replace(config, cms="spread", chunks=(1,), level_rates=(), hidden=len(config.chunks) * config.hidden)
        weights = side_by_side(weights, config)
        about = {**about, "n_inner" if about["model_type"] == "gpt2" else "intermediate_size": config.hidden}
    parts: dict[str, dict[int, tuple[str, Source]]] = {}
    for name, source in architectures.sources(about["model_type"], config, weights).items():
        parts.setdefault(source.name, {})[source.part] = name, source

    def joined(name: str) -> np.ndarray:
        rows = [source.theirs(weights[ours]) for _, (ours, source) in sorted(parts[name].items())]
        whole = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return whole.T if parts[name][0][1].transposed else whole
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps({**about, "dtype": "float32", "torch_dtype": "float32"}, indent=2))
    files.write(folder / files.SINGLE, {
        name: shape_of(its[0][1], weights[its[0][0]].shape) for name, its in parts.items()}, joined)


def side_by_side(weights: dict[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """Weights in which the levels of a block that stand beside each other are one MLP, with their units in a row.

        Σ_ℓ w_ℓ W_down,ℓ σ(W_up,ℓ n_ℓ(x)),  w = softmax of what was learned;  n_ℓ = ν_ℓ x̂ + β_ℓ is put into W_up,ℓ
    """
    found = {name: array for name, array in weights.items() if ".cms." not in name}
    for i in range(config.layers):
        at, raw = f"blocks.{i}.cms.levels", weights[f"blocks.{i}.cms.mix"]
        share = np.exp(raw - raw.max()) / np.sum(np.exp(raw - raw.max()))
        levels = [{name.removeprefix(f"{at}.{n}."): array for name, array in weights.items()
                   if name.startswith(f"{at}.{n}.")} for n in range(len(share))]
        for name in ("gate", "up"):
            if f"{name}.weight" in levels[0]:
                found[f"{at}.0.{name}.weight"] = np.concatenate([
                    level[f"{name}.weight"] * level["norm.weight"] for level in levels])
            if f"{name}.bias" in levels[0]:
                found[f"{at}.0.{name}.bias"] = np.concatenate([
                    level[f"{name}.bias"] + level[f"{name}.weight"] @ level.get("norm.bias", 0 * level["norm.weight"])
                    for level in levels])
        found[f"{at}.0.down.weight"] = np.concatenate([
            w * level["down.weight"] for w, level in zip(share, levels, strict=True)], axis=1)
        if "down.bias" in levels[0]:
            found[f"{at}.0.down.bias"] = np.sum([
                w * level["down.bias"] for w, level in zip(share, levels, strict=True)], axis=0)
        found[f"{at}.0.norm.weight"] = np.ones_like(levels[0]["norm.weight"])
        if "norm.bias" in levels[0]:
            found[f"{at}.0.norm.bias"] = np.zeros_like(levels[0]["norm.bias"])
    return found


def expect_theirs(config: Config, about: Mapping[str, Any]) -> Config:
    """The configuration; ValueError unless a Transformer of the architecture in `about` computes the same."""
    then = architectures.config(about, Path("config.json"))
    for name in COMPUTED:
        if (value := getattr(config, name)) != getattr(then, name):
            raise ValueError(f"the model has {name} {value!r}, and what was adopted has {getattr(then, name)!r}")
    if len(config.block_chunks(0)) != 1 and config.cms != "independent":
        raise ValueError(f"a block has {len(config.chunks)} levels in a row, and one of {about['model_type']} holds "
                         "one MLP; only levels that are spread or independent can be written")
    return config
