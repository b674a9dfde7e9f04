"""How fast is the delta rule?  Our kernels against chunk-parallel PyTorch and JAX, at several shapes.

The gated rule: o_t = S_{t−1} q_t, S_t = S_{t−1}(a_t I − b_t k_t k_tᵀ) + c_t v_t k_tᵀ with b = aβ, c = β.
Forward is o and the last state; backward is the cotangents of all seven inputs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Job, agree, race, ratio, take_turns
from benchmarks.report import Result, Table, Target, cell
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHAPES = [(4, 4, 512, 64), (1, 4, 4096, 64), (16, 4, 512, 64), (4, 2, 512, 128), (4, 8, 512, 32)]  # B,H,T,d
CHUNK = 64
WANTED = {"PyTorch": 5.0, "PyTorch, row by row": 8.0}  # times ours
NAMES = ("q", "k", "v", "log_a", "b", "c", "S")


def problem(shape: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The seven inputs, in the order of NAMES, for N = B·H sequences, and the cotangents of o and S."""
    batch, heads, time, d = shape
    N, rng = batch * heads, np.random.default_rng(0)
    q, k, v = (rng.standard_normal((N, time, d), np.float32) for _ in range(3))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    log_a = -rng.uniform(0, 0.1, (N, time)).astype(np.float32)
    beta = rng.uniform(0, 1, (N, time)).astype(np.float32)
    S = 0.1 * rng.standard_normal((N, d, d), np.float32)
    bars = [rng.standard_normal(v.shape, np.float32), rng.standard_normal(S.shape, np.float32)]
    return [q, k, v, log_a, np.exp(log_a) * beta, beta, S], bars


def named(results: list[Any], bars: list[Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in zip(["o", "last S", *(f"cotangent of {n}" for n in NAMES)],
                                                   [*results, *bars], strict=True)}


def ours(shape: list[int], backward: bool) -> Contender:
    """The kernels, as the model calls them."""
    from kernels import delta_rule

    inputs, cotangents = problem(shape)

    def both() -> tuple[Any, list[Any]]:
        found, back = delta_rule.vjp(*inputs)  # type: ignore[misc]
        return found, back(*cotangents) if backward else []

    def answer() -> dict[str, np.ndarray]:
        found, back = delta_rule.vjp(*inputs)  # type: ignore[misc]
        return named(found, back(*cotangents))
    return Contender(lambda: both() is None, answer)


def in_torch(shape: list[int], backward: bool, system: str = "solve", compiled: bool = False) -> Contender:
    """Chunk-parallel PyTorch; the triangular systems of all chunks at once, then a loop over chunks.

    system: "solve" is solve_triangular; "rows" inverts row by row, as public references do.
    """
    import torch

    arrays, bars = problem(shape)
    inputs = [torch.from_numpy(x).requires_grad_(backward) for x in arrays]
    cotangents = [torch.from_numpy(x) for x in bars]

    def rule(q: Any, k: Any, v: Any, log_a: Any, b: Any, c: Any, S: Any) -> tuple[Any, Any]:
        Q, K, V, log_a, b, c = (x.unflatten(1, (-1, CHUNK)) for x in (q, k, v, log_a, b, c))  # (N,chunks,C,…)
        log_g = log_a.cumsum(-1)
        before, last = log_g - log_a, log_g[..., -1:]
        earlier = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril(-1)
        ratio = (before[..., :, None] - log_g[..., None, :]).masked_fill(~earlier, -torch.inf).exp()
        b, c, before = b[..., None], c[..., None], before.exp()[..., None]
        L = b * ratio * (K @ K.mT)
        right = torch.cat([c * V, b * before * K], -1)
        if system == "solve":
            solved = torch.linalg.solve_triangular(L, right, upper=False, unitriangular=True)
        else:
            inverse = -L
            for i in range(1, CHUNK):
                row, above = inverse[..., i, :i].clone(), inverse[..., :i, :i].clone()
                inverse[..., i, :i] = row + (row[..., None] * above).sum(-2)
            solved = (inverse + torch.eye(CHUNK)) @ right
        written, forgotten = solved.split(V.shape[-1], -1)
        QK, Q, K = ratio * (Q @ K.mT), before * Q, (last - log_g).exp()[..., None] * K
        whole, reads = last.exp()[..., None], []
        for i in range(Q.shape[1]):
            U = written[:, i] - forgotten[:, i] @ S.mT
            reads.append(Q[:, i] @ S.mT + QK[:, i] @ U)
            S = whole[:, i] * S + U.mT @ K[:, i]
        return torch.cat(reads, 1), S

    call = torch.compile(rule, dynamic=False) if compiled else rule

    def both() -> tuple[Any, list[Any]]:
        o, last = call(*inputs)
        return [o, last], torch.autograd.grad([o, last], inputs, cotangents) if backward else []

    def answer() -> dict[str, np.ndarray]:
        for x in inputs:
            x.requires_grad_()
        o, last = call(*inputs)
        found = torch.autograd.grad([o, last], inputs, cotangents)
        return named([x.detach().numpy() for x in (o, last)], [x.numpy() for x in found])
    if compiled:
        both()  # this is when the compiler runs, if it can
    return Contender(lambda: both() is None, answer)


def in_jax(shape: list[int], backward: bool) -> Contender:
    """Chunk-parallel JAX, compiled: the same with a scan over chunks."""
    if os.environ.get("OMP_NUM_THREADS") == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # it has as many threads as it sees cores
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu")
    arrays, cotangents = problem(shape)
    inputs = [jnp.asarray(x) for x in arrays]
    bars = tuple(jnp.asarray(x) for x in cotangents)

    def rule(q: Any, k: Any, v: Any, log_a: Any, b: Any, c: Any, S: Any) -> tuple[Any, Any]:
        N = len(q)
        q, k, v, log_a, b, c = (x.reshape(N, -1, CHUNK, *x.shape[2:]).swapaxes(0, 1)
                                for x in (q, k, v, log_a, b, c))
        log_g = jnp.cumsum(log_a, -1)
        before, last = log_g - log_a, log_g[..., -1:]
        earlier = jnp.tril(jnp.ones((CHUNK, CHUNK), bool), -1)
        ratio = jnp.exp(jnp.where(earlier, before[..., :, None] - log_g[..., None, :], -jnp.inf))
        b, c, before = b[..., None], c[..., None], jnp.exp(before)[..., None]
        right = jnp.concatenate([c * v, b * before * k], -1)
        solved = jax.scipy.linalg.solve_triangular(b * ratio * (k @ k.mT) + jnp.eye(CHUNK), right, lower=True,
                                                   unit_diagonal=True)
        written, forgotten = jnp.split(solved, 2, -1)

        def chunk(S: Any, x: Any) -> tuple[Any, Any]:
            written, forgotten, q, qk, k, whole = x
            U = written - forgotten @ S.mT
            return whole * S + U.mT @ k, q @ S.mT + qk @ U
        S, o = jax.lax.scan(chunk, S, (written, forgotten, before * q, ratio * (q @ k.mT),
                                       jnp.exp(last - log_g)[..., None] * k, jnp.exp(last)[..., None]))
        return o.swapaxes(0, 1).reshape(N, -1, o.shape[-1]), S

    def there_and_back(*inputs: Any) -> tuple[Any, Any]:
        results, pull = jax.vjp(rule, *inputs)
        return results, pull(bars)
    call = jax.jit(there_and_back if backward else rule)
    jax.block_until_ready(call(*inputs))  # compiles
    return Contender(lambda: jax.block_until_ready(call(*inputs)) is None,
                     lambda: named(*there_and_back(*inputs)))


def run(options: Options) -> Result:
    """Milliseconds forward, and forward and backward."""
    shapes = [(1, 2, 128, 32)] if options.small else SHAPES
    table = Table("The gated delta rule",
                  ["B, H, T, d", "threads", "pass", "program", "ms", "quartiles", "time, ours = 1"])
    slowdowns: dict[tuple[str, int], float | None] = {}
    worst, others = 0.0, []
    for shape in shapes:
        for threads in options.threads:
            for backward in (False, True):
                given, port = {"shape": shape, "backward": backward}, "benchmarks.delta:in_torch"
                jobs = {"ours": Job("benchmarks.delta:ours", given),
                        "PyTorch": Job(port, given),
                        "PyTorch, row by row": Job(port, given | {"system": "rows"}),
                        "PyTorch, compiled": Job(port, given | {"compiled": True}, limit=300),
                        "JAX, compiled": Job("benchmarks.delta:in_jax", given, limit=120)}
                if threads > 1 and backward:
                    del jobs["JAX, compiled"]  # 0.10.2 hangs there: its two threads wait for one another
                if options.eager:
                    del jobs["PyTorch, compiled"]
                with race(jobs, threads, ("PyTorch, compiled", "JAX, compiled")) as lanes:
                    if backward:
                        worst = max(worst, agree(lanes, 1e-3))
                    others.append(take_turns(lanes, options.rounds, options.seconds / 6))
                    for name, lane in lanes.items():
                        low, high = (cell(1e3 * s) for s in lane.quartiles)
                        table.rows.append([", ".join(map(str, shape)), threads,
                                           "both" if backward else "forward", name, 1e3 * lane.median,
                                           f"{low} – {high}", ratio(lane, lanes["ours"])])
                    if shape == shapes[0] and backward:
                        for name in WANTED:
                            slowdowns[name, threads] = ratio(lanes[name], lanes["ours"]) if name in lanes else None
    targets = [Target.least(f"forward and backward at {', '.join(map(str, shapes[0]))}: time of {name} (eager), "
                            f"ours = 1, {n} thread(s)", slow, WANTED[name]) for (name, n), slow in slowdowns.items()]
    notes = [f"o, the last S and all cotangents differ by at most {worst:.1g} (relative norm)."]
    return Result("delta", [table], targets, notes, float(np.mean(others)))
