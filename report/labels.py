"""Short names of groups for legends: no more choices than it takes to tell them apart."""

import json
from collections.abc import Sequence

from demkd.report.comparison import Comparison, FinishedRun

_FIRST = ("method", "student", "network")


def short_labels(runs: Sequence[FinishedRun], comparison: Comparison) -> dict[str, str]:
    """A label for each group's name: `de-mkd, kd_weight 4.0`; most other choices follow from the method."""
    choices = list({json.dumps(run.choices, sort_keys=True): run.choices for run in runs}.values())
    keys = {key for table in choices for key in table}
    told: list[tuple[str, ...]] = [()] * len(choices)
    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key)):
        finer = [(*before, json.dumps(table.get(key))) for before, table in zip(told, choices, strict=True)]
        if len(set(finer)) > len(set(told)):
            chosen.append(key)
            told = finer
    texts = [", ".join(_choice(key, table.get(key, "-")) for key in chosen or ["method"]) for table in choices]
    return dict(zip((group.name for group in comparison.groups), texts, strict=True))


def _choice(key: str, value: object) -> str:
    return str(value) if key in _FIRST else f"{key} {value}"
