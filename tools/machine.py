"""What does this machine offer, and what would a run take of it?  The doctor, the dry run, and where a run runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
import platform
import re
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import hope
import kernels
import optimizers
from config import PRESETS, Config, Training
from hope import Hope
from kernels import ahead
from tools.console import amount, duration, report
from tools.timetable import timetable


def versions() -> dict[str, str]:
    """Of Python and of what is installed for it."""
    found = {"python": platform.python_version()}
    for package in ("numpy", "numba", "tqdm", "matplotlib"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> str:
    """The processor, its cores and the memory, in words."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux only
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {cores()}, {amount(memory())} of memory"


def cores() -> str:
    """How many of them this process may use."""
    n = ahead.cores()
    return f"{n} core{'s' * (n != 1)}"


def memory() -> float:
    """Bytes of memory in this machine; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def choose(device: str, matmul: str = "float32") -> tuple[Any, str]:
    """gpu/ if a GPU is to be used, else None; and the choice in words. ValueError says why there is no GPU.

    Nothing of ours imports gpu/: this name is all there is of it, and only to hand it to Python when a run begins.
    """
    place = "the CPU"
    if device != "cpu":
        try:
            gpu = importlib.import_module("gpu")
            if not (why := gpu.problem()):
                return gpu, gpu.describe()
        except ModuleNotFoundError as error:
            why = f"there is no {error.name}: this checkout is not whole"
        if device == "cuda":
            raise ValueError(f"device cuda: {why}")
        place = f"the CPU ({why})"
    if matmul != "float32":
        raise ValueError(f"matmul {matmul} is for a GPU, and this run is on {place}; --matmul float32")
    return None, place


# Without training -------------------------------------------------------------------------------------------


def doctor() -> None:
    """Print what this machine offers."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    limit = os.environ.get("NUMBA_NUM_THREADS")
    gpu, place = choose("auto")
    seconds = one_layer(PRESETS["tiny"][0], 4)[1]  # compiles whatever is not in the cache
    report({
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "machine": f"{machine()}, {platform.platform()}",
        "BLAS": f"{blas['name']} {blas['version']}",
        "threads": f"{cores()}, " + (f"limited to {limit}" if limit else "no limit (--threads sets one)"),
        "kernels": f"compiled: {', '.join(kernels.compiled()) or 'none, plain NumPy runs, slower'}",
        "cache": cache(),
        "GPU": f"usable: {place}" if gpu else f"not usable: {place.removeprefix('the CPU (')[:-1]}",
        "speed": f"{1 / seconds:,.0f} tokens/s through one layer of the preset tiny, there and back",
    })


def cache() -> str:
    """Where compiled kernels are kept."""
    if not kernels.JIT:
        return "none: nothing is compiled"
    if folder := kernels.cache_folder():
        return str(folder)
    return "none: no folder can be written, so every start compiles again (NUMBA_CACHE_DIR names one that can)"


def dry_run(preset: str, config: Config, training: Training) -> None:
    """Print what a run would take: from shapes, and from one layer that is measured."""
    model, tokens = Hope(config, None), training.batch * config.segment
    weights, flops = 4 * hope.count(config), hope.flops_per_token(config)
    kept, (memories, levels) = optimizer_bytes(model, training), state_bytes(model)
    remembered, seconds = one_layer(config, training.batch)
    graph, total = remembered * config.layers * tokens, tokens * training.accumulate * training.steps
    print(f"{preset}, without training it:")
    report({
        "parameters": f"{hope.count(config):,}, {amount(weights)}",
        "state": f"{amount(memories)} per sequence; learning while reading adds {amount(levels)}",
        "FLOPs": f"{flops:,} per token to read, {3 * flops:,} to train",
        "memory": f"about {amount(2 * weights + kept + graph)}: weights and gradients {amount(2 * weights)}, "
                  f"{training.optimizer} {amount(kept)}, one step's way back {amount(graph)} (estimate)",
        "data": f"{total:,} tokens in {training.steps:,} steps of {tokens * training.accumulate:,}",
        "duration": f"about {duration(total * seconds * config.layers)} here (estimate: one layer, timed)",
    })
    print("\nwhat moves when (chunk: tokens between two moves; frequency: the slowest has 1; reach: how many tokens a\n"
          "gradient is carried back through the moves):")
    print(f"{'':52}{'chunk':>12}{'frequency':>12}{'reach':>8}")
    for name, chunk, frequency, reach in timetable(config, tokens * training.accumulate):
        print(f"  {name:50}{chunk:>12,}{frequency:>12,.4g}{reach:>8,}" if chunk else
              f"  {name:50}{'never':>12}{'∞':>12}{reach:>8,}")


def state_bytes(model: Hope) -> tuple[int, int]:
    """Running state of a sequence after a segment: its memories, and what its levels add when they learn."""
    memories = sum(block.mixer.cost(model.config.segment).numbers for block in model.blocks)
    levels = sum(p.size * (1 + (level.chunk > 1))  # the drift, and what is gathered until the level is due
                 for block in model.blocks for level in block.cms.levels for p in level.parameters())
    return 4 * memories, 4 * levels


def optimizer_bytes(model: Hope, training: Training) -> int:
    """What the optimiser keeps: found by one step on a small stand-in for every group, and scaled up."""
    total = 0.0
    for group in model.groups(training.weight_decay):
        shape = (64, 64)[:group["params"][0].ndim]
        toy = SimpleNamespace(data=np.ones(shape, np.float32), grad=np.ones(shape, np.float32), tap=None)
        optimizer = optimizers.build(training.optimizer, [group | {"params": [toy]}], training.lr,
                                     **training.rung())
        optimizer.step()
        kept = sum(np.asarray(value).nbytes for value in optimizer.state[0].values())
        total += kept / toy.data.size * sum(p.size for p in group["params"])
    return round(total)


def expect_room(config: Config, batch: int = 1) -> None:
    """ValueError if this machine cannot hold what is trained, or what a block takes in, which the way back needs."""
    try:
        weights = hope.count(config)
    except ValueError:  # of NumPy, for arrays that no machine could address
        raise ValueError("no machine can address the weights of such a model; choose a smaller one") from None
    taken, here = 4 * batch * config.segment * config.width * config.layers, memory()
    for what, least in (("weights, gradients and two moments", 16 * weights), (f"a batch of {batch:,}", taken)):
        if least > here:
            raise ValueError(f"{what} alone take{'s' * (least == taken)} {amount(least)}, this machine has "
                             f"{amount(here)}; --dry-run says what a run would take")


def of_one_layer(config: Config) -> Hope:
    """The same model with one layer, and with one level if there is one in each block."""
    n = 1 if config.cms == "spread" else len(config.chunks)
    one = replace(config, layers=1, chunks=config.chunks[:n], level_rates=config.level_rates[:n])
    return Hope(one, np.random.default_rng(0))


def one_layer(config: Config, batch: int) -> tuple[float, float]:
    """Bytes kept for the way back, and seconds there and back, per token and layer: measured on one layer."""
    model, length = of_one_layer(config), min(config.segment, 512)
    rows = max(1, min(batch, 2**19 // (config.width * length)))
    tokens = np.zeros((rows, length + 1), dtype=np.int64)
    tracemalloc.start()
    held = model.loss(tokens)
    remembered, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held[0].backward()
    del held
    started = time.perf_counter()  # only now is everything compiled
    model.loss(tokens)[0].backward()
    return remembered / tokens[:, 1:].size, (time.perf_counter() - started) / tokens[:, 1:].size


def fitting(config: Config, training: Training, gpu: Any) -> str:
    """What would fit, for a run that did not: one sequence through one layer is measured, where the run was."""
    small = "not even one sequence would fit; choose a smaller --segment, --width or --layers"
    try:
        if gpu:
            each = gpu.held(gpu.to_device(of_one_layer(config)), np.zeros((1, config.segment + 1), dtype=np.int64))
        else:
            each = one_layer(config, 1)[0] * config.segment
    except MemoryError:
        return small
    weights, kept = 4 * hope.count(config), optimizer_bytes(Hope(config, None), training)
    room = (gpu.memory() if gpu else memory()) - 2 * weights - kept
    batch = min(int(0.7 * room / (each * config.layers)), training.batch // 2)  # the way back needs room, too
    return f"--batch {batch} would fit (estimate)" if batch > 0 else small
