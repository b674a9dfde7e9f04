"""Ten minutes of one core, for the preset nano and for others of its size: who takes the fewest bits per byte then?

All learn as nano does, by Muon, the rate falling as a cosine to the last step, but read four segments of 512 bytes a
step, as nano did when this was measured. (It reads eight of 256 now. By these Hope and the Transformer both gain 0.05
bits: benchmarks/README.md, under loss.) How many steps fit into the time is measured before, all models in turns and in
processor time, so that what else runs takes nothing from anyone, nor does what is measured on the way. The steps are
those of a slow machine; milliseconds per step are in the file. The rate is the best of a sweep over just as many steps.
(By one over half of them 0.05 is nearly everyone's; for the Transformer that costs 0.05 bits in the end. The rates of
delta and retention are still from there.) Hope and Hope-Attention have nano's chain of three levels, the others one
level; the Transformer has no short filter, as in the paper. What are Hope's writes worth at the end? By what does it
lose? It learns once more for as many steps as gated delta (the Transformer takes two more), and once with one level,
for as many as plain Titans, which write one memory a head in place of five. In equal steps three seeds tell it from
none of them: it is the time of a step. Three seeds. (Eight hours of a core.)
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, equal, interval, said, trained, verdict, without_writes
from config import PRESETS, Config
from hope import Hope, count

PAPER = "nothing of the kind: the models of Table 2 are compared after equal tokens"
LONG = True  # more than ten minutes of a core
MINUTES, RATES, BATCH = (2, 4, 6, 8, 10), (1.25e-2, 2.5e-2, 5e-2), 4
NANO, TRAINING = replace(PRESETS["nano"][0], segment=512), PRESETS["nano"][1]
SMALL: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "segment": 64, "hidden": 32}  # to see that it runs
HELD_OUT = 4  # batches of 16 segments of held-out text


def models(nano: Config) -> dict[str, Config]:
    """What is compared, of one size."""
    mixers = {"gated delta": "gated", "Transformer": "attention", "plain Titans": "plain-titans", "delta": "delta",
              "retention": "retention"}
    others = {name: replace(nano, mixer=mixer, chunks=(1,)) for name, mixer in mixers.items()}
    others["Hope-Attention"] = replace(nano, mixer="attention")
    return {"Hope": nano} | {name: equal(other, count(nano)) for name, other in others.items()}


def as_nano(study: Study, config: Config, rate: float, seed: int, steps: int, watch: Any = None) -> Hope:
    return trained(study, config, rate, seed, steps, TRAINING.optimizer, BATCH, watch, **TRAINING.rung())


def learned(study: Study, config: Config, rate: float, seed: int, steps: int, marks: int) -> list[float]:
    """Bits per byte after equal parts of the steps, as many as there are marks; then of a Hope that writes nothing."""
    at, bits = {round(steps * i / marks) for i in range(1, marks + 1)}, []

    def watch(model: Hope, done: int) -> None:
        if done in at:
            bits.append(bits_per_byte(model, HELD_OUT))
    model = as_nano(study, config, rate, seed, steps, watch)
    return [*bits, without_writes(model, HELD_OUT)] if config.mixer == "titans" else bits


def seconds_per_step(study: Study, configs: dict[str, Config], rounds: int = 7, steps: int = 4) -> dict[str, float]:
    """Processor time of a step of every model, the median of some rounds, in turns."""
    found: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(1 + rounds):  # the first compiles
        for name, config in configs.items():
            started = time.process_time()
            as_nano(study, config, RATES[0], 0, steps)
            found[name].append((time.process_time() - started) / steps)
    return {name: float(np.median(seconds[1:])) for name, seconds in found.items()}


def measure(study: Study) -> dict[str, Any]:
    study.seeds, quick, marks = min(study.seeds, 3), study.share < 1, len(MINUTES)
    configs = models(replace(NANO, **SMALL) if quick else NANO)
    seconds, = study.each(lambda _: seconds_per_step(study, configs), [None])  # one for all, where several work
    steps = {name: 2 * marks if quick else round(60 * MINUTES[-1] / spent) for name, spent in seconds.items()}
    for name, config in configs.items():
        study.parameters[name] = count(config)
        study.sweep(name, RATES, lambda rate, seed, name=name: -bits_per_byte(  # type: ignore[misc]
            as_nano(study, configs[name], rate, seed, steps[name]), HELD_OUT))

    def after(name: str, steps: int, marks: int, **changed: Any) -> np.ndarray:
        """(seeds,points), at the best rate."""
        config = equal(replace(configs[name], **changed), count(configs[name]))
        return np.array(list(study.each(lambda seed: learned(
            study, config, study.best[name], seed, steps, marks), range(study.seeds))))
    found = {name: after(name, steps[name], marks) for name in configs}
    lines = {name: bits[:, :marks] for name, bits in found.items()}
    last, off = {name: bits[:, -1] for name, bits in lines.items()}, found["Hope"][:, -1]
    longer = after("Hope", steps["gated delta"], 1)[:, 0]
    flat = after("Hope", steps["plain Titans"], 1, chunks=(1,))[:, 0]

    def below(hope: np.ndarray, *names: str) -> dict[str, str]:
        return {f"Hope below {name}": verdict(last[name] - hope) for name in names}
    return {"x": ("minutes of a core", MINUTES), "y": "bits per byte of held-out text", "lines": lines, "steps": steps,
            "milliseconds per step": {name: round(1000 * spent) for name, spent in seconds.items()},
            "cause": {"the writes of Hope are off": {"kept": {"Hope": interval(off)},
                                                     "Hope below that": verdict(off - last["Hope"])},
                      "Hope takes as many steps as gated delta": {
                          "kept": {"Hope": interval(longer)}, **below(longer, "gated delta", "Transformer")},
                      "Hope has one level, and takes as many steps as plain Titans": {
                          "kept": {"Hope": interval(flat)}, **below(flat, "plain Titans")}},
            "holds": "; ".join(f"{what}: {it}" for what, it in below(last["Hope"], *list(last)[1:]).items()),
            "here": f"bits per byte after {MINUTES[-1]} minutes of a core: " + ", ".join(
                f"{name} {said(interval(bits), 3)} ({steps[name]} steps)" for name, bits in last.items())}
