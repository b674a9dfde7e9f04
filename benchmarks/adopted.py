"""How fast does an adopted model read and write?  A Llama of 135 M parameters, here and in transformers.

Both load the same random weights from one folder, in float32, and answer the same. A prompt is read with the logits of
its last token; then one token after another is written behind it, from the cache of what was read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Job, agree, race, ratio, take_turns
from benchmarks.report import Result, Table, Target
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHAPE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
         "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
         "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 2048, "tie_word_embeddings": True,
         "bos_token_id": 0, "eos_token_id": 0}  # of SmolLM-135M
SMALL = {"vocab_size": 256, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 64}


def prepare(folder: str, shape: dict[str, Any], prompt: int) -> None:
    """A folder of theirs with random weights, and a prompt."""
    from apps.adopt import architectures, models
    from hope import Hope

    rng = np.random.default_rng(0)
    models.write(Path(folder), Hope(architectures.config(shape, Path(folder)), rng), shape)
    np.save(Path(folder) / "prompt.npy", rng.integers(0, shape["vocab_size"], (1, prompt)))


def ours(folder: str) -> Contender:
    from apps.adopt import models
    from autograd import no_grad
    from hope import State

    model, prompt, one = models.read(Path(folder)), np.load(Path(folder) / "prompt.npy"), np.zeros((1, 1), np.int64)

    def read() -> tuple[np.ndarray, State]:
        with no_grad():
            x, state = model.read(prompt, last=1)
            return model.unembed(x).data, state
    first, state = read()

    def follow() -> np.ndarray:
        nonlocal state
        logits, state = model.step(one, state)
        return logits.data

    def step(work: str) -> None:
        read() if work == "prompt" else follow()
    return Contender(step, lambda: {"prompt": first, "next": follow()})


def theirs(folder: str) -> Contender:
    import os

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt, one = torch.tensor(np.load(Path(folder) / "prompt.npy")), torch.zeros((1, 1), dtype=torch.int64)

    @torch.inference_mode()
    def after(tokens: Any, cache: Any = None) -> tuple[np.ndarray, Any]:
        found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits.numpy(), found.past_key_values
    first, cache = after(prompt)

    def follow() -> np.ndarray:
        nonlocal cache
        logits, cache = after(one, cache)
        return logits

    def step(work: str) -> None:
        after(prompt) if work == "prompt" else follow()
    return Contender(step, lambda: {"prompt": first, "next": follow()})


def run(options: Options) -> Result:
    """Tokens per second of reading and of writing, and the most memory that each program held."""
    prompt, targets, notes, others = 512, [], [], []
    table = Table("A Llama of 135 M parameters, float32", [
        "program", "threads", "prompt of 512, tokens/s", "writing, tokens/s", "most memory, MB"])
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, SHAPE | (SMALL if options.small else {}), prompt)
        for threads in options.threads:
            jobs = {f"{name}, {work}": Job(f"benchmarks.adopted:{make}", {"folder": folder}, {"work": work})
                    for name, make in (("ours", "ours"), ("transformers", "theirs")) for work in ("prompt", "writing")}
            with race(jobs, threads) as lanes:
                pair = {name: lane for name, lane in lanes.items() if name.endswith("prompt")}
                if len(pair) > 1:
                    notes.append(f"{threads} thread(s): logits differ by {agree(pair, 1e-4):.1g} (relative norm).")
                others.append(take_turns(lanes, options.rounds, options.seconds))
                for name in ("ours", "transformers"):
                    if f"{name}, prompt" in lanes:
                        reads, writes = lanes[f"{name}, prompt"], lanes[f"{name}, writing"]
                        table.rows.append([name, threads, prompt / reads.median, 1 / writes.median,
                                           reads.process.peak / 1e6])
                if len(pair) > 1:
                    for work in ("prompt", "writing"):
                        mine, other = lanes[f"ours, {work}"], lanes[f"transformers, {work}"]
                        targets.append(Target.least(f"{work}: as fast as transformers, times, {threads} thread(s)",
                                                    ratio(other, mine), 1.0))
                    memory = [lane.process.peak for lane in pair.values()]
                    targets.append(Target.most(f"memory over that of transformers, {threads} thread(s)",
                                               memory[0] / memory[1], 1.0))
    return Result("adopted", [table], targets, notes, float(np.mean(others)))
