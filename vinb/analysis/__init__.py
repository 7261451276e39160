"""Static analyses of programs through their jaxprs: what depends on what, and along which axes."""

from vinb.analysis.dependence import dependence, tag

__all__ = ["dependence", "tag"]
