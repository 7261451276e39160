"""The registry of data sets: embedded, cached, or downloaded with a checksum. Importing it does not import
jax.

`DATASETS` says what there is; `load_mnist`, `load_digits`, `load_mushroom`, `load_fsdd`, `load_well_log` and `load_frey_face`
return arrays; `locate`, `verify` and `download` manage the files; `binarize` and `binarize_dynamic` turn grey levels into the
zeros and ones a Bernoulli model needs.
"""

from vinb.data.binarize import binarize, binarize_dynamic
from vinb.data.files import DataError, download, locate, verify
from vinb.data.loaders import (
    FreyFace,
    LabelledImages,
    Mushrooms,
    SpokenDigits,
    WellLog,
    load_digits,
    load_frey_face,
    load_fsdd,
    load_mnist,
    load_mushroom,
    load_well_log,
)
from vinb.data.registry import DATASETS, Dataset, File, describe

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "File",
    "FreyFace",
    "LabelledImages",
    "Mushrooms",
    "SpokenDigits",
    "WellLog",
    "binarize",
    "binarize_dynamic",
    "describe",
    "download",
    "load_digits",
    "load_frey_face",
    "load_fsdd",
    "load_mnist",
    "load_mushroom",
    "load_well_log",
    "locate",
    "verify",
]
