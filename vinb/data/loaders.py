"""Loaders: verified files to NumPy arrays. No pickle is ever loaded."""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
import wave
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vinb.data.files import DataError, read
from vinb.data.registry import DATASETS

if TYPE_CHECKING:  # annotations only
    from jaxtyping import Bool, Float64, Int16, UInt8


@dataclass(frozen=True, repr=False, eq=False)
class LabelledImages:
    """Images of digits with their labels, split into training and test, as read-only uint8 NumPy arrays.

    ``white`` is the grey level of full white, which `binarize` and `binarize_dynamic` need where it is not 255.
    ``checksums`` is the sha256 of each file's decompressed content, by file name, for ``record.data``.
    """

    train_images: UInt8[np.ndarray, "train height width"]
    train_labels: UInt8[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width"]
    test_labels: UInt8[np.ndarray, " test"]
    white: int
    checksums: dict[str, str]

    def __repr__(self) -> str:
        size = " x ".join(str(length) for length in self.train_images.shape[1:])
        counts = f"{len(self.train_images)} training and {len(self.test_images)} test images"
        return f"LabelledImages({counts}, {size}, grey levels 0 to {self.white})"


@dataclass(frozen=True, repr=False, eq=False)
class FreyFace:
    """Frey Face: ``images``, read-only uint8, and the sha256 of the user's file as found. No published checksum
    is known, so ``verified`` is False."""

    images: UInt8[np.ndarray, "images 28 20"]
    checksums: dict[str, str]
    verified: bool = False

    def __repr__(self) -> str:
        return f"FreyFace({len(self.images)} images, 28 x 20, unverified)"


@dataclass(frozen=True, repr=False, eq=False)
class Mushrooms:
    """Mushrooms: ``features``, one column for each letter that a characteristic takes ("?" counts as one), zeros and
    ones; ``edible``; both read-only. ``levels`` says which characteristic (0 to 21) and letter each column is."""

    features: UInt8[np.ndarray, "mushrooms columns"]
    edible: Bool[np.ndarray, " mushrooms"]
    levels: list[tuple[int, str]]
    checksums: dict[str, str]

    def __repr__(self) -> str:
        return f"Mushrooms({len(self.edible)}, {int(self.edible.sum())} edible, {self.features.shape[1]} columns)"


@dataclass(frozen=True, repr=False, eq=False)
class SpokenDigits:
    """Recordings of spoken digits: ``waves``, read-only, each of its own length, ``rate`` samples per second; the
    ``digits`` spoken, ``speakers`` and ``takes``, one per recording. Takes 0 to 4 are the test part."""

    waves: list[Int16[np.ndarray, " samples"]]
    digits: UInt8[np.ndarray, " recordings"]
    speakers: list[str]
    takes: UInt8[np.ndarray, " recordings"]
    rate: int
    checksums: dict[str, str]

    def __repr__(self) -> str:
        seconds = sum(map(len, self.waves)) / self.rate
        return f"SpokenDigits({len(self.waves)} recordings by {len(set(self.speakers))} speakers, {seconds:.0f} s, {self.rate} Hz)"


@dataclass(frozen=True, repr=False, eq=False)
class WellLog:
    """The well log: ``values``, read-only, in the order in which they were measured."""

    values: Float64[np.ndarray, " measurements"]
    checksums: dict[str, str]

    def __repr__(self) -> str:
        return f"WellLog({len(self.values):,} measurements)"


def load_mnist() -> LabelledImages:
    """MNIST: 60,000 training and 10,000 test images [28, 28], grey levels 0 to 255, labels 0 to 9.

    Raises:
        DataError: for a file that is missing, truncated, corrupt or cannot be downloaded.
    """
    content = read("mnist")
    return LabelledImages(
        train_images=_idx(content["train-images-idx3-ubyte"]),
        train_labels=_idx(content["train-labels-idx1-ubyte"]),
        test_images=_idx(content["t10k-images-idx3-ubyte"]),
        test_labels=_idx(content["t10k-labels-idx1-ubyte"]),
        white=255,
        checksums=_checksums("mnist"),
    )


def load_digits() -> LabelledImages:
    """The UCI digits carried by scikit-learn: 1,797 images [8, 8], grey levels 0 to 16, labels 0 to 9; the
    first 1,500 are the training part, the last 297 the test part.

    Full white is 16: to binarise them, pass ``white=digits.white``.

    Raises:
        DataError: as `load_mnist` does.
    """
    content = read("digits")
    table = np.loadtxt(io.StringIO(content["digits.csv"].decode("ascii")), delimiter=",", dtype=np.uint8)
    table.flags.writeable = False
    images, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    return LabelledImages(
        images[:1500], labels[:1500], images[1500:], labels[1500:], white=16, checksums=_checksums("digits")
    )


def load_mushroom() -> Mushrooms:
    """The UCI mushrooms: 8,124, of which 4,208 are edible, 22 characteristics as 117 columns of zeros and ones.

    Raises:
        DataError: as `load_mnist` does.
    """
    content = read("uci-mushroom")["agaricus-lepiota.data"].decode("ascii")
    letters = np.array([line.split(",") for line in content.split()])
    columns = [(k, level) for k in range(1, letters.shape[1]) for level in sorted(set(letters[:, k]))]
    features = np.stack([letters[:, k] == level for k, level in columns], 1).astype(np.uint8)
    edible = letters[:, 0] == "e"
    features.flags.writeable = edible.flags.writeable = False
    levels = [(k - 1, str(level)) for k, level in columns]
    return Mushrooms(features, edible, levels, _checksums("uci-mushroom"))


def load_fsdd() -> SpokenDigits:
    """The Free Spoken Digit Dataset: 3,000 recordings, of ten digits by six speakers, 50 takes each, at 8 kHz.

    Raises:
        DataError: as `load_mnist` does.
    """
    waves, labels, rates = [], [], set()
    with tarfile.open(fileobj=io.BytesIO(read("fsdd")["recordings.tar"]), mode="r:") as archive:
        for entry in archive:
            with wave.open(archive.extractfile(entry)) as recording:
                rates.add((recording.getframerate(), recording.getnchannels(), recording.getsampwidth()))
                waves.append(np.frombuffer(recording.readframes(recording.getnframes()), "<i2"))
            labels.append(Path(entry.name).stem.split("_"))
    ((rate, _, _),) = rates  # the content was verified: all alike
    digits, speakers, takes = zip(*labels, strict=True)
    digits, takes = np.array(digits, np.uint8), np.array(takes, np.uint8)
    digits.flags.writeable = takes.flags.writeable = False
    return SpokenDigits(waves, digits, list(speakers), takes, rate, _checksums("fsdd"))


def load_well_log() -> WellLog:
    """The well log: 4,050 measurements of nuclear magnetic response.

    Raises:
        DataError: as `load_mnist` does.
    """
    values = np.loadtxt(io.StringIO(read("well-log")["well_log.txt"].decode("ascii")))
    values.flags.writeable = False
    return WellLog(values, _checksums("well-log"))


def load_frey_face(path: str | PathLike[str]) -> FreyFace:
    """Frey Face from a file of the user's own; it has no stated licence, so vinb neither holds nor fetches
    it.

    The file is NOT verified: say so beside any result.

    Args:
        path: the MATLAB file ``frey_rawface.mat`` (key ``ff``, one column per image) or a ``.npy`` file, uint8, with
            shape [560, images], [images, 560] or [images, 28, 20].

    Returns:
        `FreyFace` with images [images, 28, 20], grey levels 0 to 255.

    Raises:
        DataError: for a file that is missing, of another kind or another shape.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"path={str(path)!r} cannot be read ({error.strerror or error}); pass the path of "
            "frey_rawface.mat from https://cs.nyu.edu/~roweis/data.html, or of a .npy file with its images"
        ) from error
    try:
        pixels = _npy(raw) if path.suffix == ".npy" else _mat(raw)
    except Exception as error:  # a parser fed arbitrary bytes raises what it likes
        raise DataError(
            f"path={str(path)!r} is neither a MATLAB file with the matrix 'ff' nor a .npy file without "
            f"pickled objects ({type(error).__name__}: {error})"
        ) from error
    if pixels.dtype != np.uint8:
        raise DataError(f"path={str(path)!r} holds {pixels.dtype}, expected uint8 grey levels from 0 to 255")
    if pixels.ndim == 2 and pixels.shape[0] == 560:
        pixels = pixels.T
    if pixels.shape[1:] not in ((560,), (28, 20)):
        raise DataError(
            f"path={str(path)!r} holds an array of shape {pixels.shape}, expected [560, images], "
            "[images, 560] or [images, 28, 20]"
        )
    images = np.ascontiguousarray(pixels).reshape(-1, 28, 20)
    images.flags.writeable = False
    return FreyFace(images, {path.name: hashlib.sha256(raw).hexdigest()})


def _npy(raw: bytes) -> np.ndarray:
    return np.load(io.BytesIO(raw), allow_pickle=False)


def _mat(raw: bytes) -> np.ndarray:
    from scipy.io import loadmat  # jax depends on scipy

    return loadmat(io.BytesIO(raw), variable_names=["ff"])["ff"]


def _idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in the IDX format: two zeros, the type 0x08, the number of axes, big-endian
    lengths."""
    if content[:3] != b"\x00\x00\x08":
        raise DataError(f"not an IDX file of unsigned bytes: it begins with {content[:4].hex()}")
    axes = content[3]
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", count=axes, offset=4))
    if len(content) != 4 + 4 * axes + math.prod(shape):
        raise DataError(f"an IDX file of shape {shape} cannot have {len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _checksums(name: str) -> dict[str, str]:
    """As the registry has them: `read` has compared each content with its checksum already."""
    return {file.name: file.sha256 for file in DATASETS[name].files}
