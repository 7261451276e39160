"""What data sets there are: files, checksums, licence, citation and where each comes from."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class File:
    """One file of a data set.

    ``sha256`` and ``size`` (bytes) are of the decompressed content, because gzip copies of one file differ in
    their bytes. On disk the file may lie compressed (``<name>.gz``) or not (``<name>``). ``urls`` are tried in
    order; https only. ``members``, of a tar archive: a pattern for folder and name of the files that count. The
    content is then an archive of these alone (`vinb.data.files.repack`), because what else is in one, and when it was
    packed, differs between sources.
    """

    name: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()
    members: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set: ``name`` (also its folder), ``title``, ``files``, ``licence``, ``citation`` (BibTeX), ``source`` (where
    it comes from, in words), ``contents`` (what is in it, in words) and whether it is embedded in the
    repository, as its licence allows; otherwise it is downloaded when first used."""

    name: str
    title: str
    files: tuple[File, ...]
    licence: str
    citation: str
    source: str
    contents: str
    embeddable: bool


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def _mnist_file(name: str, sha256: str, size: int) -> File:
    return File(name, sha256, size, tuple(f"{mirror}{name}.gz" for mirror in _MNIST_MIRRORS))


_MNIST = Dataset(
    name="mnist",
    title="MNIST handwritten digits",
    files=(
        _mnist_file(
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            47_040_016,
        ),
        _mnist_file(
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            60_008,
        ),
        _mnist_file(
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            7_840_016,
        ),
        _mnist_file(
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            10_008,
        ),
    ),
    licence="CC BY-SA 3.0",
    citation="""@article{lecun1998mnist,
  title = {Gradient-based learning applied to document recognition},
  author = {LeCun, Yann and Bottou, L\\'eon and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998},
  doi = {10.1109/5.726791}
}""",
    source="Y. LeCun, C. Cortes and C. J. C. Burges, from NIST's Special Databases 1 and 3",
    contents="60,000 training and 10,000 test images of 28 x 28 grey levels (0 to 255), with labels 0 to 9",
    embeddable=True,
)

_DIGITS = Dataset(
    name="digits",
    title="Optical recognition of handwritten digits",
    files=(
        File(
            "digits.csv",
            "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
            264_712,
            (
                "https://raw.githubusercontent.com/scikit-learn/scikit-learn/1.9.1/sklearn/datasets/data/digits.csv.gz",
            ),
        ),
    ),
    licence="CC BY 4.0",
    citation="""@misc{alpaydin1998digits,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  howpublished = {UCI Machine Learning Repository},
  year = {1998},
  doi = {10.24432/C50P49}
}""",
    source="E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "
    "as carried by scikit-learn (BSD-3-Clause)",
    contents="1,797 images of 8 x 8 grey levels (0 to 16), with labels 0 to 9; "
    "the first 1,500 train, the last 297 test",
    embeddable=True,
)

# Without a stated licence it can be neither embedded nor fetched for the user, and no published checksum is
# known.
_FREY_FACE = Dataset(
    name="frey-face",
    title="Frey Face",
    files=(),
    licence="none stated",
    citation="""@misc{roweis2000freyface,
  title = {Frey Face},
  author = {Roweis, Sam and Frey, Brendan},
  howpublished = {https://cs.nyu.edu/~roweis/data.html},
  year = {2000}
}""",
    source="B. Frey and S. Roweis, https://cs.nyu.edu/~roweis/data.html (frey_rawface.mat); "
    "pass the file's path to vinb.data.load_frey_face; it is not verified",
    contents="1,965 images of 28 x 20 grey levels (0 to 255) of one face",
    embeddable=False,
)

_MUSHROOM = Dataset(
    name="uci-mushroom",
    title="Mushroom",
    files=(
        File(
            "agaricus-lepiota.data",
            "e65d082030501a3ebcbcd7c9f7c71aa9d28fdfff463bf4cf4716a3fe13ac360e",
            373_704,
            ("https://archive.ics.uci.edu/ml/machine-learning-databases/mushroom/agaricus-lepiota.data",),
        ),
    ),
    licence="CC BY 4.0",
    citation="""@misc{mushroom1981,
  title = {Mushroom},
  howpublished = {UCI Machine Learning Repository},
  year = {1981},
  doi = {10.24432/C5959T}
}""",
    source="UCI Machine Learning Repository, from the Audubon Society Field Guide (1981)",
    contents="8,124 mushrooms described by 22 letters each, 4,208 of them edible",
    embeddable=False,
)

_FSDD = Dataset(
    name="fsdd",
    title="Free Spoken Digit Dataset",
    files=(
        File(
            "recordings.tar",
            "9cbd40a399fee10d4611dc8ffe6de219695fd804a62dfb43373f183715b43877",
            23_429_120,
            (
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/26eb9aaf76e81b692f806f9140c2d2777410d7a1.tar.gz",
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",
            ),
            members="recordings/*.wav",
        ),
    ),
    licence="CC BY-SA 4.0",
    citation="""@misc{jackson2018fsdd,
  title = {Free Spoken Digit Dataset},
  author = {Jackson, Zohar and others},
  howpublished = {https://github.com/Jakobovski/free-spoken-digit-dataset},
  year = {2018}
}""",
    source="Z. Jackson and contributors, https://github.com/Jakobovski/free-spoken-digit-dataset",
    contents="3,000 recordings of ten digits in English by six speakers, 50 takes each, at 8 kHz; takes 0 to 4 are "
    "the test part",
    embeddable=False,
)

_WELL_LOG = Dataset(
    name="well-log",
    title="Well log",
    files=(
        File(
            "well_log.txt",
            "cd2a1be7dd895e92e28f00cc522d8c2721b67208ecb6ef942547b797d6dccb7a",
            56_700,
            (
                "https://raw.githubusercontent.com/alan-turing-institute/TCPD/master/datasets/well_log/well_log.txt",
            ),
        ),
    ),
    licence="MIT, as carried by the Turing Change Point Dataset",
    citation="""@book{oruanaidh1996numerical,
  title = {Numerical Bayesian Methods Applied to Signal Processing},
  author = {{\'O} Ruanaidh, Joseph J. K. and Fitzgerald, William J.},
  publisher = {Springer},
  year = {1996}
}""",
    source="J. J. K. O Ruanaidh and W. J. Fitzgerald, as carried by the Turing Change Point Dataset",
    contents="4,050 measurements of nuclear magnetic response made while drilling a well",
    embeddable=False,
)

DATASETS = MappingProxyType(
    {dataset.name: dataset for dataset in (_MNIST, _DIGITS, _FREY_FACE, _MUSHROOM, _FSDD, _WELL_LOG)}
)
"""All data sets by name (read-only)."""


def find(name: str) -> Dataset:
    """The data set called ``name``; ValueError listing the names there are if there is none."""
    try:
        return DATASETS[name]
    except (KeyError, TypeError):
        raise ValueError(f"name={name!r} is not a data set; pass one of {', '.join(DATASETS)}") from None


def describe(name: str) -> str:
    """One paragraph for a notebook: what is in the data set, its size, licence, source and citation key.

    Args:
        name: a key of `DATASETS`.

    Raises:
        ValueError: for an unknown name.
    """
    dataset = find(name)
    size = sum(file.size for file in dataset.files)
    if size >= 1_000_000:
        size_text = f" ({size / 1e6:.0f} MB uncompressed)"
    elif size:
        size_text = f" ({size / 1e3:.0f} kB uncompressed)"
    else:
        size_text = ""
    key = dataset.citation.split("{", 1)[1].split(",", 1)[0]
    checked = "Each file is checked against its sha256 when it is loaded." if dataset.files else ""
    return (
        f"{dataset.title}: {dataset.contents}{size_text}. "
        f"Licence: {dataset.licence}. Source: {dataset.source}. Cite as {key}. {checked}"
    ).strip()
