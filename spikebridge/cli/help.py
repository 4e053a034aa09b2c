"""`--help`: an example and the flags that matter; `--help-all`: every flag.

tyro keeps the line breaks of the source in what it says of a flag, and wraps them once more.  So
help is asked of a copy of a command's record, in which every text is one piece.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object

_Field = tuple[str, Any, Any]  # name, annotation with the help, default


def record(kind: type, default: Any, main: Sequence[str], *, whole: bool) -> type:
    """The record that is asked for its help in the place of a command's.

    Args:
        kind: the command's record.
        default: an instance of it with the defaults to show; None: those of its fields.
        main: the flags that stand first; none: all are shown.
        whole: whether the other flags are shown too, in groups.
    """
    flat = {field[0]: field for field in _flat(kind, default)}
    first = [*(name for name in flat if _is_positional(flat[name][1])), *main]
    shown = [flat[name] for name in first if name in flat]
    if whole or not main:
        shown += _rest(kind, default, first)
    return _make(kind, shown)


def flags(kind: type) -> list[str]:
    """The flags of a command."""
    return [name for name, hint, _ in _flat(kind, None) if not _is_positional(hint)]


def text(about: Sequence[str | None], example: str, prog: str, kind: type, *, whole: bool) -> str:
    """What stands above the flags: the docstrings `about`, an example, and how to see the rest."""
    parts = [inspect.cleandoc(part or "") for part in about]
    parts += [f"example: spikebridge {example}"]
    if not whole:
        parts.append(f"The flags below matter most; all {len(flags(kind))}: {prog} --help-all")
    return "\n\n".join(parts)


def _make(kind: Any, fields: Sequence[_Field]) -> type:
    made = [(name, hint, dataclasses.field(default=value)) for name, hint, value in fields]
    return dataclasses.make_dataclass(
        kind.__name__, made, frozen=True, kw_only=True, namespace={"__doc__": kind.__doc__}
    )


def _rest(kind: Any, default: Any, without: Collection[str]) -> list[_Field]:
    """The fields of a record but for some, also of the records within it."""
    fields = []
    for name, hint, value in _fields(kind, default):
        if not dataclasses.is_dataclass(hint):
            fields += [(name, hint, value)] * (name not in without)
        elif inner := _rest(hint, value, without):
            made = _make(hint, inner)
            title = made.__name__.removesuffix("Config").lower()  # no flag is called so
            fields += inner if name == "options" else [(title, made, made())]
    return fields


def _flat(kind: Any, default: Any) -> Iterator[_Field]:
    for name, hint, value in _fields(kind, default):
        if dataclasses.is_dataclass(hint):
            yield from _flat(hint, None if value is dataclasses.MISSING else value)
        else:
            yield name, hint, value


def _fields(kind: Any, default: Any) -> Iterator[_Field]:
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], field.default
        if default is not None:
            value = getattr(default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if not dataclasses.is_dataclass(hint):
            hint = _explained(hint, texts.get(field.name, ""), value)
        yield field.name, hint, value


def _texts(kind: type) -> dict[str, str]:
    """What is said of each field, in one piece."""
    kinds = reversed(kind.__mro__[:-1])
    params = [param for item in kinds for param in parse_from_object(item).params]
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def _explained(hint: Any, text: str, default: Any) -> Any:
    """An annotation with its help; PATH, not {None}|PATH, and no default where there is none."""
    metadata = getattr(hint, "__metadata__", ())
    plain = hint.__origin__ if metadata else hint
    options = [option for option in get_args(plain) if option is not type(None)]
    optional = get_origin(plain) is not tuple and len(options) == len(get_args(plain)) - 1 == 1
    metavar = options[0].__name__.upper() if optional else None
    for item in metadata:
        metavar = getattr(item, "metavar", None) or metavar
    kept = [item for item in metadata if not hasattr(item, "metavar")]
    nothing = "" if default in (None, "", ()) else None
    note = tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint=nothing)
    return Annotated[(plain, *kept, note)]


def _is_positional(hint: Any) -> bool:
    (marker,) = tyro.conf.Positional[int].__metadata__  # type: ignore[attr-defined]
    return marker in getattr(hint, "__metadata__", ())
