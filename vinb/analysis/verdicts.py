"""What a check says: verdicts, answers, findings, and the report of all of them."""

from dataclasses import dataclass
from enum import StrEnum

from vinb.tables import Table, Tabled


class Verdict(StrEnum):
    """``VALID`` is proved, ``INVALID`` is a definite violation, ``UNKNOWN`` is neither; ``ERROR``: a program raises."""

    VALID = "VALID"
    INVALID = "INVALID"
    UNKNOWN = "UNKNOWN"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Answer:
    """Is one set within another? ``why`` where it is not known to be, with a ``witness`` where one is known."""

    verdict: Verdict
    why: str = ""
    witness: str = ""


YES = Answer(Verdict.VALID)


def no(why: str, witness: str = "") -> Answer:
    return Answer(Verdict.INVALID, why, witness)


def unknown(why: str) -> Answer:
    return Answer(Verdict.UNKNOWN, why)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or not known to be right, at a site.

    ``kind`` is one of ``support``, ``missing``, ``extra``, ``shape``, ``plate``, ``scale``, ``observation``, ``argument``,
    ``branch``, ``error``, ``integrability``; ``witness`` says what goes wrong where, ``line`` where the site is in the program.
    """

    site: str
    kind: str
    message: str
    verdict: Verdict
    witness: str = ""
    line: str = ""

    def __str__(self):
        witness = f"; witness: {self.witness}" if self.witness else ""
        line = f" at {self.line}" if self.line else ""
        return f"{self.verdict} {self.kind} of {self.site!r}{line}: {self.message}{witness}"


@dataclass(frozen=True, repr=False)
class SupportReport(Tabled):
    """What :func:`support_match` found.

    Attributes:
        verdict: see :class:`Verdict`.
        findings: why, if it is not ``VALID``.
        paths: how many ways through the model and through the guide were looked at.
        assumptions: what ``VALID`` rests on, beyond what the module says.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    paths: tuple[int, int]
    assumptions: tuple[str, ...] = ()
    subject: str = "support match"

    def table(self) -> Table:
        rows = [
            (
                f.site,
                f.kind,
                str(f.verdict),
                f.message + (f" (witness: {f.witness})" if f.witness else ""),
                f.line,
            )
            for f in self.findings
        ]
        rows = rows or [("all", self.subject, str(self.verdict), "nothing found", "")]
        caption = "; ".join([f"{self.subject}: {self.verdict}", *self.assumptions])
        return Table(("site", "what", "verdict", "why", "where"), rows, caption=caption)
