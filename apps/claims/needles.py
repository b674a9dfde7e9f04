"""Needles among words that say nothing, in texts of 128, 256 and 512 tokens: who finds them?

A needle is a name and a place, one token each ("anna attic"); a question is the name again. Single needles lie in one
sentence, repeated, or in random words; long ones have four places to be told in order; of four keys one is asked, or
all four. Known is a row with every answer right. All models have one layer, read through a short filter half of whose
channels start on the token before, and learn texts of 32 to 128 tokens (of 512, one time in 20) that hold four facts or
needles, a long one, or a repeated sentence. Hope's five memories per head are networks and make their own targets,
plain Titans have one, with fixed projections; attention looks back over everything, or over 64 tokens. Who knows no
names and tells the last place finds all single needles, and of four keys 0.30. 2,000 steps, five seeds. Memories find
at four times the trained length what they find at 128; attention over everything, which has seen few texts so long,
does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, alike, looking_back, verdict
from apps.evaluate import fit, share_right
from apps.tasks import WORDS, Drawn, needles
from autograd import no_grad
from config import Config
from hope import Hope, count

PAPER = ("needles: single 100 for Hope and Titans, 99/88/78 (S2) and 73/46/25 (S3) at 4K/8K/16K for Hope, of several "
         "keys 29/25/15, of several queries 32/25/14; at 16K Titans 75, 21, 8 and 9; the Transformer 94, 41, 61 and 30 "
         "(Table 1)")
KINDS, LENGTHS = ("single, repeated", "single", "long", "multi-key", "multi-query"), (128, 256, 512)
STEPS, RATES = 2000, (1.25e-3, 2.5e-3, 5e-3)
BASE = Config(width=32, layers=1, heads=2, segment=128, vocabulary=len(WORDS), chunks=(1,), hidden=32, memory_chunk=32,
              projection_chunk=32)
MIXERS = {"Hope": "titans", "plain Titans": "plain-titans", "attention": "attention"}


def models() -> dict[str, Config]:
    found = alike(BASE, MIXERS)
    return {**found, "attention, window": replace(found["attention"], window=64)}


def learned(study: Study, config: Config, rate: float, seed: int) -> Hope:
    """A model that has learned to find needles and facts."""
    rng, model = np.random.default_rng([seed, 1]), looking_back(config, seed)

    def drawn() -> Drawn:
        kind = str(rng.choice(["facts", "multi-query", "long", "single, repeated"], p=[0.4, 0.4, 0.1, 0.1]))
        return needles(rng, 16, int(rng.choice([32, 64, 128, 512], p=[0.5, 0.3, 0.15, 0.05])), kind)
    fit(model, drawn, study.steps(STEPS), rate, bar=study.bar)
    return model


def answered(model: Hope, kind: str, length: int, whole: bool = True, rows: int = 7) -> float:
    """The share of rows that are answered rightly, or of answers; `rows` numbers the texts."""
    tokens, targets = needles(np.random.default_rng([rows, length]), 64, length, kind)
    with no_grad():
        guesses = np.argmax(model(tokens)[0].data, -1)
    return share_right(guesses, targets, whole=whole)


def best(study: Study, name: str, config: Config) -> float:
    """The best rate of the sweep, for answers of both kinds that are trained."""
    study.parameters[name] = count(config) + 4 * config.width * (config.mixer == "attention")

    def score(rate: float, seed: int) -> float:
        model = learned(study, config, rate, seed)
        return float(np.mean([answered(model, kind, 128, False, rows=8) for kind in ("facts", "multi-query")]))
    return study.sweep(name, RATES, score)


def measure(study: Study) -> dict[str, Any]:
    found = {}
    for name, config in models().items():
        rate = best(study, name, config)
        study.bar.set_postfix_str(name)
        made = [learned(study, config, rate, seed) for seed in range(study.seeds)]
        found[name] = np.array([[answered(m, kind, n) for kind in KINDS for n in LENGTHS] for m in made])

    def mean(name: str, *kinds: str) -> np.ndarray:
        scores = found[name].reshape(study.seeds, len(KINDS), len(LENGTHS))
        return np.mean([scores[:, KINDS.index(kind)] for kind in kinds], axis=0)  # (seeds,lengths)
    sets = {"single": KINDS[:2], "long": KINDS[2:3], "several": KINDS[3:]}
    return {"x": ("", list(range(len(KINDS) * len(LENGTHS)))), "lines": found, "y": "share of rows known",
            "ticks": [f"{kind.replace(', ', chr(10))}\n{n}" for kind in KINDS for n in LENGTHS],
            "holds": f"at {LENGTHS[0]} / {LENGTHS[-1]} tokens Hope over " + "; ".join(f"{name}: " + ", ".join(
                f"{what} " + " / ".join(verdict((mean("Hope", *kinds) - mean(name, *kinds))[:, i]) for i in (0, -1))
                for what, kinds in sets.items()) for name in list(found)[1:]),
            "here": f"known at {'/'.join(map(str, LENGTHS))} tokens ({', '.join(KINDS)}): " + "; ".join(
                f"{name} " + ", ".join("/".join(f"{np.mean(scores[:, i * 3 + j]):.2f}" for j in range(3))
                                       for i in range(len(KINDS))) for name, scores in found.items())}
