"""How a notebook is run, recorded, checked and cited. Nothing here imports jax.

A notebook's second cell begins its record, and its last section finishes it::

    from vinb import experiment

    record = experiment.begin(globals(), notebook="vae", paper="kingma2014aevb", presets=PRESETS)
    settings = record.settings
    ...
    record.metric("L_5000", bound, unit="nats", paper=86.76, source="Burda et al., Table 1")
    record.claim("order", "More latent dimensions do not hurt", gaps, at_least=0.0, source="Figure 2")
    record.figure(fig, "figure-4", alt="...", caption="...")
    record.finish()

Schema 1 of ``record.json``
---------------------------
``schema``
    1. Raised when a key changes its meaning or goes away; new keys do not raise it.
``result``
    The same bytes for the same code, seed and number of cores.

    - ``notebook``, ``paper`` (BibTeX key or null), ``preset``, ``seed``;
    - ``parameters``: name -> value in force; ``overrides``: names of those that differ from the preset's
      value;
    - ``metrics``: list of ``{name, value, unit, paper, source, setting, error}``; ``paper`` is the paper's
      own number, ``source`` the place where it prints it, ``error`` a standard error of ``value`` (each null
      where there is none);
    - ``claims``: list of ``{name, statement, measured, tolerance, verdict, source, reason}``; ``measured`` is
      a number, a list of numbers or null; ``tolerance`` is one of ``{"at_least": x}``, ``{"at_most": x}``,
      ``{"within": [target, tolerance]}``, ``{"holds": bool}`` or null; ``verdict`` is ``held``, ``failed``,
      ``not-applicable`` or ``known-miss``; ``reason`` says why a claim is not applicable, or is the evidence
      of a known miss;
    - ``figures``: list of ``{name, caption, alt}``, the files being ``figures/<name>.svg`` and ``.png``
      beside the record;
    - ``data``: file name -> sha256.
``environment``
    Exempt from that rule: ``vinb``, ``python``, ``packages`` (name -> version), ``system``, ``cores``,
    ``device`` (of `vinb.accelerator.environment`, null where jax was not imported), ``seconds`` (name -> wall
    time), ``date`` (UTC), ``notebook_hash`` (`vinb.experiment.notebooks.code_hash` of the notebook file, null
    where the cells that ran are not those of the file, in its order), ``vinb_hash`` (of the package's source) and
    ``commit`` (the parent commit, null outside git).
``bibtex``
    The paper's BibTeX entry, or an empty string.
"""

from vinb.experiment.begin import begin
from vinb.experiment.citation import bibtex, provenance
from vinb.experiment.claims import ClaimsFailed
from vinb.experiment.parameters import ParameterError, Settings
from vinb.experiment.paths import RootNotFound, root
from vinb.experiment.record import Record
from vinb.experiment.saved import SavedRecord, compare, load

__all__ = [
    "ClaimsFailed",
    "ParameterError",
    "Record",
    "RootNotFound",
    "SavedRecord",
    "Settings",
    "begin",
    "bibtex",
    "compare",
    "load",
    "provenance",
    "root",
]
