"""Hope with one thing changed at a time, in language modelling and in recall: what is each part worth?

Every row has as many parameters as Hope, and Hope's rates: the best of its own sweep in each of the two. Language
modelling is that of the claim on it, recall that of 16 pairs rewritten. "dot product" lowers −⟨M(k), v̂⟩ in place of
the squared error; "levels" are a chain of three in place of one MLP. The paper's Hope has momentum and an adaptive q;
ours has neither by default, so here they are added. Retention is not varied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims import modelling, recall
from apps.claims.study import Study, bits_per_byte, equal, interval, said, trained, verdict
from config import Config
from hope import count

PAPER = ("perplexity of Hope 12.24; without DGD 13.41, momentum 13.58, weight decay 13.71, CMS 13.04, inner k 13.77, "
         "v 13.90, q 12.19 (Table 6)")
FIVE = ("k", "v", "eta", "alpha", "memory")
ROWS: dict[str, dict[str, Any]] = {
    "dot product": {"objective": "dot"}, "momentum": {"momentum": True}, "targets v": {"targets": "value"},
    "levels 1, 4, 16": {"chunks": (1, 4, 16)}, "k fixed": {"adaptive": FIVE[1:]},
    "v fixed": {"adaptive": (FIVE[0], *FIVE[2:])}, "η, α fixed": {"adaptive": ("k", "v", "memory")},
    "q adapts": {"adaptive": ("q", *FIVE)}}


def measure(study: Study) -> dict[str, Any]:
    def rows(base: Config) -> dict[str, Config]:
        return {"Hope": base, **{name: equal(replace(base, **change), count(base)) for name, change in ROWS.items()}}

    def bits(config: Config, rate: float, seed: int) -> float:
        return bits_per_byte(trained(study, config, rate, seed, study.steps(modelling.STEPS), modelling.OPTIMIZER))

    def recalled(config: Config, rate: float, seed: int) -> float:
        return recall.score(study, config, rate, seed)[-1]
    found = {}
    text, pairs = rows(modelling.BASE), rows(recall.BASE)
    study.parameters = {name: count(config) for name, config in text.items()}
    for what, configs, rates, one in (("text", text, modelling.RATES, bits), ("recall", pairs, recall.RATES, recalled)):
        sign = -1 if what == "text" else 1

        def score(rate: float, seed: int, config: Config = configs["Hope"], one: Any = one, sign: int = sign) -> float:
            return sign * one(config, rate, seed)
        best = study.sweep(what, rates, score)
        for name, config in configs.items():
            study.bar.set_postfix_str(f"{what}, {name}")
            found[what, name] = np.array([one(config, best, seed) for seed in range(study.seeds)])
    return {"x": ("", [0]), "y": "bits per byte of validation text",
            "lines": {name: found["text", name][:, None] for name in text},
            "recall": {name: interval(found["recall", name]) for name in pairs},
            "holds": "Hope better than with: " + "; ".join(
                f"{name}: text {verdict(found['text', name] - found['text', 'Hope'])}, "
                f"recall {verdict(found['recall', 'Hope'] - found['recall', name])}" for name in ROWS),
            "here": "bits per byte / share recalled: " + ", ".join(
                f"{name} {said(interval(found['text', name]), 3)} / {said(interval(found['recall', name]))}"
                for name in text)}
