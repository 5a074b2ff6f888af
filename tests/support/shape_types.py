"""Holds what tests call against the shapes that its annotations name."""

from collections.abc import Callable, Sequence
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook


def check_calls(packages: Sequence[str]) -> None:
    """Check each call of a function of packages that are yet to be imported."""
    install_import_hook(packages, f"{__name__}.check_shapes")


def check_shapes(signature: Callable) -> Callable:
    """Check arguments or results where an annotation names a shape, and no other.

    A test may put something simple in the place of a model or of params, but not of an array.

    Args:
        signature: a function that jaxtyping has made, with the annotations of the one to check.
    """
    annotations = signature.__annotations__
    signature.__annotations__ = {k: hint for k, hint in annotations.items() if _has_shape(hint)}
    return beartype(signature)


def _has_shape(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
