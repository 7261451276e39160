"""What the smoothness analysis knows beyond its table of rules, and how to see what it is worth."""

import contextlib
import contextvars

PARTS = ("idioms", "signatures", "supports")
_missing: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
    "missing knowledge", default=frozenset()
)


def knows(part: str) -> bool:
    """Is this part in use?"""
    return part not in _missing.get()


@contextlib.contextmanager
def without(*parts: str):
    """Analyse with parts of the knowledge taken away: still sound, less sharp.

    Args:
        parts: ``"idioms"`` (logsumexp, softmax, softplus and named functions of JAX), ``"signatures"`` (how smooth the
            log densities of NumPyro are), ``"supports"`` (what values draws and parameters may take).

    Raises:
        ValueError: for any other part.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"parts must be among {', '.join(map(repr, PARTS))}, got {unknown}")
    token = _missing.set(_missing.get() | set(parts))
    try:
        yield
    finally:
        _missing.reset(token)
