"""A small vision transformer on scikit-learn's digits of 8 × 8 pixels: which optimiser lowers its loss in equal steps?

Patches of 2 × 2, two blocks of width 32, batches of 32. Every image is shifted by up to a pixel and has noise added
each time it is seen, so that 1,437 digits do not end; 360 others are the test. All matrices between the first and the
last layer go by the rule asked about, the rest by AdamW; the rates of both are swept together, over all steps. M3
is Muon with a slow memory of gradients, moved every f steps, and with V [A 75]; AdaMuon (Si et al. 2025) is Muon with V
and no slow memory. Time per step is the processor's, and stands beside the losses. Three seeds. Judged is M3 with the f
that was best in the sweeps, f = 8, which is nearest to Muon; the longer f, the higher the loss. The readings take one
part away from it, at the same rate: without the slow memory nothing changes, without V it is worse.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from apps.claims.study import Study, interval, said, verdict
from apps.evaluate import share_right
from autograd import Tensor, mean, no_grad, softmax
from layers import Linear, Module, Parameter, cross_entropy, gelu, normal, rms_norm
from optimizers import M3, AdamW, Muon, Optimizer, clip_grad_norm, frobenius, hebbian, newton_schulz, schedule

PAPER = ("a vision transformer in equal steps: M3 below AdamW and Muon (Fig. 11), slower per step than Muon "
         "(Fig. 12)")
STEPS, BATCH, SIDE, PATCH, WIDTH, HEADS, BLOCKS = 3000, 32, 8, 2, 32, 2, 2
PERIODS = (8, 32, 128)  # f, the steps between two moves of M3's slow memory


class AdaMuon(Muon, beta2=0.95, eps=1e-8):
    """Muon whose step is divided by the root of its own running square, and has RMS 0.2 again (Si et al. 2025).

        O = NS(sign M),   V ← β₂V + (1 − β₂) O²,   W ← W − η 0.2 √(mn) Ô/‖Ô‖,   Ô = O/(√V + ε)
    """

    def update(self, p: Any, g: Any, state: Any, group: dict[str, Any]) -> Any:
        m = hebbian(state, "m", g, group["momentum"], 1.0)
        out = newton_schulz(np.sign(m), group["ns_steps"])
        v = hebbian(state, "v", out * out, group["beta2"], 1 - group["beta2"])
        shaped = out / (np.sqrt(v) + group["eps"])
        size = 0.2 * (g.shape[-1] * g.shape[-2]) ** 0.5
        return -group["lr"] * size * shaped / np.maximum(frobenius(shaped), 1e-30)


class VisionTransformer(Module):
    """Attention over the patches of an image, each of which sees all; the mean of them tells the class.

    images (B,8,8) → logits (B,10)
    """

    def __init__(self, rng: np.random.Generator):
        D, inner = WIDTH, PATCH * PATCH
        self.embedding, self.head = Linear(rng, inner, D), Linear(rng, D, 10)
        self.positions = normal(rng, ((SIDE // PATCH) ** 2, D), 0.02)
        self.blocks = [{"qkv": normal(rng, (3, D, D), D ** -0.5), "output": normal(rng, (D, D), D ** -0.5 / 2),
                        "inner": normal(rng, (2 * D, D), D ** -0.5), "outer": normal(rng, (D, 2 * D), D ** -0.5 / 4)}
                       for _ in range(BLOCKS)]

    def __call__(self, images: np.ndarray) -> Tensor:
        n, N = SIDE // PATCH, len(images)
        patches = images.reshape(N, n, PATCH, n, PATCH).swapaxes(2, 3).reshape(N, n * n, PATCH * PATCH)
        x = self.embedding(Tensor(patches)) + self.positions
        for block in self.blocks:
            # (3,B,T,D): q, k and v at once
            q, k, v = (rms_norm(x)[None] @ block["qkv"][:, None].mT).reshape(3, N, n * n, HEADS, -1).swapaxes(2, 3)
            read = softmax(q @ k.mT * (HEADS / WIDTH) ** 0.5, axis=-1) @ v  # (B,H,T,d)
            x = x + read.swapaxes(1, 2).reshape(N, n * n, WIDTH) @ block["output"].mT
            x = x + gelu(rms_norm(x) @ block["inner"].mT) @ block["outer"].mT
        return self.head(rms_norm(mean(x, axis=1)))

    def groups(self, rule: type[Optimizer]) -> list[dict[str, Any]]:
        """Matrices inside by the rule, with weight decay; the first and the last layer by AdamW."""
        inside = [p for block in self.blocks for p in block.values()]
        ends: list[Parameter] = [self.embedding.weight, self.positions, self.head.weight]
        return [{"params": inside, "weight_decay": 0.1},
                {"params": ends, **({} if rule is AdamW else {"method": "adamw"})}]


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, ...]:
    """1,437 images and their classes to learn from, 360 to test on; ImportError says what is missing."""
    try:
        loaded = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as e:
        raise ImportError("the digits come with scikit-learn: pip install -r apps/claims/requirements.txt") from e
    images, classes = (loaded.images / 16).astype(np.float32), loaded.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    first, last = order[:1437], order[1437:]
    return images[first], classes[first], images[last], classes[last]


def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches without end, every image shifted by up to a pixel, noise of standard deviation 0.2 added to it."""
    images, classes, *_ = digits()
    rng, wide = np.random.default_rng([seed, 5]), np.pad(images, ((0, 0), (1, 1), (1, 1)))
    at = np.arange(SIDE)
    while True:
        i, (down, right) = rng.integers(len(images), size=BATCH), rng.integers(3, size=(2, BATCH, 1))
        shifted = wide[i[:, None, None], (down + at)[:, :, None], (right + at)[:, None, :]]
        yield shifted + rng.normal(0, 0.2, shifted.shape).astype(np.float32), classes[i]


def trained(study: Study, rule: type[Optimizer], rate: float, seed: int, steps: int, **options: Any
            ) -> tuple[float, float, float, float]:
    """The loss of the last tenth of the steps, and of the test; its share right; processor time of a step in ms."""
    model, drawn = VisionTransformer(np.random.default_rng(seed)), batches(seed)
    optimizer, losses, started = rule(model.groups(rule), rate, **options), [], time.process_time()
    for step in range(steps):
        images, classes = next(drawn)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), classes)
        loss.backward()
        clip_grad_norm(optimizer.params, 1.0)
        optimizer.lr_scale = schedule("cosine", step, steps, min(50, steps // 10 + 1), 0.0)
        optimizer.step()
        losses.append(loss.item())
        study.bar.update()
    spent, (*_, images, classes) = time.process_time() - started, digits()
    if not np.isfinite(losses[-1]):
        raise FloatingPointError(f"the loss is {losses[-1]}")
    with no_grad():
        logits = model(images)
    return (float(np.mean(losses[-max(1, steps // 10):])), cross_entropy(logits, classes).item(),
            share_right(np.argmax(logits.data, -1)[:, None], classes[:, None]), 1000 * spent / steps)


def measure(study: Study) -> dict[str, Any]:
    steps = study.steps(STEPS)
    study.seeds = min(study.seeds, 3)
    slow: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
        f"M3, f = {f}": (M3, {"slow_period": f}) for f in PERIODS}
    rules: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
        "AdamW": (AdamW, {}), "Muon": (Muon, {}), "AdaMuon": (AdaMuon, {}), **slow}
    size = sum(p.size for p in VisionTransformer(np.random.default_rng(0)).parameters())
    study.parameters = dict.fromkeys(rules, size)

    def measured(rule: type[Optimizer], rate: float, options: dict[str, Any]) -> np.ndarray:
        return np.array([trained(study, rule, rate, seed, steps, **options) for seed in range(study.seeds)])

    found = {}
    for name, (rule, options) in rules.items():
        study.bar.set_postfix_str(name)

        def lowered(rate: float, seed: int, rule: type[Optimizer] = rule, options: Any = options) -> float:
            return -trained(study, rule, rate, seed, steps, **options)[0]
        rate = study.sweep(name, (3e-3, 1e-2, 3e-2) if rule is AdamW else (1e-2, 3e-2, 1e-1), lowered)
        found[name] = measured(rule, rate, options)
    best = min(slow, key=lambda name: -max(study.sweeps[name].values()))  # by the seed of the sweeps
    cause = {}
    for reading, without in (("slow memory", {"slow_weight": 0.0}), ("V", {"variance": False})):
        again = measured(M3, study.best[best], {**slow[best][1], **without})
        cause[f"{best} has no {reading} (loss in training)"] = {
            "kept": {"M3": interval(found[best][:, 0]), "without": interval(again[:, 0])},
            "it lowers the loss": verdict(again[:, 0] - found[best][:, 0])}

    def judged(column: int) -> str:
        return ", ".join(f"{other} {verdict(found[other][:, column] - found[best][:, column])}"
                         for other in ("AdamW", "Muon", "AdaMuon"))
    return {"x": ("", [0, 1]), "ticks": ["training", "test"], "y": "nats per image",
            "lines": {name: scores[:, :2] for name, scores in found.items()}, "cause": cause, "steps": steps,
            "milliseconds of the processor per step": {
                name: round(float(np.median(s[:, 3])), 2) for name, s in found.items()},
            "share of test right": {name: interval(scores[:, 2]) for name, scores in found.items()},
            "holds": f"{best} lower than: in training {judged(0)}; in the test {judged(1)}",
            "here": f"{steps:,} steps, loss in training / test, processor time of a step: " + ", ".join(
                f"{name} {said(interval(s[:, 0]), 3)} / {said(interval(s[:, 1]), 3)}, {np.median(s[:, 3]):.1f} ms"
                for name, s in found.items())}


def beside(scores: dict[str, Any]) -> str:
    """The verdicts on every f, from the scores that were kept."""
    found = {name: np.array(rows) for name, rows in scores.items()}
    return "; ".join(
        f"{name} lower than " + ", ".join(
            f"{other}: {verdict(found[other][:, 0] - found[name][:, 0])} in training, "
            f"{verdict(found[other][:, 1] - found[name][:, 1])} in the test" for other in ("AdamW", "Muon"))
        for name in found if name.startswith("M3")) + "."
