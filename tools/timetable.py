"""What moves when, in any model?  The table of the paper's Fig. 5."""

from __future__ import annotations

from config import Config
from hope import make_mixer
from titans import SelfModifyingTitans


def timetable(config: Config, step_tokens: int) -> list[tuple[str, int, float, int]]:
    """What moves when [§7.1]: (component, chunk in tokens, frequency, how many tokens a gradient is carried back).

    step_tokens: what one step of the optimiser reads. A chunk is what a component takes in between two moves (0: it is
    computed anew for every token, and has no weights that move); frequencies are relative: the slowest has 1, and
    C_ℓ = max C/f_ℓ. A gradient is carried back through the moves that happen within one window.
    """
    window, in_context = config.segment, config.in_context
    tick = window // config.ticks if in_context else step_tokens
    mixer = make_mixer(None, config)
    stopped = {name for part in getattr(mixer, "mixers", [mixer])  # only Titans can take their writes as constants
               if isinstance(part, SelfModifyingTitans) and not config.through_writes for name in part.clocks}
    rows = [(name, chunk, 1 if name in stopped else window) for name, chunk in mixer.clocks.items()]
    rows += [(f"level {n + 1}, chunk size {chunk}", chunk * tick, window if in_context and chunk < config.ticks else 1)
             for n, chunk in enumerate(config.chunks)]
    if in_context:
        rows.append(("initial states of the levels", step_tokens, 1))
    rows.append(("embedding, projections, initial states of memories", step_tokens, 1))
    slowest = max(chunk for _, chunk, _ in rows)
    return [(name, chunk, slowest / chunk if chunk else float("inf"), reach) for name, chunk, reach in rows]
