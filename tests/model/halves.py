"""A fourth method, for the tests: one trunk that only ever sees one half of the patches and is asked for the other."""

from model.masks import Plan
from model.method import Method

HALVES = Method(
    "halves",
    trunks=1,
    plans=lambda objective, patches, seed: (Plan(((patches // 2, patches - patches // 2),) * objective.groups),),
    score="biglearn_elbo",
)
