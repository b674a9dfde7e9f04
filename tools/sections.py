"""What do another system's settings mean here?  Those in sections, and how each of its keys is called with us."""

from __future__ import annotations

from typing import Any

from config import nearest, setting

# section → key → (its default, our name, or "": see `from_sections`)
SECTIONS: dict[str, dict[str, tuple[Any, str]]] = {
    "model": {"hidden_size": (384, "width"), "vocab_size": (512, "vocabulary"), "seq_len": (256, "segment"),
              "num_levels": (3, ""), "level_timescales": ((1, 4, 16), "chunks")},
    "continuum_mem": {"enabled": (True, ""), "ultra_short_span": (2, ""), "short_span": (8, ""),
                      "mid_span": (32, ""), "long_span": (128, ""), "episodic_span": (512, "")},
    "self_modify": {"enabled": (True, ""), "meta_lr": (1e-5, "generator_rate"),
                    "update_frequency": (8, "generator_chunk"), "weight_mod_dim": (128, "generator_hidden")},
    "deep_optimizer": {"enabled": (True, ""), "fast_lr_scale": (1.0, ""), "slow_lr_scale": (0.1, ""),
                       "fast_ema": (0.9, ""), "slow_ema": (0.99, ""), "sync_interval": (64, "sync"),
                       "gradient_compression_dim": (256, "rank")},
    "training": {"batch_size": (4, "batch"), "learning_rate": (1e-4, "lr"), "num_steps": (1000, "steps"),
                 "log_every": (10, "log_every"), "use_random_data": (True, "random_data")},
}


def from_sections(found: dict[str, Any]) -> dict[str, Any]:
    """Our settings from those of SECTIONS; the other sections may stand within `model`.

    Attention is joined by the banks of `continuum_mem` and the weight generator of `self_modify` where these
    are enabled; the deep optimiser is `multi_timescale`, AdamW without it. ValueError names what is unknown.
    """
    model = found.get("model", {})
    within = {name: keys for name, keys in model.items() if name in SECTIONS} if isinstance(model, dict) else {}
    given = within | found | {"model": {key: model[key] for key in model if key not in within} if within else model}
    for section, keys in given.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            raise ValueError(f"unknown section {section!r}{nearest(section, list(SECTIONS))}; "
                             f"there are {', '.join(SECTIONS)}")
        for key, value in keys.items():
            known = SECTIONS[section]
            if key not in known:
                raise ValueError(f"unknown key {key!r} in {section!r}{nearest(key, list(known))}; "
                                 f"it has {', '.join(known)}")
            setting(f"{section}.{key}", value, known[key][0])
    values: dict[str, dict[str, Any]] = {}
    ours: dict[str, Any] = {}
    for section, known in SECTIONS.items():
        values[section] = {key: default for key, (default, _) in known.items()} | given.get(section, {})
        ours |= {name: values[section][key] for key, (_, name) in known.items()
                 if name and section != "deep_optimizer"}
    timescales, levels = values["model"]["level_timescales"], values["model"]["num_levels"]
    if levels != len(timescales):
        raise ValueError(f"num_levels is {levels}, but level_timescales {list(timescales)} has {len(timescales)}")
    enabled = {name: section.pop("enabled") for name, section in values.items() if "enabled" in section}
    joined = [name for section, name in (("continuum_mem", "banks"), ("self_modify", "generated"))
              if enabled[section]]
    ours |= {"mixer": "+".join(["attention", *joined]), "spans": tuple(values["continuum_mem"].values())}
    ours |= {"optimizer": "adamw", "options": ()}
    if enabled["deep_optimizer"]:
        chosen = (f"{SECTIONS['deep_optimizer'][key][1] or key}={value}"
                  for key, value in values["deep_optimizer"].items())
        ours |= {"optimizer": "multi_timescale", "options": tuple(chosen)}
    return ours
