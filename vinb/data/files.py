"""Where a data set's files lie, reading them with their checksum verified, and downloading them.

Search order: ``$VINB_DATA/<name>/``, the repository's ``data/<name>/``, the user's cache, then a download into
that cache. The first file found counts: if it is corrupt that is an error, never a reason to go on to the
next place in silence.
"""

import fnmatch
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from vinb.data.registry import Dataset, File, find


class DataError(ValueError):
    """A data file is missing, corrupt or cannot be downloaded; the message says which, and the ways to get
    it."""


def locate(name: str, *, download: bool = True) -> dict[str, Path]:
    """Finds each file of data set ``name``; what is found nowhere is downloaded into the user's cache.

    A file found is not read here: the loaders and `verify` check the content, a download is checked before it
    is kept.

    Args:
        name: a key of `DATASETS`.
        download: False makes a missing file an error instead.

    Returns:
        the path of each file, by file name.

    Raises:
        ValueError: for an unknown name.
        DataError: for a file that cannot be had.
    """
    dataset = find(name)
    _require_files(dataset)
    return {file.name: _locate(dataset, file, download) for file in dataset.files}


def verify(name: str) -> dict[str, str]:
    """Reads every file of data set ``name``, without downloading.

    Args:
        name: a key of `DATASETS`.

    Returns:
        the sha256 of each file's decompressed content, by file name.

    Raises:
        ValueError: for an unknown name.
        DataError: for a file that is missing, truncated or has another checksum than the registry's.
    """
    dataset = find(name)
    _require_files(dataset)
    for file in dataset.files:
        check(_locate(dataset, file, download=False), dataset, file)
    return {file.name: file.sha256 for file in dataset.files}


def download(name: str) -> dict[str, Path]:
    """Puts every file of data set ``name`` into the user's cache.

    A file already there and intact is kept; a corrupt one is replaced. Only https addresses are used, the
    content is verified before the file gets its name, and a failed download leaves nothing behind.

    Args:
        name: a key of `DATASETS`.

    Returns:
        the path of each file, by file name.

    Raises:
        ValueError: for an unknown name.
        DataError: with each address tried and what happened.
    """
    dataset = find(name)
    _require_files(dataset)
    paths = {}
    for file in dataset.files:
        path = next(
            (path for path in _candidates(cache_folder() / dataset.name, file) if path.exists()), None
        )
        if path is not None:
            try:
                check(path, dataset, file)
            except DataError:
                path.unlink()
                path = None
        paths[file.name] = path or _download(dataset, file)
    return paths


def read(name: str) -> dict[str, bytes]:
    """The verified, decompressed content of every file of data set ``name``, by file name."""
    dataset = find(name)
    paths = locate(name)
    return {file.name: check(paths[file.name], dataset, file) for file in dataset.files}


def cache_folder() -> Path:
    """The folder downloads go to, inside the user's cache folder of this operating system."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("vinb")) / "data"


def check(path: Path, dataset: Dataset, file: File) -> bytes:
    """The decompressed content of ``path``; `DataError` unless it is exactly what the registry says."""
    try:
        # An archive may hold more than what counts; the factor stops one that is all zeros from filling the memory.
        content = _decompress(path.read_bytes(), file.size if file.members is None else 10 * file.size)
        content = content if file.members is None else repack(content, file.members)
    except tarfile.TarError as error:
        found = f"no whole tar archive ({error})"
    except EOFError:
        found = f"a gzip file cut off after {path.stat().st_size} bytes"
    except (gzip.BadGzipFile, zlib.error) as error:
        found = f"a corrupt gzip file ({error})"
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
    else:
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == file.sha256:
            return content
        size = f"more than {file.size}" if len(content) > file.size else str(len(content))
        found = f"{size} bytes" + (f" with sha256 {sha256}" if len(content) <= file.size else "")
    raise DataError(
        f"{dataset.title}: the file {path} is not {file.name}.\n"
        f"  expected: {file.size} bytes (uncompressed) with sha256 {file.sha256}\n"
        f"  found: {found}\n"
        "Delete or replace that file. " + _ways(dataset, file)
    )


def _decompress(raw: bytes, size: int) -> bytes:
    """At most size + 1 bytes, which is enough to tell; told by the first two bytes, since servers may
    decompress."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
        return stream.read(size + 1)


def repack(archive: bytes, members: str) -> bytes:
    """An uncompressed tar archive of those files of ``archive`` whose folder and name match the pattern ``members``: in the
    order of their names, without dates, owners and the folders above. Nothing is written to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as source:
        files = {"/".join(PurePosixPath(entry.name).parts[-2:]): entry for entry in source if entry.isfile()}
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as packed:
            for name in sorted(fnmatch.filter(files, members)):
                entry = tarfile.TarInfo(name)
                entry.size = files[name].size
                packed.addfile(entry, source.extractfile(files[name]))
    return target.getvalue()


def _require_files(dataset: Dataset) -> None:
    if not dataset.files:
        raise DataError(
            f"{dataset.title} has no verified file. Licence: {dataset.licence}. {dataset.source}."
        )


def _candidates(folder: Path, file: File) -> tuple[Path, Path]:
    return folder / f"{file.name}.gz", folder / file.name


def _places() -> list[Path]:
    """The folders that may hold data sets, in search order."""
    places = []
    if given := os.environ.get("VINB_DATA"):
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"VINB_DATA={given} is not a folder; name the folder that holds mnist/, or unset it"
            )
        places.append(folder)
    here = Path.cwd()
    roots = [here, *here.parents, Path(__file__).resolve().parents[2]]
    if given := os.environ.get("VINB_ROOT"):
        roots.insert(0, Path(given).expanduser())
    # An unrelated folder that happens to be called data is none of ours: only a vinb repository's counts.
    places += [root / "data" for root in roots if (root / "notebooks" / "references.bib").is_file()]
    return [*places, cache_folder()]


def _locate(dataset: Dataset, file: File, download: bool) -> Path:
    places = list(dict.fromkeys(place / dataset.name for place in _places()))
    for folder in places:
        for path in _candidates(folder, file):
            if path.exists():
                return path
    if download:
        return _download(dataset, file)
    searched = "".join(f"\n  {folder}" for folder in places)
    raise DataError(
        f"{dataset.title}: {file.name} (or {file.name}.gz) is missing; looked in{searched}\n"
        + _ways(dataset, file)
    )


def _ways(dataset: Dataset, file: File) -> str:
    urls = "".join(f"\n     {url}" for url in file.urls)
    return (
        "Ways to get it:\n"
        f"  1. set VINB_DATA to a folder that holds {dataset.name}/{file.name}.gz, "
        f"or {dataset.name}/{file.name};\n"
        f"  2. with a network, run `vinb data download {dataset.name}`;\n"
        f"  3. download one of these yourself, into {cache_folder() / dataset.name}:{urls}"
    )


def _download(dataset: Dataset, file: File) -> Path:
    folder = cache_folder() / dataset.name
    target = folder / f"{file.name}.gz"
    failures = []
    for url in file.urls:
        part = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            os.close(handle)
            _fetch(url, part)
            check(Path(part), dataset, file)
            with open(part, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, target)
            return target
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, DataError is a ValueError
            failures.append(f"\n  {url}: {_reason(error)}")
        finally:  # also when interrupted from the keyboard
            if part is not None:
                Path(part).unlink(missing_ok=True)
    raise DataError(
        f"{dataset.title}: {file.name} was found nowhere here and could not be downloaded."
        f"{''.join(failures)}\n"
        f"Expected: {file.size} bytes (uncompressed) with sha256 {file.sha256}. " + _ways(dataset, file)
    )


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return next((line.strip() for line in str(error).splitlines() if "found:" in line), str(error))
    return f"{type(error).__name__}: {error}"


def _fetch(url: str, path: str) -> None:
    import pooch

    _require_https(url)
    fetch = pooch.HTTPDownloader(progressbar=False, timeout=30, hooks={"response": _check_redirect})
    fetch(url, path, None)


def _check_redirect(response, **_) -> None:
    """Called before a redirect is followed: https must not lead to http."""
    if response.is_redirect:
        from urllib.parse import urljoin

        _require_https(urljoin(response.url, response.headers["location"]))


def _require_https(url: str) -> None:
    if not url.startswith("https://"):
        raise DataError(f"{url} is not an https address; only https downloads are made")
