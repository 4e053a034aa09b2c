"""Values of a JSON file, checked as they are taken."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikebridge.base.quantities import number


class Fields:
    """An object of a JSON file whose values are checked as they are taken.

    Raises ValueError, which names the value, where one is missing or not as it must be.
    """

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        self.value = value

    def text(self, name: str) -> str:
        found = self.value.get(name)
        if not isinstance(found, str):
            raise ValueError(f'"{name}" is no text')
        return found

    def number(self, name: str, least: float | None = None) -> float:
        found = number(self.value.get(name))
        if found is None or (least is not None and found < least):
            raise ValueError(f'"{name}" is no number' + (f" from {least:g}" if least else ""))
        return found

    def count(self, name: str) -> int:
        return int(self.number(name, 0))

    def fields(self, name: str) -> Fields:
        return Fields(self.value.get(name), f'"{name}"')

    def objects(self, name: str) -> list[Fields]:
        return [Fields(item, f'an entry of "{name}"') for item in self._list(name)]

    def array(self, name: str, *shape: int | None) -> np.ndarray:
        """Finite numbers of a shape, whose sides may be left open by None but are not 0."""
        try:
            found = np.array(self._list(name), np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f'"{name}" is no list of numbers') from error
        fits = found.ndim == len(shape) and all(
            side > 0 and side == (wanted or side)
            for side, wanted in zip(found.shape, shape, strict=True)
        )
        if not fits or not np.isfinite(found).all():
            sides = " x ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(f'"{name}" does not hold {sides} finite numbers')
        return found

    def _list(self, name: str) -> list[Any]:
        found = self.value.get(name)
        if not isinstance(found, list) or not found:
            raise ValueError(f'"{name}" is no list, or an empty one')
        return found
