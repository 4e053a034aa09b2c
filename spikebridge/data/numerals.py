"""Numbers as people write them: decimal points and commas, thousands, missing marks, dates.

Whether "1,234" is one and a bit or more than a thousand does not follow from the text: a column
decides by its other numbers, then the table by its other columns, else nothing does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

__all__ = ["MISSING", "Decimal", "Form", "form", "is_date", "is_time", "looks_numeric", "value"]

Decimal = Literal[".", ","]
Form = Literal["whole", "long", ".", ",", ".?", ",?", "infinite"]
"""What a text says of its column: a number without a mark (long: of four digits or more, so not
parted by thousands), one with a decimal point or comma for certain, one whose mark parts a fraction
or thousands."""

MISSING = frozenset(
    ("", "?", "-", "--", ".", "na", "n/a", "n.a.", "#n/a", "nan", "-nan", "null", "none", "missing")
)
"""Marks of a missing value, in small letters."""

_SIGN = "[+\\-\u2212]?"
_BLANK = "[ \u00a0\u202f\u2009'\u2019]"  # what parts thousands beside points and commas
_POWER = re.compile("[eEdD][+\\-]?[0-9]+$")
_PATTERNS: tuple[tuple[str, Form], ...] = (
    ("[0-9]{4,}", "long"),
    (f"[0-9]{{1,3}}(?:{_BLANK}[0-9]{{3}})*", "whole"),
    (r"[1-9][0-9]{0,2}\.[0-9]{3}", ".?"),
    (r"[1-9][0-9]{0,2},[0-9]{3}", ",?"),
    (r"[0-9]*\.[0-9]+|[0-9]+\.", "."),
    (r"[0-9]*,[0-9]+|[0-9]+,", ","),
    (r"[0-9]{1,3}(?:,[0-9]{3}){2,}|[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]*", "."),
    (r"[0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]*", ","),
    (rf"[0-9]{{1,3}}(?:{_BLANK}[0-9]{{3}})+\.[0-9]*", "."),
    (rf"[0-9]{{1,3}}(?:{_BLANK}[0-9]{{3}})+,[0-9]*", ","),
    ("inf|infinity|INF|Inf|Infinity", "infinite"),
)
_FORMS = tuple((re.compile(f"{_SIGN}(?:{text})$"), result) for text, result in _PATTERNS)
_BLANKS = re.compile(_BLANK)
# A number with a currency before it, or a unit behind it: read as a number by people only.
_DRESSED = re.compile(
    r"[$€£¥<>~≈(]?\s*([+\-\u2212]?[0-9][0-9.,' \u00a0\u202f\u2009\u2019]*(?:[eEdD][+\-]?[0-9]+)?)"
    r"\s*(?:[)%‰$€£¥*]|°\S?|(?<=\s)\S{1,4})?$"
)
_MONTH = "(?:jan|feb|mar|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-z]*\\.?"
_CLOCK = r"[0-9]{1,2}[:.][0-9]{2}(?:[:.][0-9]{2}(?:[.,][0-9]+)?)?(?:\s*[ap]m)?"
_ZONE = r"(?:\s*(?:z|utc|gmt|[+\-][0-9]{2}:?[0-9]{2}))?"
_DAY = (
    r"(?:[0-9]{4}[-/._][0-9]{1,2}(?:[-/._][0-9]{1,2})?|[0-9]{1,2}[-/._][0-9]{1,2}[-/._][0-9]{2,4}|"
    rf"[0-9]{{1,2}}[-/. ]?\s?{_MONTH}[-/., ]?\s?[0-9]{{2,4}}|"
    rf"{_MONTH}\s[0-9]{{1,2}},?\s[0-9]{{2,4}})"
)
_DATE = re.compile(rf"(?:[a-z]{{2,9}},?\s)?{_DAY}(?:[t\s]+{_CLOCK}{_ZONE})?$", re.IGNORECASE)
_TIME = re.compile(
    r"(?:[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?|[0-9]{1,2}\.[0-9]{2}\.[0-9]{2})"
    rf"(?:\s*[ap]m)?{_ZONE}$",
    re.IGNORECASE,
)


def form(text: str) -> Form | None:
    """What a text without blanks around it says of its column; None where it is no number."""
    power = _POWER.search(text)
    body = text[: power.start()] if power else text
    for pattern, result in _FORMS:
        if pattern.match(body):
            # Nobody parts the thousands of a mantissa.
            if power and result in (".?", ",?"):
                return "." if result == ".?" else ","
            return None if power and result == "infinite" else result
    return None


def value(text: str, decimal: Decimal) -> float:
    """The number that a text of some `form` is, given what marks its fraction."""
    if decimal == "." and "," not in text:
        try:
            return float(text)  # as most are
        except ValueError:
            pass
    text = _BLANKS.sub("", text).replace("\u2212", "-").replace("d", "e").replace("D", "e")
    if decimal == ",":
        text = text.replace(".", "").replace(",", ".")
    return float(text.replace(",", ""))


def looks_numeric(text: str) -> bool:
    """Whether people would take for a number what is none here, such as "12 %" or "1,23,456".

    Several points alone are rather those of an address or a version.
    """
    dressed = _DRESSED.match(text)
    if not dressed or is_date(text) or is_time(text):
        return False
    body = dressed.group(1).strip()
    return form(body) is not None or body.count(",") > 1 or ("," in body and "." in body)


def is_date(text: str) -> bool:
    """Whether it is a date, with or without a time of day."""
    return bool(_DATE.match(text))


def is_time(text: str) -> bool:
    """Whether it is a time of day."""
    return bool(_TIME.match(text))


def certain(forms: Iterable[Form]) -> set[Decimal]:
    """The marks of fractions that some numbers show for certain."""
    return {mark for mark in forms if mark == "." or mark == ","}
