"""What .npz files of sequences hold: reading, and all that can be wrong with them.

A file has the arrays

    x        (n, T, I) inputs, numbers
    y        answers: classes (n,) or (n, T), whole numbers from 0; or numbers to predict, (n, O) or
             (n, T, O), floating-point.  -1 in place of a class: there is no answer
    lengths  (n,) how many of the T steps are real, the first ones; or
    mask     (n, T) 1 at the real steps, which follow each other, at whatever end the padding is

and no others.  Without lengths and mask all steps are real.  What stands at padding, NaN included,
is never read: it is set to 0 here, or to no answer.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikebridge.base.archives import ArchiveError, read_arrays
from spikebridge.data.files import DataError, is_twin
from spikebridge.data.task import UNKNOWN

__all__ = ["Answers", "Kind", "Samples", "read_samples"]

# More are taken for a mistake, such as y holding the numbers of rows: each costs a row of weights.
MOST_CLASSES = 100_000
NAMES = ("x", "y", "lengths", "mask")
_SHAPES = (
    "y of whole numbers (n,) or (n, T): classes; or of floating-point numbers (n, O) or "
    "(n, T, O): numbers to predict"
)
_SAVE = "save it by numpy.savez(path, x=x, y=y)"
_PAD = (
    "pad with numpy and say how long each is: lengths = [len(s) for s in sequences]; "
    "x = np.zeros((len(lengths), max(lengths), inputs), 'float32'); "
    "for i, s in enumerate(sequences): x[i, :len(s)] = s; "
    "np.savez(path, x=x, y=y, lengths=lengths); a y of one class per step is padded likewise"
)
Kind = Literal["class", "class at each step", "numbers", "numbers at each step"]
Answers = Literal["auto", "classes", "numbers"]


class Samples(NamedTuple):
    """What a file holds."""

    x: Tensor  # (n, T, I) float32, or uint8 where that is what the file has; 0 at padding
    y: Tensor  # (n,) or (n, T) int64, (n, O) or (n, T, O) float32
    kind: Kind
    lengths: Tensor  # (n,) int64, real steps
    unanswered: int = 0  # samples without any class, which were left out
    answered: bool = True  # False where the file has no y, which holds UNKNOWN or 0 then

    @property
    def padded(self) -> bool:
        """Whether some sample is shorter than T."""
        return int(self.lengths.min()) < self.x.shape[1]

    @property
    def answers(self) -> Tensor:
        """y without what stands at padding: classes (k,), or numbers (k, O)."""
        if not self.kind.endswith("at each step"):
            return self.y
        return self.y[torch.arange(self.x.shape[1]) < self.lengths.unsqueeze(1)]

    def take(self, index: np.ndarray) -> Samples:
        """The samples of the given numbers."""
        chosen = torch.from_numpy(index)
        return self._replace(x=self.x[chosen], y=self.y[chosen], lengths=self.lengths[chosen])

    def described(self) -> str:
        """Inputs and kind of y."""
        what = f"x (n, T, {self.x.shape[2]}) and y of one {self.kind}"
        if self.kind.startswith("class"):
            return what
        return what.replace("one numbers", f"{self.y.shape[-1]} numbers")


def read_samples(
    path: Path, answers: Answers = "auto", like: Samples | None = None, *, every: bool = False
) -> Samples:
    """The arrays of one file, checked; see the module.  Raises DataError.

    Args:
        path: the file.
        answers: what y holds; "auto" goes by its type, and refuses what is one-hot.
        like: what the file for training holds.
        every: keep samples without an answer too, and do without y.
    """
    arrays = _arrays(path, {"x"} if every else {"x", "y"})
    _check_types(path, arrays)
    x = arrays["x"]
    if x.ndim != 3 or 0 in x.shape:
        expected = "x of shape (n, T, I), each at least 1"
        raise DataError(path, expected, f"shape {x.shape}", "give x a sample, a time and an input")
    y = arrays.get("y")
    starts, lengths = _extent(path, arrays)
    kind = like.kind if y is None and like is not None else _kind_of(path, x, y, answers)
    each = kind.endswith("at each step")
    if starts.any():
        x = _to_the_front(x, starts)
        y = _to_the_front(y, starts) if each and y is not None else y
    real = np.arange(x.shape[1]) < lengths[:, None]
    x = _checked(path, "x", x, None if real.all() else real)
    extent = torch.from_numpy(lengths)
    if y is None:
        assert like is not None
        return Samples(_plain(x), _no_answers(like, x), kind, extent, answered=False)
    if answers == "auto" and like is None:
        _refuse_one_hot(path, x, y, real if each else None)
    if kind.startswith("numbers"):
        y = _checked(path, "y", y, real if each and not real.all() else None)
        return Samples(_plain(x), torch.from_numpy(y.astype(np.float32)), kind, extent)
    classes = torch.from_numpy(_classes(path, y, real if each else None))
    actual = Samples(_plain(x), classes, kind, extent)
    return actual if every else _with_answers(path, actual)


def _with_answers(path: Path, actual: Samples) -> Samples:
    """Without the samples that have no class at all."""
    known = actual.y != UNKNOWN
    known = known.any(1) if known.dim() == 2 else known
    if bool(known.all()):
        return actual
    if not bool(known.any()):
        have, remedy = "-1 alone, which stands for no answer", "give y the classes"
        raise DataError(path, "a class in y", have, remedy)
    kept = actual.take(known.nonzero().squeeze(1).numpy())
    return kept._replace(unanswered=len(known) - int(known.sum()))


def _arrays(path: Path, needed: set[str]) -> dict[str, np.ndarray]:
    """The arrays of a file, all of them known."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not is_twin(name)]
        names = [name.removesuffix(".npy") for name in members]
        actual = read_arrays(path, NAMES)
    except OSError as error:
        raise DataError(path, "an .npz file", str(error.strerror or error), _SAVE) from error
    except MemoryError as error:
        have = f"more than there is ({error})"
        raise DataError(path, "arrays that fit into memory", have, "give fewer samples") from error
    except (ArchiveError, zipfile.BadZipFile) as error:
        if "Python objects" in str(error):
            have = f"{error}, such as a list of arrays"
            raise DataError(path, "arrays of numbers", have, _PAD) from error
        expected = "a whole .npz file with arrays of numbers"
        raise DataError(path, expected, f"one that cannot be read ({error})", _SAVE) from error
    have = ", ".join(sorted(names)) or "none"
    if needed - actual.keys():
        raise DataError(path, "the arrays x and y", f"these arrays: {have}", _SAVE)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise DataError(
            path,
            "the arrays x and y and perhaps lengths or mask, no others",
            f"these arrays: {have}",
            f"rename {', '.join(unknown)} to what it is, or leave it out of the file",
        )
    return actual


def _check_types(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            remedy = _SAVE
            if name == "y" and array.dtype.kind in "US":
                remedy = "number the classes: names, y = np.unique(y, return_inverse=True)"
            raise DataError(path, f"an array {name} of numbers", f"one of {array.dtype}", remedy)


def _extent(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The first real step and the number of real steps of each sample, (n,) int64 each."""
    count, steps = arrays["x"].shape[:2]
    starts = np.zeros(count, np.int64)
    if "lengths" in arrays and "mask" in arrays:
        remedy = "leave one of them out"
        raise DataError(path, "lengths or mask", "both", remedy)
    if "mask" in arrays:
        return _from_mask(path, arrays["mask"], count, steps)
    if "lengths" not in arrays:
        return starts, starts + steps
    lengths = arrays["lengths"]
    whole = lengths.dtype != bool and bool((lengths == np.floor(lengths)).all())
    if lengths.shape != (count,) or not whole:
        expected = f"lengths of shape ({count:,},), whole numbers of steps"
        actual = f"shape {lengths.shape} of {lengths.dtype}"
        raise DataError(path, expected, actual, "save one number of steps for each sample of x")
    wrong = (lengths < 1) | (lengths > steps)
    if wrong.any():
        place = int(wrong.argmax())
        raise DataError(
            path,
            f"lengths from 1 to {steps:,}, the steps of x",
            f"{lengths[place]:g} for sample {place}",
            "leave out samples without a step, or pad x to the longest",
        )
    return starts, lengths.astype(np.int64)


def _from_mask(
    path: Path, mask: np.ndarray, count: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    mask = mask[..., 0] if mask.shape == (count, steps, 1) else mask
    if mask.shape != (count, steps) or not np.isin(mask, (0, 1)).all():
        expected = f"a mask of shape ({count:,}, {steps:,}), 1 at real steps and 0 at padding"
        actual = f"shape {mask.shape} of {mask.dtype}"
        if mask.shape == (count, steps):
            actual = "other values"
        raise DataError(path, expected, actual, "save it as (x_is_real).astype(bool)")
    real = mask.astype(bool)
    lengths, starts = real.sum(1), real.argmax(1)
    places = np.arange(steps)
    whole = (places >= starts[:, None]) & (places < (starts + lengths)[:, None])
    wrong = (whole != real).any(1) | (lengths == 0)
    if wrong.any():
        place = int(wrong.argmax())
        none = lengths[place] == 0
        raise DataError(
            path,
            "a mask whose real steps follow each other, at least one in each sample",
            f"{'no real step' if none else 'padding between real steps'} in sample {place}",
            "leave that sample out"
            if none
            else "move the steps together, or fill the gap and mark it by an input of its own",
        )
    return starts.astype(np.int64), lengths.astype(np.int64)


def _to_the_front(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n, T, ...) with each sample's real steps first."""
    order = (np.arange(values.shape[1]) + starts[:, None]) % values.shape[1]
    return values[np.arange(len(values))[:, None], order]


def _kind_of(path: Path, x: np.ndarray, y: np.ndarray | None, answers: Answers) -> Kind:
    """What y asks for, by its shape and type."""
    assert y is not None
    whole = y.dtype.kind in "biu"
    per_step = y.shape[:2] == x.shape[:2]
    if y.shape[:1] == x.shape[:1] and 0 not in y.shape:
        if whole and answers != "numbers" and (y.ndim == 1 or (y.ndim == 2 and per_step)):
            return "class" if y.ndim == 1 else "class at each step"
        if answers != "classes" and y.ndim == 2 and (not whole or answers == "numbers"):
            return "numbers"
        if answers != "classes" and y.ndim == 3 and per_step:
            return "numbers at each step"
    expected = f"{_SHAPES}, with n = {x.shape[0]:,} and T = {x.shape[1]:,} as x has"
    actual = f"y of shape {y.shape} and type {y.dtype}"
    raise DataError(path, expected, actual, _remedy(x, y, answers))


def _remedy(x: np.ndarray, y: np.ndarray, answers: Answers) -> str:
    """What makes of y something that can be asked."""
    if y.ndim >= 2 and y.size and _one_hot(y, None):
        return "its rows are one-hot: save y.argmax(-1)"
    if y.shape == (len(x), 1):
        return "save y[:, 0]"
    if y.shape == (len(x),) and y.dtype.kind == "f":
        return "save y.astype(int) for classes, or y[:, None] for numbers to predict"
    if answers != "auto":
        return f"give y another shape or type, or leave out --answers {answers}"
    return "give y another shape, or convert it by .astype"


def _one_hot(y: np.ndarray, real: np.ndarray | None) -> bool:
    """Whether rows of y (..., C) hold one 1 and else 0; some, without an answer, 0 alone."""
    rows = y.reshape(-1, y.shape[-1]) if real is None else y[real]
    if rows.shape[-1] < 2 or not np.isin(rows, (0, 1)).all():
        return False
    ones = rows.astype(np.int64).sum(-1)
    several = len(np.unique(rows[ones == 1].argmax(-1))) > 1
    return bool(several and (ones <= 1).all() and 2 * (ones == 1).sum() > len(ones))


def _refuse_one_hot(path: Path, x: np.ndarray, y: np.ndarray, real: np.ndarray | None) -> None:
    """A one-hot y would be numbers to predict, or a class at each step where C = T."""
    steps = y.ndim == 2 and y.shape == x.shape[:2] and y.dtype.kind in "biu"
    if steps and x.shape[1] < 2:
        return
    if y.ndim < 2 or not y.size or not _one_hot(y, None if steps else real):
        return
    actual = f"y of shape {y.shape} with a single 1 in each row, which looks one-hot"
    other = "classes, where they are a class at each step" if steps else "numbers, to predict them"
    save = "y.argmax(-1)"
    if not steps and not y.any(-1).all():
        save = "np.where(y.any(-1), y.argmax(-1), -1), -1 for no answer"
    raise DataError(path, _SHAPES, actual, f"save {save}, or pass --answers {other}")


def _classes(path: Path, y: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """int64, with UNKNOWN at padding."""
    counted = y if real is None else y[real]
    low, high = int(counted.min()), int(counted.max())
    if low < UNKNOWN or high >= MOST_CLASSES:
        raise DataError(
            path,
            f"classes numbered from 0, at most {MOST_CLASSES:,} of them, and -1 for no answer",
            f"numbers from {low:,} to {high:,}",
            "number the classes from 0, or save numbers to predict as floats (n, 1)",
        )
    if real is None:
        return y.astype(np.int64)
    return np.where(real, y, 0).astype(np.int64) + np.where(real, 0, UNKNOWN)


def _checked(path: Path, name: str, values: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """The values with 0 at padding; DataError where a real one is not finite in float32."""
    if real is not None:
        shown = real.reshape(*real.shape, *[1] * (values.ndim - 2))
        values = np.where(shown, values, np.zeros((), values.dtype))
    if values.dtype.kind != "f":
        return values
    # A NaN is not at most anything, so one comparison finds all that float32 cannot hold.
    fine = np.abs(values) <= np.finfo(np.float32).max
    if fine.all():
        return values
    place = np.unravel_index(int(fine.argmin()), values.shape)
    parts = ["sample", "step", "input" if name == "x" else "output"]
    if values.ndim == 2:
        parts.remove("step")
    at = ", ".join(f"{part} {number}" for part, number in zip(parts, place, strict=True))
    remedy = "fill or remove such samples"
    if values.ndim == 3 and np.isnan(values[place[0], -1]).all():
        remedy += "; where NaN stands for padding, save lengths= too, the steps of each sample"
    actual = f"NaN, infinite or larger values in it, first {values[place]} at {at}"
    raise DataError(path, f"{name} of finite numbers in float32", actual, remedy)


def _no_answers(like: Samples, x: np.ndarray) -> Tensor:
    shape = x.shape[:2] if like.kind.endswith("at each step") else x.shape[:1]
    if like.kind.startswith("class"):
        return torch.full(shape, UNKNOWN)
    return torch.zeros(*shape, like.y.shape[-1])


def _plain(x: np.ndarray) -> Tensor:
    """As torch can hold it; bytes stay bytes, four times smaller than what batches are made of."""
    small = x.dtype.kind == "b" or x.dtype == np.uint8
    return torch.from_numpy(x.astype(np.uint8 if small else np.float32))
