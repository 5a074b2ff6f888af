"""Checks the functions that tests call against the shapes in their annotations."""

from collections.abc import Callable, Sequence
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook


def check_calls(packages: Sequence[str]) -> None:
    """Check each call of a function in packages that are not imported yet."""
    install_import_hook(packages, f"{__name__}.check_shapes")


def check_shapes(signature: Callable) -> Callable:
    """Check only arguments and results whose annotation names a shape.

    A test may replace a model or params by something simple, but not an array.

    Args:
        signature: a function made by jaxtyping, with the annotations of the one to check.
    """
    annotations = signature.__annotations__
    signature.__annotations__ = {k: hint for k, hint in annotations.items() if _has_shape(hint)}
    return beartype(signature)


def _has_shape(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
