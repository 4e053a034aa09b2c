"""What the hooks of all rules that are attached to a model share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Hook", "compile_anew"]


def _nothing(*args: Any) -> None:
    return None


def _plain() -> Callable[..., None]:
    return _nothing


class Hook:
    """A hook that stays behind when its model is copied or pickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _plain, ()


def compile_anew() -> None:
    """Let torch.compile see the hooks of modules as they are now, at the next call of each graph.

    Its graphs are not guarded by the hooks of modules: what was compiled before goes on without
    those that were added, and with those that were removed.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
