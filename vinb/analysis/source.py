"""Where in a user's program an equation of a jaxpr comes from."""

from jax.extend.core import JaxprEqn

try:
    from jax._src import source_info_util  # no public name for it
except ImportError:  # pragma: no cover
    source_info_util = None


def source_line(eqn: JaxprEqn) -> str:
    """``file.py:12 (function)``, or ``an unknown line`` where JAX does not say."""
    try:
        return source_info_util.summarize(eqn.source_info) or "an unknown line"
    except Exception:  # whatever an internal function raises once it has changed: the line is a courtesy
        return "an unknown line"
