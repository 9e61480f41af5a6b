"""Steps by the names that people see."""

from kdscale.config import STRATEGIES
from kdscale.experiment.context import StepId


def step_id(name: str) -> StepId:
    """`str` of it is the name: "tokens@far:2", "student:finetune:tiny"."""
    head, _, rest = name.partition(":")
    kind, _, collection = head.partition("@")
    if kind == "student":
        strategy, _, shape = rest.partition(":")
        found = StepId(kind, STRATEGIES[strategy], shape)
    elif kind == "lm":
        found = StepId(kind, shape=rest)
    else:
        found = StepId(kind, teacher=int(rest or 1), collection=collection or None)
    assert str(found) == name
    return found
