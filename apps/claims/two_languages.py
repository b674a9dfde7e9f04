"""Eight words mean one thing in a first language and another in a second: is the first kept after the second?

As in the paper, what learns is not the optimiser but the levels, while they read; the model was trained to
read streams of random pairs of languages. Here a pair that is new comes as one stream, four segments of
each language, every word with its meaning once in each. Attention begins anew with every segment, so only
the levels can keep a language; asking teaches nothing. Judged is accuracy at the end on both languages:
whoever does not learn the second has nothing to forget the first for.

Every number of levels learns each language when it comes, and then loses the first; of one level, as wide as
all, most is left. What the runs show of the cause: a language is known after one segment, and the fastest
level alone moves that soon. Set it back to its start, and little above chance is left: the slow levels hold
almost nothing that could be kept. Nor are they overwritten: the first language is lost before those of chunk sizes
4 and 8 move again. With smaller slow steps, wider levels, or training that asks for both languages at the
end, four levels do not keep more than one either. A task so small that one level learns it at once may be the
reason, or training of first order, which holds still what the levels have learned: neither was varied. The
paper's one level is another: MLPs that stand still, so that only attention learns in context. It is not here.
"""

from __future__ import annotations

from typing import Any

from apps.claims.streams import by_levels
from apps.claims.study import Study
from apps.tasks import two_meanings
from config import Config

PAPER = ("two languages in turn: in-context learning over static MLPs forgets; one, two, three additional levels "
         "forget less (Fig. 8)")


def measure(study: Study) -> dict[str, Any]:
    words, meanings = 8, 8
    return by_levels(study, lambda rng, batch: two_meanings(rng, batch, words, meanings), 2, 4, study.steps(80), Config(
        width=32, layers=1, heads=2, segment=2 * words, vocabulary=words + meanings + 2, mixer="attention"),
        1 / meanings)
