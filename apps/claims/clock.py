"""Five minutes of one core, for the preset nano and for others of its size: who takes the fewest bits per byte then?

All learn as nano does: four segments of 512 bytes a step, by Muon, the rate falling as a cosine to the last step. How
many steps fit into the time is measured before, all models in turns and in processor time, so that what else runs
takes nothing from anyone. The rate is the best of a sweep over a fifth of the time. Hope has nano's chain of three
levels, the others one level. Is it the step or what it teaches that decides? The reading below gives the others only as
many steps as Hope gets. Three seeds. (An hour and a half of a core.)
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from apps.claims.study import Study, bits_per_byte, equal, interval, said, trained, verdict
from config import PRESETS, Config
from hope import Hope, count

PAPER = "nothing of the kind: the models of Table 2 are compared after equal tokens"
LONG = True  # more than ten minutes of a core
MINUTES, RATES, BATCH = 5, (2.5e-2, 5e-2, 1e-1), 4
NANO, TRAINING = PRESETS["nano"]
SMALL: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "segment": 64, "hidden": 32}  # to see that it runs


def models(nano: Config) -> dict[str, Config]:
    """What is compared, of one size."""
    found = {"Hope": nano, "gated delta": replace(nano, mixer="gated", chunks=(1,)),
             "Transformer": replace(nano, mixer="attention", chunks=(1,))}
    return {name: equal(config, count(nano)) for name, config in found.items()}


def learned(study: Study, config: Config, rate: float, seed: int, steps: int) -> Hope:
    return trained(study, config, rate, seed, steps, TRAINING.optimizer, BATCH, **TRAINING.rung())


def seconds_per_step(study: Study, configs: dict[str, Config], rounds: int = 7, steps: int = 4) -> dict[str, float]:
    """Processor time of a step of every model, the median of some rounds, in turns."""
    found: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(1 + rounds):  # the first compiles
        for name, config in configs.items():
            started = time.process_time()
            learned(study, config, RATES[0], 0, steps)
            found[name].append((time.process_time() - started) / steps)
    return {name: float(np.median(seconds[1:])) for name, seconds in found.items()}


def measure(study: Study) -> dict[str, Any]:
    study.seeds, quick = min(study.seeds, 3), study.share < 1
    configs = models(replace(NANO, **SMALL) if quick else NANO)
    seconds, = study.each(lambda _: seconds_per_step(study, configs), [None])  # one for all, where several work
    steps = {name: 4 if quick else round(60 * MINUTES / spent) for name, spent in seconds.items()}

    for name, config in configs.items():
        study.parameters[name] = count(config)
        study.sweep(name, RATES, lambda rate, seed, name=name: -bits_per_byte(  # type: ignore[misc]
            learned(study, configs[name], rate, seed, max(2, steps[name] // 5))))
    fewest = min(steps.values())
    jobs = [(name, study.best[name], seed, n) for seed in range(study.seeds) for name in configs
            for n in dict.fromkeys((steps[name], fewest))]

    def bits(job: tuple[str, float, int, int]) -> float:
        name, rate, seed, n = job
        return bits_per_byte(learned(study, configs[name], rate, seed, n))
    found = dict(zip(jobs, study.each(bits, jobs), strict=True))
    timed, equal_steps = ({name: np.array([[b] for (one, _, _, n), b in found.items() if (one, n) == (name, wanted)])
                           for name, wanted in numbers.items()} for numbers in (steps, dict.fromkeys(steps, fewest)))

    def below(bits: dict[str, np.ndarray]) -> str:
        return "; ".join(f"Hope below {name}: {verdict((b - bits['Hope'])[:, 0])}"
                         for name, b in bits.items() if name != "Hope")
    return {"x": ("", [0]), "y": f"bits per byte after {MINUTES} minutes of a core", "lines": timed, "steps": steps,
            "milliseconds per step": {name: round(1000 * spent) for name, spent in seconds.items()},
            "cause": {f"all take {fewest} steps": {
                "kept": {name: interval(b) for name, b in equal_steps.items()},
                "holds": below(equal_steps)}},
            "holds": below(timed),
            "here": f"bits per byte after {MINUTES} minutes of a core: " + ", ".join(
                f"{name} {said(interval(b), 3)} ({steps[name]} steps)" for name, b in timed.items())}
