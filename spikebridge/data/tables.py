"""Tables of numbers as they come: text files of rows and columns, in any usual dialect.

What is told apart by itself: the encoding (UTF-8, UTF-16, else Windows-1252), what parts the
fields (comma, semicolon, tab, vertical bar, blanks), decimal points and commas, thousands, marks of
missing values, comment lines (#), lines above the header, a row of units below it, blank rows,
separators at the end of rows, a torn last line.  What cannot be told is an error and never a guess;
what was left out is said in `DataTable.remarks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spikebridge.base.quantities import plural
from spikebridge.data import numerals, order
from spikebridge.data.files import DataError
from spikebridge.data.numerals import MISSING, Decimal, Form
from spikebridge.data.rows import HEADER, LOOKED_AT, MEND, Rows, is_entry, read_rows

__all__ = ["DataTable", "listed", "read_table"]

_NAMED = {"\t": "tabs", " ": "blanks", "": "nothing, as there is one column"}
# Different numbers, and words among them, that make a column one of numbers with marks.
_MANY, _FEW = 10, 3
# Rows below the header that may hold units, kinds of averages and the like.
MOST_UNITS = 3
# Marks of missing values that are numbers: only the user knows.
_SENTINELS = (-9999.0, -999.0, -99999.0, -32768.0, 9999.0, 99999.0)


class DataTable(NamedTuple):
    """The columns of a file that hold numbers."""

    names: tuple[str, ...]
    values: np.ndarray  # (rows, columns) float64, NaN where a value is missing
    left_out: tuple[str, ...] = ()  # columns that hold other things than numbers
    remarks: tuple[str, ...] = ()  # what was read and what was left out, as sentences


def read_table(
    path: Path,
    *,
    missing: Sequence[str] = (),
    decimal: Decimal | None = None,
    whole: bool = False,
) -> DataTable:
    """The columns of a file that have a name and hold numbers; see the module.

    A column without numbers, such as dates, is left out.  One with some text among its numbers, or
    whose entries look like numbers and are none, is an error: more likely the entry is a mistake.

    Args:
        path: the file.
        missing: further marks of a missing value, such as "-9999".
        decimal: what marks fractions, where the numbers do not say.
        whole: columns without numbers, missing values and torn lines are errors.

    Raises DataError.
    """
    actual = read_rows(path, whole=whole)
    marks = _Marks(missing)
    columns = _columns(actual, marks)
    kinds = [_judged(path, column, actual.lines, marks) for column in columns]
    _check_names(path, actual.header, kinds)
    named = [c for c, kind in zip(columns, kinds, strict=True) if kind == "numbers" and c.name]
    if not named:
        have = f"{listed(actual.header)}, none of them of numbers, in {len(actual.lines):,} rows"
        raise DataError(path, "a column of numbers", have, "give another table")
    if whole:
        _check_whole(path, columns, kinds, actual.lines)
    shared: set[Decimal] = set()
    for column in named:
        shared |= numerals.certain(column.forms.values())
    values = np.empty((len(actual.lines), len(named)))
    for place, column in enumerate(named):
        chosen = _decimal(path, column, actual, shared, decimal)
        values[:, place] = _values(path, column, actual.lines, chosen)
    names = tuple(column.name for column in named)
    by = _NAMED.get(actual.delimiter, actual.delimiter)
    comma = ", decimal comma" if shared == {","} else ""
    remarks = (
        f"read {path.name}: {plural(len(values), 'row')}, {plural(len(names), 'column')} of "
        f"numbers: {listed(names)} ({actual.encoding}, parted by {by}{comma})",
        *actual.remarks,
        *_left_out_remarks(columns, kinds),
        *_sentinels(names, values),
        *order.remarks(_dated(columns, kinds)),
    )
    return DataTable(names, values, _left_out(columns, kinds), remarks)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names parted by commas; of many the first ones."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Columns


def _columns(result: Rows, marks: Callable[[str], bool]) -> list[_Column]:
    """The columns of a file below rows of units, which are taken out of its lines."""
    texts = list(zip(*result.rows, strict=True)) if result.rows else [()] * len(result.header)
    columns = [_Column(name, column) for name, column in zip(result.header, texts, strict=True)]
    units = _units(columns, marks)
    for row in units:
        shown = listed([text for text in result.rows[row] if text])
        result.remarks.append(f"line {result.lines[row]} holds units and is left out: {shown}")
    result.lines = result.lines[len(units) :]
    return [column.without(len(units)) for column in columns] if units else columns


def _check_names(path: Path, header: list[str], kinds: list[str]) -> None:
    """A name may stand twice over columns without numbers only."""
    seen: set[str] = set()
    for name, kind in zip(header, kinds, strict=True):
        if name and kind == "numbers":
            if name in seen:
                remedy = "name each column in the first line of the file"
                raise DataError(path, HEADER, f"the name {name} twice", remedy)
            seen.add(name)
    if not any(header):
        raise DataError(path, HEADER, f"the line {', '.join(header)!r}", "name each column")


class _Column:
    """A column as the texts it holds, each once, and which stands in which row."""

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        self.name = name
        places: dict[str, int] = {}
        self.codes = np.array([places.setdefault(t, len(places)) for t in texts], np.int64)
        self.texts = list(places)
        self.forms: dict[int, Form] = {}  # by code, of those that are numbers
        self.missing: set[int] = set()

    def without(self, rows: int) -> _Column:
        """The column below its first rows."""
        return _Column(self.name, [self.texts[code] for code in self.codes[rows:].tolist()])

    def first(self, codes: set[int]) -> int:
        """The first row that holds one of these."""
        return int(np.isin(self.codes, list(codes)).argmax())


class _Marks:
    """What stands for a missing value: texts, and numbers however they are written."""

    def __init__(self, missing: Sequence[str]) -> None:
        self.texts = MISSING | {text.strip().lower() for text in missing}
        self.numbers = {
            numerals.value(text.strip(), ".")
            for text in missing
            if numerals.form(text.strip()) not in (None, ",", ",?")
        }

    def __call__(self, text: str) -> bool:
        if text.lower() in self.texts:
            return True
        if not self.numbers or numerals.form(text) not in ("whole", "long", ".", ".?"):
            return False
        return numerals.value(text, ".") in self.numbers


def _units(columns: list[_Column], marks: Callable[[str], bool]) -> list[int]:
    """The first rows that hold no number where those below them do."""
    rows = len(columns[0].codes) if columns else 0
    result: list[int] = []
    for row in range(min(MOST_UNITS, rows - 1)):
        texts = [column.texts[column.codes[row]] for column in columns]
        if any(map(is_entry, texts)):
            break
        over_numbers = [
            text
            for text, column in zip(texts, columns, strict=True)
            if not marks(text) and _numbers_below(column, row, marks)
        ]
        # A single entry may as well be a mistake among numbers.
        if len(over_numbers) == 1 and not (len(over_numbers[0]) < 4 or over_numbers[0][0] in "[("):
            break
        if not over_numbers:
            break
        result.append(row)
    return result


def _numbers_below(column: _Column, row: int, marks: Callable[[str], bool]) -> bool:
    below = [column.texts[code] for code in column.codes[row + 1 : row + 1 + LOOKED_AT].tolist()]
    given = [text for text in below if not marks(text)]
    numbers = sum(numerals.form(text) is not None for text in given)
    return 2 * numbers > len(given)


def _judged(path: Path, column: _Column, lines: Sequence[int], marks: Callable[[str], bool]) -> str:
    """What a column holds: numbers, dates, text or nothing; DataError where that is a mixture."""
    counts = np.bincount(column.codes, minlength=len(column.texts)).tolist()
    numbers = dates = others = numeric = 0
    wrong: set[int] = set()
    for code, text in enumerate(column.texts):
        if marks(text):
            column.missing.add(code)
            continue
        actual = numerals.form(text)
        if actual is not None:
            column.forms[code] = actual
            numbers += counts[code]
            continue
        wrong.add(code)
        others += counts[code]
        if numerals.is_date(text) or numerals.is_time(text):
            dates += counts[code]
        elif numerals.looks_numeric(text):
            numeric += counts[code]
    if not numbers and not others:
        return "nothing"
    if numbers and not wrong:
        return "numbers"
    # Many numbers and a few words: these are marks of its own for what is missing.
    marked = len(column.forms) >= _MANY and len(wrong) <= _FEW
    if column.name and (numbers + numeric >= others - numeric or marked):
        row = column.first(wrong)
        text = column.texts[column.codes[row]]
        if numerals.looks_numeric(text):
            remedy = "write it as a plain number, without sign or unit behind it"
        else:
            remedy = (
                f"{MEND}, leave the field empty, or pass --missing {text!r} if it stands for that"
            )
        have = f"{text!r} in line {lines[row]}"
        raise DataError(path, f"a finite number in column {column.name}", have, remedy)
    return "dates" if 2 * dates > numbers + others else "text"


def _check_whole(
    path: Path, columns: list[_Column], kinds: list[str], lines: Sequence[int]
) -> None:
    """DataError unless there is a number in each row of each column that has a name or entries."""
    for place, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
        wrong = set(range(len(column.texts))) - column.forms.keys()
        if (column.name or kind != "nothing") and wrong:
            row = column.first(wrong)
            have = f"{column.texts[column.codes[row]]!r} in line {lines[row]}"
            raise DataError(
                path, f"numbers in column {_called(place, column)}", have, "write numbers only"
            )


def _decimal(
    path: Path, column: _Column, actual: Rows, shared: set[Decimal], given: Decimal | None
) -> Decimal:
    """What marks the fractions of a column."""
    forms = set(column.forms.values())
    marks = numerals.certain(forms)
    if given is not None:
        marks |= {given}
    if len(marks) > 1:
        codes = {
            code for code, form in column.forms.items() if form in (".", ",") and form != given
        }
        shown = [
            column.first({code for code in codes if column.forms[code] == mark})
            for mark in (".", ",")
            if any(column.forms[code] == mark for code in codes)
        ]
        have = " and ".join(
            f"{column.texts[column.codes[row]]!r} in line {actual.lines[row]}" for row in shown
        )
        expected = f"numbers with one decimal mark in column {column.name}"
        if given is not None:
            expected = f"numbers with the decimal mark {given!r} in column {column.name}"
        raise DataError(path, expected, have, "write all numbers in one way")
    unsure = forms & {".?", ",?"}
    if len(marks) == 1 or not unsure:
        return marks.pop() if marks else "."
    one = len(unsure) == 1
    own: Decimal = "." if ".?" in unsure else ","
    if one and "long" in forms:  # 1234 stands there too, so thousands are not parted
        return own
    if len(shared) == 1:
        return next(iter(shared))
    if one and own == "." and actual.delimiter == ",":
        return "."
    row = column.first({code for code, form in column.forms.items() if form in unsure})
    text = column.texts[column.codes[row]]
    raise DataError(
        path,
        f"numbers in column {column.name} that can be read in one way only",
        f"{text!r} in line {actual.lines[row]}, a fraction or thousands, and no number in the "
        "table that decides it",
        "pass --decimal . or --decimal , to say what marks fractions",
    )


def _values(path: Path, column: _Column, lines: Sequence[int], decimal: Decimal) -> np.ndarray:
    """(rows,) with NaN where a value is missing."""
    values = np.full(len(column.texts), np.nan)
    for code in column.forms:
        values[code] = numerals.value(column.texts[code], decimal)
    infinite = set(np.flatnonzero(np.isinf(values)).tolist())
    if infinite:
        row = column.first(infinite)
        have = f"{column.texts[column.codes[row]]!r} in line {lines[row]}"
        remedy = f"{MEND}, or leave the field empty"
        raise DataError(path, f"a finite number in column {column.name}", have, remedy)
    return values[column.codes]


# What is said of it


def _called(place: int, column: _Column) -> str:
    return column.name or f"the one without a name at place {place + 1}"


def _dated(columns: list[_Column], kinds: list[str]) -> list[tuple[str, list[str]]]:
    """Names and first texts of the columns of dates and times."""
    return [
        (column.name, [column.texts[code] for code in column.codes[: order.DATED].tolist()])
        for column, kind in zip(columns, kinds, strict=True)
        if kind == "dates"
    ]


def _left_out(columns: list[_Column], kinds: list[str]) -> tuple[str, ...]:
    return tuple(
        _called(place, column)
        for place, (column, kind) in enumerate(zip(columns, kinds, strict=True))
        if (kind != "numbers" or not column.name) and (kind != "nothing" or column.name)
    )


def _left_out_remarks(columns: list[_Column], kinds: list[str]) -> Iterator[str]:
    why = {"dates": "dates or times", "text": "text", "nothing": "no entry", "": "no name"}
    groups: dict[str, list[str]] = {}
    empty = 0
    for place, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
        if not column.name and kind == "nothing":
            empty += 1
        elif kind != "numbers" or not column.name:
            reason = kind if kind != "numbers" else ""
            among = len(column.forms) if kind == "text" else 0
            called = _called(place, column) + (f", beside {among:,} numbers" if among else "")
            groups.setdefault(reason, []).append(called)
    parts = [f"{listed(names)} ({why[reason]})" for reason, names in groups.items()]
    if empty:
        parts.append(f"{empty:,} without name and entry")
    if parts:
        yield f"columns left out, for they hold no numbers: {'; '.join(parts)}"


def _sentinels(names: Sequence[str], values: np.ndarray) -> Iterator[str]:
    """Numbers that often stand for a missing value, far from all others of their column."""
    for place, name in enumerate(names):
        column = values[:, place]
        for mark in _SENTINELS:
            here = column == mark
            count = int(here.sum())
            others = column[~here & ~np.isnan(column)]
            if not count or not len(others):
                continue
            low, high = float(others.min()), float(others.max())
            far = low - mark if mark < low else mark - high
            if far > 2 * max(high - low, 1.0):
                yield (
                    f"column {name} holds {mark:g} {count:,} times, far from its other values; if "
                    f"it stands for a missing value, pass --missing {mark:g}"
                )
