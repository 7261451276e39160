"""What a pair of programs is, and the two sizes it comes in."""

from collections.abc import Callable
from typing import Any, NamedTuple

SCALES = ("small", "original")


class Pair(NamedTuple):
    """A model, its guide, and the arguments that both take."""

    name: str
    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any] = {}  # noqa: RUF012


def check_scale(scale: str) -> None:
    """Raise ValueError unless ``scale`` is one of ``SCALES``."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(map(repr, SCALES))}, got {scale!r}")


def sized(scale: str, *, small: tuple, original: tuple) -> tuple:
    """The sizes of one of ``SCALES``."""
    check_scale(scale)
    return small if scale == "small" else original
