"""Fixtures of several files."""

from helpers.benches import array, server

__all__ = ["array", "server"]
