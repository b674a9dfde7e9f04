"""Words of six formal languages, up to 12 symbols, learned at once; known is a word with every symbol right.

Judged are words as long as those it was trained on, and words of 48 symbols, four times as long as any that a
model has seen; attention has rotary positions, and half of the channels of every short filter start on the
token before, as in recall. Parity, (aa)* and (abab)* turn a state over: a memory needs an eigenvalue below
zero for that (Grazzi et al. 2024), along a key 1 − η for the delta rule. "signed" is the delta rule with η up
to 2, and nothing else in it differs: it learns (aa)*, and parity in most seeds, of which delta learns nothing;
the sign is the cause, not the size. The squared error of DGD [A 93] forgets twice, α − 2η′, but η′ is bounded
by 1/2 here (η by 1): no lower than α − 1, where the step as printed reaches α − 2. Beyond the length it was
trained on, only signed goes on at all, in some seeds and other languages from one measurement to the next.
Languages that count nobody keeps on counting; words of them that happen to be short are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apps.claims.study import Study, alike, interval, looking_back, said, verdict
from apps.evaluate import fit, share_right
from apps.tasks import LANGUAGES, words
from autograd import no_grad
from config import Config

PAPER = ("formal languages: Hope, LSTM and SRWM solve them all; DeltaNet and attention fail at parity, (aa)* and "
         "(abab)* (Table 5)")


def measure(study: Study) -> dict[str, Any]:
    length, longer, steps, rows = 12, 48, study.steps(400), 4
    base = Config(width=32, layers=2, heads=1, segment=length + 1, vocabulary=32, chunks=(1,), hidden=64,
                  memory_chunk=4, projection_chunk=4, eta_max=4.0, eta_start=1.0)
    models = alike(base, {"self-modifying": "titans", "DGD, squared error": "dgd-l2", "delta": "delta",
                          "delta, signed": "signed", "attention": "attention"})

    def score(config: Config, rate: float, seed: int) -> list[float]:
        rng, model = np.random.default_rng([seed, 2]), looking_back(config, seed)
        fit(model, lambda: words(rng, rows, length), steps, rate, bar=study.bar)
        scores = []
        for n in (length, longer):
            for name in LANGUAGES:
                tokens, targets = words(np.random.default_rng(7), 64, n, [name])
                with no_grad():
                    scores.append(share_right(np.argmax(model(tokens)[0].data, -1), targets, whole=True))
        return scores
    found = study.compare(models, (3e-3, 1e-2, 2e-2), score)
    study.parameters["attention"] += 4 * base.width * base.layers
    half = len(LANGUAGES)
    each = {name: {language: [interval(s[:, i]), interval(s[:, half + i])] for i, language in enumerate(LANGUAGES)}
            for name, s in found.items()}
    return {"x": ("", list(range(2 * half))), "y": "share of words known", "lines": found,
            "of each language, short and long": each, **near_and_far(found, length, longer),
            "ticks": [f"{name}\n{n}" for n in (length, longer) for name in LANGUAGES]}


def near_and_far(found: dict[str, np.ndarray], length: int, longer: int) -> dict[str, str]:
    """What is said of words of two lengths, the means of all languages: in numbers, and whether it holds."""
    half = len(LANGUAGES)
    known = {name: (np.mean(s[:, :half], axis=1), np.mean(s[:, half:], axis=1)) for name, s in found.items()}
    pairs = [*((name, "attention") for name in found if name != "attention"), ("delta, signed", "delta")]
    return {"here": f"words of {length}, as trained on / of {longer}: " + ", ".join(
                f"{name} {said(interval(near))} / {said(interval(far))}" for name, (near, far) in known.items()),
            "holds": "; ".join(f"{more} over {less}: " + " / ".join(
                verdict(a - b) for a, b in zip(known[more], known[less], strict=True)) for more, less in pairs)}
