"""Static analyses of programs through their jaxprs: what depends on what, supports, smoothness, branches.

Design notes. Everything here traces a program and looks at its jaxpr; nothing is drawn. ``audit`` puts the analyses together with
measured variances, for which it needs the objectives above this room: it lives in ``vinb.audit`` and is only named here.
"""

import importlib

from vinb.analysis.abstract import Level
from vinb.analysis.dependence import dependence, tag
from vinb.analysis.integrability import integrability
from vinb.analysis.knowledge import without
from vinb.analysis.smoothness import Selection, SmoothnessReport, select_pathwise, smoothness
from vinb.analysis.support import assert_support_match, support_match
from vinb.analysis.verdicts import Finding, SupportReport, Verdict

__all__ = [
    "Finding",
    "Level",
    "Selection",
    "SmoothnessReport",
    "SupportReport",
    "Verdict",
    "assert_support_match",
    "audit",
    "dependence",
    "integrability",
    "select_pathwise",
    "smoothness",
    "support_match",
    "tag",
    "without",
]


def __getattr__(name):
    if name == "audit":
        return importlib.import_module("vinb.audit").audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
