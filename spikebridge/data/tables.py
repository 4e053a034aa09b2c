"""Tables of numbers as they come: text files of rows and columns, in any usual dialect.

What is told apart by itself: the encoding (UTF-8, UTF-16, else Windows-1252), what parts the
fields (comma, semicolon, tab, vertical bar, blanks), decimal points and commas, thousands, marks of
missing values, comment lines (#), lines above the header, a row of units below it, blank rows,
separators at the end of rows, a torn last line.  What cannot be told is an error and never a guess;
what was left out is said in `DataTable.remarks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spikebridge.base.quantities import plural
from spikebridge.data import numerals, order
from spikebridge.data.files import DataError
from spikebridge.data.numerals import MISSING, Decimal, Form
from spikebridge.data.rows import HEADER, LOOKED_AT, MEND, TextRows, is_entry, read_rows

__all__ = ["DataTable", "listed", "read_table"]

_NAMED = {"\t": "tabs", " ": "blanks", "": "nothing, as there is one column"}
# Different numbers, and words among them, that make a column one of numbers with marks.
_MANY, _FEW = 10, 3
# Rows below the header that may hold units, kinds of averages and the like.
MOST_UNITS = 3
# Marks of missing values that are numbers: only the user knows.
_SENTINELS = (-9999.0, -999.0, -99999.0, -32768.0, 9999.0, 99999.0)
_WHY_LEFT_OUT = {
    "dates": "dates or times", "text": "text", "nothing": "no entry", "numbers": "no name",
}  # fmt: skip


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
    rows = read_rows(path, whole=whole)
    columns = _columns(path, rows, _Marks(missing))
    _check_names(path, rows.header, columns)
    used = [column for column in columns if column.used]
    if not used:
        have = f"{listed(rows.header)}, none of them of numbers, in {len(rows.lines):,} rows"
        raise DataError(path, "a column of numbers", have, "give another table")
    if whole:
        for column in columns:
            column.check_whole()
    shared = set().union(*(numerals.certain(column.forms.values()) for column in used))
    values = np.column_stack([c.values(c.decimal(shared, decimal, rows.delimiter)) for c in used])
    names = tuple(column.name for column in used)
    left_out = [c for c in columns if not c.used and (c.name or c.kind != "nothing")]
    by = _NAMED.get(rows.delimiter, rows.delimiter)
    comma = ", decimal comma" if shared == {","} else ""
    remarks = (
        f"read {path.name}: {plural(len(values), 'row')}, {plural(len(names), 'column')} of "
        f"numbers: {listed(names)} ({rows.encoding}, parted by {by}{comma})",
        *rows.remarks,
        *_left_out_remark(left_out, len(columns) - len(used) - len(left_out)),
        *_sentinels(names, values),
        *order.remarks([(c.name, c.head(order.DATED)) for c in columns if c.kind == "dates"]),
    )
    return DataTable(names, values, tuple(column.called for column in left_out), remarks)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names parted by commas; of many the first ones."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _Marks:
    """What stands for a missing value: texts, and numbers however they are written."""

    def __init__(self, missing: Sequence[str]) -> None:
        texts = [text.strip() for text in missing]
        self.texts = MISSING | {text.lower() for text in texts}
        numbers = [text for text in texts if numerals.form(text) not in (None, ",", ",?")]
        self.numbers = {numerals.value(text, ".") for text in numbers}

    def __call__(self, text: str) -> bool:
        if text.lower() in self.texts:
            return True
        if not self.numbers or numerals.form(text) not in ("whole", "long", ".", ".?"):
            return False
        return numerals.value(text, ".") in self.numbers


class _Column:
    """A column as the texts it holds, each once, and which stands in which row."""

    def __init__(
        self, path: Path, place: int, name: str, texts: Sequence[str], lines: list[int]
    ) -> None:
        self.path, self.name, self.lines = path, name, lines
        self.called = name or f"the one without a name at place {place + 1}"
        numbers: dict[str, int] = {}
        self.codes = np.array([numbers.setdefault(t, len(numbers)) for t in texts], np.int64)
        self.texts = list(numbers)
        self.forms: dict[int, Form] = {}  # by code, of those that are numbers
        self.kind = "nothing"

    @property
    def used(self) -> bool:
        """Whether it is one of those that a table is made of."""
        return self.kind == "numbers" and bool(self.name)

    def head(self, rows: int) -> list[str]:
        """The texts of its first rows."""
        return [self.texts[code] for code in self.codes[:rows].tolist()]

    def cited(self, codes: set[int]) -> tuple[str, str]:
        """The first entry that is one of these, by itself and with its line."""
        row = int(np.isin(self.codes, list(codes)).argmax())
        text = self.texts[self.codes[row]]
        return text, f"{text!r} in line {self.lines[row]}"

    def judge(self, marks: Callable[[str], bool]) -> None:
        """Set `forms` and `kind`: numbers, dates, text or nothing; DataError for a mixture."""
        counts = np.bincount(self.codes, minlength=len(self.texts)).tolist()
        rows: Counter[str] = Counter()
        others: set[int] = set()
        for code, text in enumerate(self.texts):
            if marks(text):
                continue
            if (form := numerals.form(text)) is not None:
                self.forms[code] = form
                rows["numbers"] += counts[code]
                continue
            others.add(code)
            rows["others"] += counts[code]
            if numerals.is_date(text) or numerals.is_time(text):
                rows["dates"] += counts[code]
            elif numerals.looks_numeric(text):
                rows["numeric"] += counts[code]
        if not others:
            self.kind = "numbers" if rows["numbers"] else "nothing"
            return
        # Many numbers and a few words: these are marks of its own for what is missing.
        marked = len(self.forms) >= _MANY and len(others) <= _FEW
        if self.name and (rows["numbers"] + 2 * rows["numeric"] >= rows["others"] or marked):
            text, have = self.cited(others)
            remedy = "write it as a plain number, without sign or unit behind it"
            if not numerals.looks_numeric(text):
                remedy = f"{MEND}, leave the field empty, or pass --missing {text!r} if it stands "
                remedy += "for that"
            raise DataError(self.path, f"a finite number in column {self.name}", have, remedy)
        dated = 2 * rows["dates"] > rows["numbers"] + rows["others"]
        self.kind = "dates" if dated else "text"

    def check_whole(self) -> None:
        """DataError where it has a name or entries, and a row without a number."""
        wrong = set(range(len(self.texts))) - self.forms.keys()
        if (self.name or self.kind != "nothing") and wrong:
            expected = f"numbers in column {self.called}"
            raise DataError(self.path, expected, self.cited(wrong)[1], "write numbers only")

    def decimal(self, shared: set[Decimal], given: Decimal | None, delimiter: str) -> Decimal:
        """What marks the fractions of a column."""
        forms = set(self.forms.values())
        marks = numerals.certain(forms) | ({given} if given is not None else set())
        if len(marks) > 1:
            others = [self._having(mark) for mark in (".", ",") if mark != given]
            what = "one decimal mark" if given is None else f"the decimal mark {given!r}"
            expected = f"numbers with {what} in column {self.name}"
            have = " and ".join(self.cited(codes)[1] for codes in others if codes)
            raise DataError(self.path, expected, have, "write all numbers in one way")
        unsure = forms & {".?", ",?"}
        if marks or not unsure:
            return marks.pop() if marks else "."
        own: Decimal = "." if ".?" in unsure else ","
        if len(unsure) == 1 and "long" in forms:  # 1234 is there too: thousands are not parted
            return own
        if len(shared) == 1:
            return next(iter(shared))
        if unsure == {".?"} and delimiter == ",":
            return "."
        raise DataError(
            self.path,
            f"numbers in column {self.name} that can be read in one way only",
            f"{self.cited(self._having(*unsure))[1]}, a fraction or thousands, and no number in "
            "the table that decides it",
            "pass --decimal . or --decimal , to say what marks fractions",
        )

    def _having(self, *forms: str) -> set[int]:
        return {code for code, form in self.forms.items() if form in forms}

    def values(self, decimal: Decimal) -> np.ndarray:
        """(rows,) with NaN where a value is missing; DataError for what float64 cannot hold."""
        values = np.full(len(self.texts), np.nan)
        for code in self.forms:
            values[code] = numerals.value(self.texts[code], decimal)
        if infinite := set(np.flatnonzero(np.isinf(values)).tolist()):
            expected, remedy = f"a finite number in column {self.name}", "or leave the field empty"
            raise DataError(self.path, expected, self.cited(infinite)[1], f"{MEND}, {remedy}")
        return values[self.codes]


def _columns(path: Path, rows: TextRows, marks: Callable[[str], bool]) -> list[_Column]:
    """The judged columns of a file below rows of units, which are taken out of it."""
    units = _units(rows.rows, marks)
    for row, line in zip(rows.rows[:units], rows.lines, strict=False):
        shown = listed([text for text in row if text])
        rows.remarks.append(f"line {line} holds units and is left out: {shown}")
    del rows.rows[:units], rows.lines[:units]
    texts = list(zip(*rows.rows, strict=True)) if rows.rows else [()] * len(rows.header)
    columns = []
    for place, (name, column) in enumerate(zip(rows.header, texts, strict=True)):
        columns.append(_Column(path, place, name, column, rows.lines))
        columns[-1].judge(marks)
    return columns


def _units(rows: list[list[str]], marks: Callable[[str], bool]) -> int:
    """How many of the first rows hold no number where most of those below them do."""

    def over_numbers(count: int) -> Iterator[str]:
        for place, text in enumerate(rows[count]):
            below = [row[place] for row in rows[count + 1 : count + 1 + LOOKED_AT]]
            known = [entry for entry in below if not marks(entry)]
            if not marks(text) and 2 * sum(map(bool, map(numerals.form, known))) > len(known):
                yield text

    for count in range(min(MOST_UNITS, len(rows) - 1)):
        units = [] if any(map(is_entry, rows[count])) else list(over_numbers(count))
        # A single entry may as well be a mistake among numbers.
        if not units or (len(units) == 1 and len(units[0]) >= 4 and units[0][0] not in "[("):
            return count
    return max(0, min(MOST_UNITS, len(rows) - 1))


def _check_names(path: Path, header: list[str], columns: list[_Column]) -> None:
    """A name may stand twice over columns without numbers only."""
    names = Counter(column.name for column in columns if column.used)
    for name, count in names.items():
        if count > 1:
            remedy = "name each column in the first line of the file"
            raise DataError(path, HEADER, f"the name {name} twice", remedy)
    if not any(header):
        raise DataError(path, HEADER, f"the line {', '.join(header)!r}", "name each column")


# What is said of it


def _left_out_remark(columns: list[_Column], empty: int) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for column in columns:
        among = column.kind == "text" and column.forms
        beside = f", beside {len(column.forms):,} numbers" if among else ""
        groups.setdefault(_WHY_LEFT_OUT[column.kind], []).append(column.called + beside)
    parts = [f"{listed(names)} ({reason})" for reason, names in groups.items()]
    if empty:
        parts.append(f"{empty:,} without name and entry")
    if parts:
        yield f"columns left out, for they hold no numbers: {'; '.join(parts)}"


def _sentinels(names: Sequence[str], values: np.ndarray) -> Iterator[str]:
    """Numbers that often stand for a missing value, far from all others of their column."""
    for name, column in zip(names, values.T, strict=True):
        for mark in _SENTINELS:
            here = column == mark
            others = column[~here & ~np.isnan(column)]
            if not here.any() or not len(others):
                continue
            low, high = float(others.min()), float(others.max())
            far = low - mark if mark < low else mark - high
            if far > 2 * max(high - low, 1.0):
                yield (
                    f"column {name} holds {mark:g} {int(here.sum()):,} times, far from its other "
                    f"values; if it stands for a missing value, pass --missing {mark:g}"
                )
