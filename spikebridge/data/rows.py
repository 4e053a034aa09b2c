"""Rows of a text file: its encoding, what parts the fields, where the header is, what is no row."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from spikebridge.base.quantities import plural
from spikebridge.data import numerals
from spikebridge.data.files import DataError, read_bytes
from spikebridge.data.numerals import MISSING

__all__ = ["HEADER", "LOOKED_AT", "MEND", "TextRows", "is_entry", "read_rows"]

# Where two part the rows equally well, the earlier: a comma may be that of decimals.
DELIMITERS = ("\t", ";", "|", ",", " ")
LOOKED_AT = 200
"""Rows by which it is decided what parts the fields."""
COMMENTS = ("#", "%", "//")
MEND = "mend the file"
HEADER = "a header line with a name for each column"
_NAME_THEM = "name each column in the first line of the file"
# What no text begins with.
_PACKED = {b"PK\x03\x04": "a spreadsheet", b"\x1f\x8b": "a gzip file"}
Numbered = list[tuple[int, list[str]]]
"""Rows with the number of each one's last line, from 1."""


@dataclass
class TextRows:
    """What a file is made of."""

    encoding: str
    delimiter: str  # "" of a single column
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # the number of each row's last line, from 1
    remarks: list[str] = field(default_factory=list)


def read_rows(path: Path, *, whole: bool = False) -> TextRows:
    """Header and rows, each of as many fields; whole: a torn last line is an error, too.

    Raises DataError.
    """
    text, encoding = _decoded(path)
    lines = _Lines(text)
    try:
        result = TextRows(encoding, lines.delimiter or _delimiter(lines))
        rows = list(lines.split(result.delimiter))
    except csv.Error as error:
        have = f"one that cannot be read ({error} in line {lines.number})"
        raise DataError(path, "a CSV file", have, MEND) from error
    below = _header(path, lines, result, rows)
    if lines.comments:
        result.remarks.append(f"{plural(lines.comments, 'comment line')} left out")
    del rows[:below]
    while rows and not any(rows[-1][1]) and len(rows[-1][1]) < 2:
        rows.pop()  # empty lines at the end of the file
    rows = _without_blank(result, rows)
    _make_even(path, result, rows, whole)
    result.lines = [number for number, _ in rows]
    result.rows = [row for _, row in rows]
    return result


def is_entry(text: str) -> bool:
    """Whether it is a number or a date, and so no name of a column."""
    return numerals.form(text) is not None or numerals.is_date(text) or numerals.is_time(text)


def _decoded(path: Path) -> tuple[str, str]:
    """The text of a file, and its encoding."""
    expected = "a CSV file with a header line and one row per time step"
    raw = read_bytes(path, expected, "mend the path")
    for start, what in _PACKED.items():
        if raw.startswith(start):
            raise DataError(path, expected, what, "unpack it, or save the sheet as CSV")
    for encoding in _encodings(raw):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        text = text.removeprefix("\ufeff").rstrip("\0\x1a")  # ends of old and of torn files
        if "\0" not in text:
            return text, encoding.removesuffix("-sig")
    have = "one that cannot be read (no text in any encoding)"
    raise DataError(path, expected, have, "save it as UTF-8")


def _encodings(raw: bytes) -> tuple[str, ...]:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ("utf-16",)
    # Text in the Latin alphabet has a zero in every other byte of UTF-16.
    head = raw[:2000]
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head[start::2].count(0) > len(head) // 4:
            return (encoding,)
    return ("utf-8-sig", "cp1252")


class _Lines:
    """The lines of a text that are no comments; `number` is that of the last one, from 1."""

    def __init__(self, text: str) -> None:
        self.all = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self.number = 0
        self.comments = 0
        self.last_comment = ""
        self.delimiter = ""
        first = self.all[0].strip().lower()
        if len(first) == 5 and first.startswith("sep="):  # a spreadsheet's own mark
            self.delimiter, self.all[0] = self.all[0].strip()[4], ""

    def __iter__(self) -> Iterator[str]:
        self.comments, started = 0, False
        for number, line in enumerate(self.all, start=1):
            self.number = number
            if line.lstrip().startswith(COMMENTS):
                self.comments += 1
                if not started:
                    self.last_comment = line.lstrip().lstrip("#%/ ")
                continue
            started = started or bool(line.strip())
            yield line

    def split(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """The number of each row's last line and its fields, without blanks around them."""
        source: Iterator[str] = iter(self)
        if delimiter == " ":
            source = (line.replace("\t", " ").strip() for line in source)
        reader = csv.reader(source, delimiter=delimiter or "\x1f", skipinitialspace=True)
        for row in reader:
            fields = [text.strip() for text in row]
            if not delimiter:
                fields = [text.rstrip(",;|\t ") for text in fields]
            yield self.number, fields

    def names(self, delimiter: str, width: int) -> list[str]:
        """Those in the last comment above the data, as numpy writes them; [] where it has none."""
        row = next(csv.reader([self.last_comment], delimiter=delimiter or "\x1f"), [])
        names = [name.strip() for name in row]
        return names if len(names) == width and not any(map(numerals.form, names)) else []


def _delimiter(lines: _Lines) -> str:
    """What parts most lines into as many fields as others, most of them numbers; "" for nothing."""
    best, chosen = (0.0, 0.0), ""
    for mark in DELIMITERS:
        filled = (row for _, row in lines.split(mark) if any(row))
        fit = _fit(list(islice(filled, LOOKED_AT)))
        if fit > best:
            best, chosen = fit, mark
    return chosen


def _fit(rows: list[list[str]]) -> tuple[float, float]:
    """Shares of rows as wide as most, and of fields in them that are numbers, dates or missing."""
    width = _usual_width(rows[1:] or rows)
    head = next((row for row in rows if len(row) >= max(2, width - 1)), None)
    # Of a header of a single field there are no two columns: the mark belongs to the numbers.
    if width < 2 or head is None or (head is not rows[0] and all(map(numerals.form, head))):
        return 0.0, 0.0
    like = [row for row in rows if len(row) == width]
    fields = [text for row in like if row is not head for text in row]
    known = sum(text.lower() in MISSING or is_entry(text) for text in fields)
    share = len(like) / len(rows)
    return (share, known / max(1, len(fields))) if share > 0.5 or len(rows) < 4 else (0.0, 0.0)


def _usual_width(rows: list[list[str]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _header(path: Path, lines: _Lines, result: TextRows, rows: Numbered) -> int:
    """Set the header; gives the place of the first row below it."""
    filled = [place for place, (_, row) in enumerate(rows) if any(row)]
    width = _usual_width([rows[place][1] for place in filled[1 : LOOKED_AT + 1]])
    row = rows[filled[0]][1] if filled else []
    for at, place in enumerate(filled):
        candidate = rows[place][1]
        after = rows[filled[at + 1]][1] if at + 1 < len(filled) else None
        titles = after is not None and len(after) == width and not any(map(numerals.form, after))
        if len(candidate) < width - 1 or (len(candidate) != width and titles):
            continue  # above the header
        if at:
            result.remarks.append(f"{plural(at, 'line')} above the header left out")
        row = candidate
        if not all(is_entry(name) for name in row if name):
            result.header = row
            return place + 1
        result.header = lines.names(result.delimiter, len(row))
        if result.header:
            result.remarks.append("the names of columns are those of the comment above them")
            return place
        break
    raise DataError(path, HEADER, f"the line {', '.join(row)!r}", _NAME_THEM)


def _without_blank(result: TextRows, rows: Numbered) -> Numbered:
    """Without rows that hold no entry; of a single column such a row is a missing value."""
    if len(result.header) == 1:
        while rows and not any(rows[-1][1]):
            rows.pop()
        return [(number, row or [""]) for number, row in rows]
    blank = [number for number, row in rows if row and not any(row)]
    if blank:
        where = f"line {blank[0]}" if len(blank) == 1 else f"lines {blank[0]} to {blank[-1]}"
        result.remarks.append(f"{plural(len(blank), 'blank row')} left out, {where}")
    return [(number, row) for number, row in rows if any(row)]


def _make_even(path: Path, result: TextRows, rows: Numbered, whole: bool) -> None:
    """Give all rows as many fields as the header, where no field is lost by that."""
    # Tables of R name their rows and have no name for those names.
    wider = len(result.header) + 1
    by_blanks = result.delimiter in ("\t", " ") and wider > 2
    if by_blanks and rows and all(len(row) == wider and row[-1] for _, row in rows):
        result.header = ["", *result.header]
    width = len(result.header)
    for place, (number, row) in enumerate(rows):
        if not any(row[width:]):
            del row[width:]
        if not any(result.header[len(row) :]):
            row += [""] * (width - len(row))
        if len(row) == width:
            continue
        if len(row) < width and place == len(rows) - 1 and place > 0 and not whole:
            result.remarks.append(
                f"line {number}, the last one, is torn and left out: {len(row)} of {width} fields"
            )
            rows.pop()
            return
        quoted = result.delimiter == "," and len(row) > width
        remedy = "put decimal commas in quotes, or part the fields by ;" if quoted else MEND
        have = f"{len(row)} in line {number}"
        raise DataError(path, f"{width} fields in each row", have, remedy)
