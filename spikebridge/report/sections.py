"""Sections of a page that are lists of blocks: cards, figures and tables in their order."""

from __future__ import annotations

from dataclasses import dataclass

from spikebridge.report.theme import Plot


@dataclass(frozen=True)
class Card:
    """A headline figure: its name, its value and a line below; its spread, where it has one."""

    name: str
    value: str
    below: str
    spread: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text, the first cell of each a heading.

    Args:
        text: numbers of the columns that hold words, which may be wrapped.
    """

    heads: tuple[str, ...]
    rows: list[list[str]]
    text: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of a section; what is empty is not shown."""

    title: str = ""
    cards: tuple[Card, ...] = ()
    plots: tuple[Plot, ...] = ()
    table: Table | None = None
    below: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what follows."""

    title: str
    about: str
    blocks: tuple[Block, ...]


def figures(*plots: Plot | None) -> Block:
    """A block of the figures that there are."""
    return Block(plots=tuple(plot for plot in plots if plot))
