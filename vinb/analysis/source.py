"""Where in a user's program an equation of a jaxpr comes from, and what it calls."""

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

try:
    from jax._src import source_info_util  # no public name for it
except ImportError:  # pragma: no cover
    source_info_util = None

# Primitives whose outputs are those of the one jaxpr that they carry.
CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "call", "remat", "remat2", "checkpoint", "custom_jvp_call"}
    | {"custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"}
)


def source_line(eqn: JaxprEqn) -> str:
    """``file.py:12 (function)``, or ``an unknown line`` where JAX does not say."""
    try:
        frame = source_info_util.user_frame(eqn.source_info.traceback)
        return place(frame.file_name, frame.start_line, frame.function_name)
    except Exception:  # whatever an internal function raises once it has changed: the line is a courtesy
        return "an unknown line"


def place(file: str, line: int, function: str) -> str:
    """Where something stands, without the folders of somebody's machine."""
    file = file.replace("\\", "/")
    name = "a cell" if "/ipykernel_" in file or file.startswith("<ipython") else file.rsplit("/", 1)[-1]
    return f"{name}:{line} ({function.rsplit('.<locals>.', 1)[-1]})"


def library_function(eqn: JaxprEqn) -> str:
    """The name of the function of JAX's own that an equation calls, or an empty string: a user's function of that name is not
    one."""
    inner = called_jaxpr(eqn)
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    where = str(getattr(info, "func_src_info", "")).replace("\\", "/")
    return getattr(info, "func_name", "") if "/jax/_src/" in where else ""


def called_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr that a call is a call of; None for other equations."""
    if eqn.primitive.name not in CALLS:
        return None
    return next((p for p in eqn.params.values() if isinstance(p, ClosedJaxpr | Jaxpr)), None)
