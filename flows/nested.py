"""Nested mappings, such as params and metrics, as flat keys."""

from collections.abc import Iterator
from typing import Any


def flatten(values: dict[Any, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of every value that is no mapping, keys joined by the separator."""
    for key, value in values.items():
        inner = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, separator, inner + separator)
        else:
            yield inner, value
