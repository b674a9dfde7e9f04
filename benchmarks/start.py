"""How long until something happens?  From `python train.py --preset tiny --steps 1` to its end.

Cold is with no kernel compiled yet, warm with all of them in the cache on disk. Beside it a script that
imports torch and takes one step with a Transformer of that size: the least that a PyTorch user waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import ROOT, THREADS, Failed, Others
from benchmarks.report import Result, Table, Target, cell

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

TORCH = """
import torch
from torch import nn
embedding, head = nn.Embedding(256, 32), nn.Linear(32, 256)
layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
parameters = [p for part in (embedding, model, head) for p in part.parameters()]
optimizer = torch.optim.AdamW(parameters, fused=True)
tokens = torch.randint(0, 256, (4, 65))
mask = nn.Transformer.generate_square_subsequent_mask(64)
logits = head(model(embedding(tokens[:, :-1]), mask=mask, is_causal=True))
nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
optimizer.step()
"""


def seconds(command: list[str], said: str = "", **env: str) -> float:
    """How long a command runs to which this is said; Failed if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, input=said, capture_output=True,
                          encoding="utf-8", check=False)
    if done.returncode:
        raise Failed(f"{command[1]}: {(done.stderr.strip().splitlines() or ['no word of why'])[-1]}")
    return time.perf_counter() - started


def run(options: Options) -> Result:
    """Seconds, cold and warm, and of the script."""
    times: dict[str, list[float]] = {"cold": [], "warm": [], "PyTorch script": []}
    env, others = dict.fromkeys(THREADS, str(max(options.threads))), Others()
    with tempfile.TemporaryDirectory() as scratch:
        def ours(cache: str) -> float:
            with tempfile.TemporaryDirectory() as out:
                return seconds([sys.executable, "train.py", "--preset", "tiny", "--steps", "1", "--out",
                                str(Path(out) / "run")], NUMBA_CACHE_DIR=str(Path(scratch) / cache), **env)
        for i in range(2):
            times["cold"].append(ours(f"cache-{i}"))
        for _ in range(options.rounds):
            times["warm"].append(ours("cache-0"))
            try:
                times["PyTorch script"].append(seconds([sys.executable, "-c", TORCH], **env))
            except Failed as error:
                if "No module named 'torch'" not in str(error):
                    raise
        busy = others.share()
    table = Table("Seconds from the command to its end", ["start", "median", "quartiles", "runs"])
    for name, found in times.items():
        if found:
            low, high = (cell(float(s)) for s in np.quantile(found, [0.25, 0.75]))
            table.rows.append([name, float(np.median(found)), f"{low} – {high}", len(found)])
    warm, theirs = float(np.median(times["warm"])), times["PyTorch script"]
    slower = float(np.median(np.divide(theirs, times["warm"]))) if theirs else None
    targets = [Target.most("warm", warm, 1.5, " s"),
               Target.least("time of the PyTorch script, warm = 1", slower, 1.0),
               Target.most("cold", float(np.median(times["cold"])), 15.0, " s")]
    return Result("start", [table], targets, [], busy)
