"""Nested mappings, such as params and metrics, as flat keys, and the way back."""

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


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings: {"a.b": 1} becomes {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        *sections, key = dotted.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return nested


def look_up(values: dict[str, Any], dotted: str) -> Any:
    """Return the value of a dotted key in nested mappings; None if there is no such key."""
    inner: Any = values
    for key in dotted.split("."):
        inner = inner.get(key) if isinstance(inner, dict) else None
    return inner
