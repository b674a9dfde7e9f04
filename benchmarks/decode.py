"""How fast does it write?  Tokens per second of one sequence, after a context of 10² to 10⁶ tokens.

`nano` against the Transformer of as many parameters with a cache of keys and values, ours and PyTorch's. The
limit is the memory: all weights and the state have to be read once for every token.

Hope really reads its context; what a Transformer has read is made up, for its time does not depend on it.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Job, agree, race, take_turns
from benchmarks.report import Result, Table, Target, cell
from benchmarks.training import SMALL, load, prepare
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

COMPARED = 1000  # tokens read before, where programs are compared
PUBLIC = ("Public figures: a cached PyTorch Transformer 270 tokens/s after 512 tokens and 110 after 4,096, "
          "the fastest peers with linear attention 440 to 660.")


def ours(folder: str, batch: int = 1) -> Contender:
    """One more token of every sequence by our model, after each context that is asked for."""
    from autograd import Tensor, no_grad
    from hope import State

    model = load(folder)
    read, states = State.start(model.config), {0: State.start(model.config)}
    rng, attention = np.random.default_rng(0), model.config.mixer == "attention"
    begun: dict[int, tuple[State, int]] = {}  # by context: the state and its bytes, to which attention goes back
    gone: dict[int, int] = {}  # tokens since then

    def after(context: int) -> State:
        """The state after a context: read on from the longest one before, or, of attention, made up."""
        if attention:
            one = model(np.zeros((batch, 1), np.int64), State.start(model.config))[1]
            return one.map(lambda t: Tensor(np.repeat(t.data, context, axis=2)))
        past = max(n for n in states if n <= context)
        read = states[past]
        while past < context:
            n = min(512, context - past)
            read = model(rng.integers(0, 256, (batch, n)), read)[1]
            past += n
        return read

    @no_grad()
    def step(context: int) -> int:
        if context not in states:
            if attention:
                states.clear(), begun.clear()  # caches of long contexts do not fit side by side
            states[context] = after(context)
            begun[context] = states[context], states[context].nbytes
        gone[context] = gone.get(context, 0) + 1
        if attention and gone[context] % (1 + context // 20) == 0:  # else its context would grow
            states[context] = begun[context][0]
        _, states[context] = model.step(np.zeros((batch, 1), np.int64), states[context])
        return begun[context][1]

    @no_grad()
    def answer() -> dict[str, np.ndarray]:
        """The logits after every token of a text, read one by one."""
        tokens = np.load(Path(folder) / "tokens.npy")[0, :1, :100]
        state, logits = read, []
        for t in range(tokens.shape[1]):
            said, state = model.step(tokens[:, t:t + 1], state)
            logits.append(said.data)
        return {"logits": np.concatenate(logits, 1)}
    weights = sum(p.data.nbytes for p in model.parameters())
    return Contender(step, answer, {"weights": weights})


def run(options: Options) -> Result:
    """Tokens per second against the context, and the share of the bandwidth limit."""
    from config import PRESETS
    from hope import transformer

    nano = replace(PRESETS["nano"][0], **(SMALL if options.small else {}))
    contexts = [100, 1000] if options.small else [100, 1000, 10_000, 100_000, 1_000_000]
    longest = {"Hope": contexts[-1], "Transformer, ours": 10_000, "Transformer, PyTorch": 100_000}
    table = Table("Tokens per second of one sequence",
                  ["program", "threads", "context", "tokens/s", "quartiles", "MB per token",
                   "share of the limit, from memory", "from the cache"])
    batches = Table(f"Several sequences after {COMPARED:,} tokens each",
                    ["program", "threads", "sequences", "tokens/s", "ms per token of all"])
    shares: dict[int, list[float]] = {}
    rates: dict[tuple[str, int, int], float] = {}
    flats: dict[int, float] = {}
    notes, others = [], []
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        prepare(one, nano, 1, 1)
        prepare(other, transformer(nano), 1, 1)
        programs = {"Hope": Job("benchmarks.decode:ours", {"folder": one}),
                    "Transformer, ours": Job("benchmarks.decode:ours", {"folder": other}),
                    "Transformer, PyTorch": Job("benchmarks.torch_port:decoding", {"folder": other})}
        for names in (("Hope", "PyTorch's Hope, all tokens at once"), list(programs)[1:]):
            whole = Job("benchmarks.torch_port:reading", {"folder": one})
            with race({n: programs.get(n, whole) for n in names}, 1) as lanes:
                if len(lanes) > 1:
                    notes.append(f"{' and '.join(lanes)}: the logits of 100 tokens differ by at most "
                                 f"{agree(lanes, 1e-3):.1g} (relative norm).")
        for threads in options.threads:
            # matrices larger than any cache, and as large as all weights
            limits = [f"{size} by a vector" for size in ("20 MB" if options.small else "1 GB", "20 MB")]
            jobs = {n: Job("benchmarks.ceiling:product", {"shape": n}) for n in limits}
            with race(jobs, threads) as lanes:
                take_turns(lanes, options.rounds, 10)
                bandwidth = [lanes[n].process.about["bytes"] / lanes[n].median for n in limits]
            notes.append(f"{threads} thread(s): memory is read at {bandwidth[0] / 1e9:.1f} GB/s, the last "
                         f"cache, in which the weights fit, at {bandwidth[1] / 1e9:.1f} GB/s.")
            for name, program in programs.items():  # one after another: only Hope's contexts fit side by side
                jobs = {str(n): Job(program.make, program.arguments, {"context": n}, limit=3600)
                        for n in contexts if n <= longest[name]}
                groups = [jobs] if name == "Hope" else [{n: job} for n, job in jobs.items()]
                for group in groups:
                    with race(group, threads) as lanes:
                        others.append(take_turns(lanes, options.rounds, options.seconds))
                        for context, lane in lanes.items():
                            low, high = (cell(1 / s) for s in lane.quartiles[::-1])
                            state = lane.values[0] or 0
                            read: Any = (lane.process.about or {}).get("weights", 0) + state
                            share = [read / lane.median / b if read else None for b in bandwidth]
                            table.rows.append([name, threads, int(context), 1 / lane.median,
                                               f"{low} – {high}", read / 1e6 if read else None, *share])
                            if name == "Hope":
                                shares[threads] = share
                            rates[name, threads, int(context)] = 1 / lane.median
                        if name == "Hope":
                            times = [lane.median for lane in lanes.values()]
                            flats[threads] = max(times) / min(times) - 1
            for batch in (2,) if options.small else (8, 32):
                jobs = {n: Job(programs[n].make, programs[n].arguments | {"batch": batch}, {"context": COMPARED})
                        for n in programs}
                with race(jobs, threads) as lanes:
                    others.append(take_turns(lanes, options.rounds, options.seconds))
                    batches.rows += [[name, threads, batch, batch / lane.median, 1000 * lane.median]
                                     for name, lane in lanes.items()]
    notes.append(PUBLIC)
    ahead = {n: {context: rates["Hope", n, context] / rate for (name, threads, context), rate in rates.items()
                 if "PyTorch" in name and threads == n} for n in options.threads}
    targets = [t for n in options.threads for t in (
        Target.least(f"share of the limit of memory, {n} thread(s)", shares[n][0], 0.6),
        Target.least(f"share of the limit of the last cache, {n} thread(s)", shares[n][1], 0.6),
        Target.most(f"time per token from 100 to {contexts[-1]:,} tokens: slowest over fastest, − 1, "
                    f"{n} thread(s)", flats[n], 0.05),
        Target.least(f"tokens/s after {COMPARED:,} tokens, PyTorch's Transformer = 1, {n} thread(s)",
                     ahead[n].get(COMPARED), 1.5),
        Target.least(f"the same after 100 to {longest['Transformer, PyTorch']:,}, the least, {n} thread(s)",
                     min(ahead[n].values(), default=None), 1.0))]
    return Result("decode", [table, batches], targets, notes, float(np.mean(others)))
