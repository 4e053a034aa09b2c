"""`--help`: an example and the flags that matter; `--help-all`: every flag.

tyro keeps the line breaks of the source in what it says of a flag, and wraps them once more.  So
help is asked of a copy of a command's record, in which every text is one piece.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Annotated, Any, get_args, get_origin

import tyro
from docstring_parser import parse_from_object

from spikebridge.cli.flags import LeafField, each_field


def record(kind: type, default: Any, main: Sequence[str], *, whole: bool) -> type:
    """The record that is asked for its help in the place of a command's.

    Args:
        kind: the command's record.
        default: an instance of it with the defaults to show; None: those of its fields.
        main: the flags that stand first; none: all are shown.
        whole: whether the other flags are shown too, in groups.
    """
    flat = {field.name: field for field in each_field(kind, default)}
    first = [name for name in [*_positionals(flat), *main] if name in flat]
    shown = [_explained(flat[name]) for name in first]
    if whole or not main:
        rest = [field for name, field in flat.items() if name not in first]
        for owner, group in groupby(rest, lambda field: field.owner):
            fields = [_explained(field) for field in group]
            if owner is kind or hasattr(owner, "EXAMPLE"):  # the command's own
                shown += fields
            else:
                made = _make(owner, fields)
                title = made.__name__.removesuffix("Config").lower()  # no flag is called so
                shown.append((title, made, dataclasses.field(default=made())))
    return _make(kind, shown)


def text(about: Sequence[str | None], example: str, prog: str, kind: type, *, whole: bool) -> str:
    """What stands above the flags: the docstrings `about`, an example, and how to see the rest."""
    parts = [inspect.cleandoc(part or "") for part in about]
    parts += [f"example: spikebridge {example}"]
    if not whole:
        flat = {field.name: field for field in each_field(kind)}
        count = len(flat) - len(_positionals(flat))
        parts.append(f"The flags below matter most; all {count}: {prog} --help-all")
    return "\n\n".join(parts)


def _make(kind: Any, fields: Sequence[tuple[str, Any, Any]]) -> type:
    return dataclasses.make_dataclass(
        kind.__name__, fields, frozen=True, kw_only=True, namespace={"__doc__": kind.__doc__}
    )


@cache
def _texts(kind: type) -> dict[str, str]:
    """What is said of each field, in one piece."""
    params = [
        param for item in reversed(kind.__mro__[:-1]) for param in parse_from_object(item).params
    ]
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def _explained(field: LeafField) -> tuple[str, Any, Any]:
    """A field with its help; PATH, not {None}|PATH, and no default where there is none."""
    metadata = getattr(field.hint, "__metadata__", ())
    plain = field.hint.__origin__ if metadata else field.hint
    options = [option for option in get_args(plain) if option is not type(None)]
    optional = get_origin(plain) is not tuple and len(options) == len(get_args(plain)) - 1 == 1
    metavar = options[0].__name__.upper() if optional else None
    for item in metadata:
        metavar = getattr(item, "metavar", None) or metavar
    kept = [item for item in metadata if not hasattr(item, "metavar")]
    nothing = "" if field.value in (None, "", ()) else None
    explanation = _texts(field.owner).get(field.name, "")
    note = tyro.conf.arg(help=explanation, metavar=metavar, help_behavior_hint=nothing)
    return field.name, Annotated[(plain, *kept, note)], dataclasses.field(default=field.value)


def _positionals(flat: dict[str, LeafField]) -> list[str]:
    (marker,) = tyro.conf.Positional[int].__metadata__  # type: ignore[attr-defined]
    return [
        name for name, field in flat.items() if marker in getattr(field.hint, "__metadata__", ())
    ]
