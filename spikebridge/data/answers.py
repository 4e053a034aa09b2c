"""What can be said of a data set's classes before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from spikebridge.data.task import UNKNOWN

__all__ = ["remarks"]

_VERBS = {"valid": "validate on", "test": "test on"}
_NAMED = 5  # classes, of those that are never trained


def remarks(classes: Mapping[str, Tensor]) -> Iterator[str]:
    """Sentences on classes, whole numbers by split, that no network can learn or that never occur.

    A network has an output for each number up to the largest, those without a sample included.
    """
    trained = _known(classes["train"])
    for split, part in classes.items():
        known = part[part != UNKNOWN]
        never = ~torch.isin(known, trained)
        if never.any():
            yield (
                f"{100 * float(never.double().mean()):.3g} % of the answers to "
                f"{_VERBS.get(split, split)} are of classes that no sample trains and no network "
                f"can learn: {_listed(known[never].unique())}"
            )
    seen = torch.cat([_known(part) for part in classes.values()]).unique()
    absent = torch.arange(int(seen.max()) + 1)
    absent = absent[~torch.isin(absent, seen)]
    if len(absent):
        many = len(absent) > 1
        yield (
            f"class{'es' if many else ''} {_listed(absent)} never occur{'' if many else 's'}: "
            f"{'their outputs are' if many else 'its output is'} of no use; classes are numbered "
            "from 0"
        )


def _known(classes: Tensor) -> Tensor:
    return classes[classes != UNKNOWN].unique()


def _listed(classes: Tensor) -> str:
    shown = ", ".join(map(str, classes[:_NAMED].tolist()))
    return shown + (f" and {len(classes) - _NAMED:,} more" if len(classes) > _NAMED else "")
