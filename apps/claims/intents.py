"""Twelve intents arrive in three groups, each a new keyword and its label; at the end all labels compete.

As in two-languages the levels learn while they read, here three segments of each group. Keywords and labels
are dealt to intents at random in every stream, and no two intents share one: what is forgotten is not
contradicted by what comes later, it is overwritten. One level keeps all, two and three keep nearly all; four lose
most of the first group, and their slow levels alone know little. Where the four lose it was not looked into
further. (Twenty intents in five groups were tried first: more than one level did not learn them.) The paper's
baselines, MLPs that stand still, elastic weights and an external learner, are not here.
"""

from __future__ import annotations

from typing import Any

from apps.claims.streams import by_levels
from apps.claims.study import Study
from apps.tasks import grouped_intents
from config import Config

PAPER = "class-incremental intents: Hope above in-context learning, EWC and InCA (Fig. 6)"


def measure(study: Study) -> dict[str, Any]:
    groups, classes = 3, 4
    labels = groups * classes
    return by_levels(study, lambda rng, batch: grouped_intents(rng, batch, groups, classes), groups, 3, study.steps(80),
                     Config(width=32, layers=1, heads=2, segment=2 * classes, vocabulary=2 * labels + 1,
                            mixer="attention"), 1 / labels, readings=())
