"""vinb.data: the registry, verified loading, downloads that leave nothing half-written."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from vinb import data
from vinb.data import files, registry

REPOSITORY = Path(__file__).resolve().parents[1]
TOY_CONTENT = bytes(range(256)) * 40


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty places (VINB_DATA, a repository, a cache) and a data set `toy` of one small file."""
    for folder in ("given", "repository/notebooks", "cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "repository" / "notebooks" / "references.bib").touch()
    monkeypatch.setenv("VINB_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("VINB_ROOT", str(tmp_path / "repository"))
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("no_proxy", "*")
    toy = registry.Dataset(
        name="toy",
        title="Toy",
        files=(registry.File("toy.bin", hashlib.sha256(TOY_CONTENT).hexdigest(), len(TOY_CONTENT)),),
        licence="none",
        citation="",
        source="here",
        contents="bytes",
        embeddable=True,
    )
    _register(monkeypatch, toy)
    return tmp_path


def _register(monkeypatch, dataset):
    monkeypatch.setattr(registry, "DATASETS", {**registry.DATASETS, dataset.name: dataset})


def _urls(monkeypatch, *urls):
    """Gives the toy data set these addresses."""
    toy = registry.DATASETS["toy"]
    _register(monkeypatch, dataclasses.replace(toy, files=(dataclasses.replace(toy.files[0], urls=urls),)))


def _put(folder, content, name="toy.bin.gz"):
    path = folder / "toy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Loading


def test_mnist_is_the_published_one(monkeypatch):
    monkeypatch.delenv("VINB_DATA", raising=False)
    monkeypatch.setenv("VINB_ROOT", str(REPOSITORY))
    assert all(
        path.is_relative_to(REPOSITORY / "data") for path in data.locate("mnist", download=False).values()
    )
    mnist = data.load_mnist()
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    assert mnist.train_images.dtype == mnist.train_labels.dtype == np.uint8
    assert mnist.train_images.max() == mnist.white == 255
    # Well known: class counts, and the mean grey level 0.1307 that every tutorial normalises with.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train_labels).tolist() == counts
    assert np.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(mnist.train_images.mean() / 255 - 0.1307) < 5e-5
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    raw = gzip.decompress((REPOSITORY / "data/mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
    assert mnist.checksums["t10k-labels-idx1-ubyte"] == hashlib.sha256(raw).hexdigest()
    assert len(mnist.checksums) == 4
    with pytest.raises(ValueError, match="read-only"):
        mnist.train_images[0] = 0


def test_digits(monkeypatch):
    monkeypatch.delenv("VINB_DATA", raising=False)
    monkeypatch.setenv("VINB_ROOT", str(REPOSITORY))
    digits = data.load_digits()
    assert digits.train_images.shape == (1500, 8, 8)
    assert digits.test_images.shape == (297, 8, 8)
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert images.min() == 0
    assert images.max() == digits.white == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The first image as scikit-learn's documentation prints it.
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_mushrooms(monkeypatch):
    """Not embedded, so three lines of it: every letter of a characteristic is a column, "?" too."""
    rows = ["e,x,s,n", "p,x,?,w", "e,b,s,n"]
    content = {"agaricus-lepiota.data": "".join(f"{row}\n" for row in rows).encode()}
    monkeypatch.setattr("vinb.data.loaders.read", lambda name: content)
    mushrooms = data.load_mushroom()
    assert mushrooms.edible.tolist() == [True, False, True]
    assert mushrooms.levels == [(0, "b"), (0, "x"), (1, "?"), (1, "s"), (2, "n"), (2, "w")]
    assert mushrooms.features.tolist() == [[0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0]]
    assert repr(mushrooms) == "Mushrooms(3, 2 edible, 6 columns)"


def test_well_log(monkeypatch):
    monkeypatch.setattr(
        "vinb.data.loaders.read", lambda name: {"well_log.txt": b"1.3353060e+05\n1.3371910e+05\n"}
    )
    found = data.load_well_log()
    assert found.values.tolist() == [133530.6, 133719.1]
    assert not found.values.flags.writeable
    assert repr(found) == "WellLog(2 measurements)"


def _wave(samples):
    target = io.BytesIO()
    with wave.open(target, "wb") as recording:
        recording.setparams((1, 2, 8000, 0, "NONE", ""))
        recording.writeframes(np.array(samples, "<i2").tobytes())
    return target.getvalue()


def _tar(contents, **attributes):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for attribute, value in attributes.items():
                setattr(entry, attribute, value)
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


RECORDINGS = {
    "7_theo_0.wav": _wave([1, -2, 3]),
    "0_theo_12.wav": _wave([-32768, 32767]),
    "0_lucas_4.wav": _wave([]),
}


def test_spoken_digits(monkeypatch):
    packed = files.repack(_tar({f"recordings/{n}": c for n, c in RECORDINGS.items()}), "recordings/*.wav")
    monkeypatch.setattr("vinb.data.loaders.read", lambda name: {"recordings.tar": packed})
    spoken = data.load_fsdd()
    assert [w.tolist() for w in spoken.waves] == [[], [-32768, 32767], [1, -2, 3]]
    assert spoken.digits.tolist() == [0, 0, 7]
    assert spoken.takes.tolist() == [4, 12, 0]
    assert spoken.speakers == ["lucas", "theo", "theo"]
    assert spoken.rate == 8000
    assert repr(spoken) == "SpokenDigits(3 recordings by 2 speakers, 0 s, 8000 Hz)"
    assert not any(a.flags.writeable for a in (*spoken.waves, spoken.digits, spoken.takes))


def test_an_archive_counts_by_its_members(places, monkeypatch):
    """Whatever else a server packs with them, when, in which order and below which folder."""
    one = _tar({f"recordings/{n}": c for n, c in RECORDINGS.items()}, mtime=5, uname="a", mode=0o600)
    other = _tar(
        {f"set-1.0/recordings/{n}": c for n, c in reversed(RECORDINGS.items())}
        | {"set-1.0/README.md": b"text", "set-1.0/recordings/notes.txt": b"text"}
    )
    packed = files.repack(one, "recordings/*.wav")
    file = registry.File(
        "recordings.tar", hashlib.sha256(packed).hexdigest(), len(packed), members="recordings/*.wav"
    )
    toy = dataclasses.replace(registry.DATASETS["toy"], files=(file,))
    _register(monkeypatch, toy)
    for content in (one, gzip.compress(one), gzip.compress(other), packed):
        _put(places / "given", content, "recordings.tar")
        assert data.verify("toy") == {"recordings.tar": file.sha256}
        assert files.read("toy") == {"recordings.tar": packed}
    fewer = _tar({"recordings/7_theo_0.wav": RECORDINGS["7_theo_0.wav"]})
    changed = other.replace(RECORDINGS["7_theo_0.wav"], _wave([1, -2, 4]))
    for content, found in (
        (fewer, "sha256"),
        (changed, f"{len(packed)} bytes with sha256"),
        (one[:700], "no whole tar archive|sha256"),
        (b"<html>not found</html>", "no whole tar archive"),
        (gzip.compress(one)[:-20], "cut off"),
        (gzip.compress(bytes(11 * len(packed))), "sha256"),
    ):
        _put(places / "given", content, "recordings.tar")
        with pytest.raises(data.DataError, match=rf"found: .*({found})"):
            data.verify("toy")


def test_readme_of_data_lists_every_embedded_file_and_checksum():
    text = (REPOSITORY / "data" / "README.md").read_text()
    embedded = sorted(path.name for path in (REPOSITORY / "data").glob("*/*"))
    sets = [dataset for dataset in data.DATASETS.values() if dataset.embeddable]
    known = {f"{file.name}.gz": file.sha256 for dataset in sets for file in dataset.files}
    assert embedded == sorted(known)
    for name, sha256 in known.items():
        assert f"| {name} | {sha256} |" in text
    assert all(dataset.licence in text for dataset in sets)


def test_registry_is_https_and_complete():
    for name, dataset in data.DATASETS.items():
        assert name == dataset.name
        assert dataset.licence in data.describe(name)
        assert dataset.citation.startswith("@")
        assert dataset.citation.count("{") == dataset.citation.count("}")
        key = dataset.citation.splitlines()[0].partition("{")[2].rstrip(",")
        assert f"Cite as {key}." in data.describe(name)
        for file in dataset.files:
            assert file.urls
            assert all(url.startswith("https://") for url in file.urls)
    with pytest.raises(ValueError, match=r"'mnits' is not a data set; pass one of mnist, digits"):
        data.describe("mnits")


def test_import_does_not_import_jax():
    code = "import sys, vinb.data; vinb.data.describe('mnist'); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# Finding


def test_search_order_and_both_forms(places):
    compressed = gzip.compress(TOY_CONTENT, 1)
    cached = _put(places / "cache", compressed)
    assert data.locate("toy") == {"toy.bin": cached}
    embedded = _put(places / "repository" / "data", TOY_CONTENT, "toy.bin")
    assert data.locate("toy") == {"toy.bin": embedded}
    given = _put(places / "given", gzip.compress(TOY_CONTENT, 9))  # other bytes, the same content
    assert given.read_bytes() != compressed
    assert data.locate("toy") == {"toy.bin": given}
    for path in (given, embedded, cached):
        assert data.verify("toy") == {"toy.bin": hashlib.sha256(TOY_CONTENT).hexdigest()}
        path.unlink()


def test_an_unrelated_data_folder_is_not_searched(places, monkeypatch):
    monkeypatch.chdir(places)
    _put(places / "data", gzip.compress(TOY_CONTENT))
    with pytest.raises(data.DataError, match="is missing"):
        data.locate("toy", download=False)


def test_missing_file_says_where_it_looked_and_how_to_get_it(places, monkeypatch):
    _urls(monkeypatch, "https://example.org/toy.bin.gz")
    with pytest.raises(data.DataError) as error:
        data.verify("toy")
    message = str(error.value)
    for part in (
        "toy.bin.gz",
        str(places / "given"),
        str(places / "repository" / "data"),
        str(places / "cache"),
    ):
        assert part in message
    for way in ("set VINB_DATA", "vinb data download toy", "https://example.org/toy.bin.gz"):
        assert way in message


def test_vinb_data_that_is_no_folder(places, monkeypatch):
    monkeypatch.setenv("VINB_DATA", str(places / "typo"))
    with pytest.raises(data.DataError, match=r"VINB_DATA=.*typo is not a folder"):
        data.locate("toy")


def _flip(content):
    """One byte of the deflate stream changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (gzip.compress(TOY_CONTENT)[:-20], "cut off"),
        (_flip(gzip.compress(TOY_CONTENT)), "corrupt gzip|cut off|sha256"),
        (gzip.compress(TOY_CONTENT)[:-8] + bytes(8), "corrupt gzip"),  # the gzip checksum itself
        (gzip.compress(TOY_CONTENT[:-1]), f"{len(TOY_CONTENT) - 1} bytes with sha256"),
        (gzip.compress(TOY_CONTENT + bytes(9999)), f"more than {len(TOY_CONTENT)} bytes"),
        (gzip.compress(TOY_CONTENT[::-1]), f"{len(TOY_CONTENT)} bytes with sha256"),
        (TOY_CONTENT[:100], "100 bytes with sha256"),
        (b"", "0 bytes with sha256"),
        (b"<html>not found</html>", "22 bytes with sha256"),
    ],
)
def test_a_corrupt_file_is_an_error_even_if_a_later_place_has_a_good_one(places, content, found):
    _put(places / "cache", gzip.compress(TOY_CONTENT))
    path = _put(places / "given", content)
    with pytest.raises(data.DataError, match=rf"found: .*({found})") as error:
        data.verify("toy")
    message = str(error.value)
    assert str(path) in message
    assert hashlib.sha256(TOY_CONTENT).hexdigest() in message
    assert "VINB_DATA" in message
    assert "vinb data download toy" in message


def test_loaders_refuse_what_verify_refuses(places):
    folder = places / "given" / "digits"
    folder.mkdir()
    good = gzip.decompress((REPOSITORY / "data" / "digits" / "digits.csv.gz").read_bytes())
    (folder / "digits.csv").write_bytes(good.replace(b"13", b"12", 1))
    with pytest.raises(data.DataError, match=r"digits\.csv"):
        data.load_digits()
    (folder / "digits.csv").write_bytes(good)
    assert len(data.load_digits().train_images) == 1500


# Downloading


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        good = gzip.compress(TOY_CONTENT)
        body = {"/good": good, "/wrong": gzip.compress(b"wrong"), "/half": good}.get(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif body is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path == "/half" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.seen = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _left_behind(places):
    return [path for path in (places / "cache").rglob("*") if path.is_file()]


def test_only_https_is_downloaded(places, server, monkeypatch):
    _urls(monkeypatch, f"{server.url}/good")
    with pytest.raises(data.DataError, match="only https"):
        data.locate("toy")
    assert server.seen == []
    assert _left_behind(places) == []


def test_a_redirect_to_http_is_not_followed(places, server, monkeypatch):
    real = files._require_https
    first = f"{server.url}/redirect"  # stands for an https address
    monkeypatch.setattr(files, "_require_https", lambda url: None if url == first else real(url))
    _urls(monkeypatch, first)
    with pytest.raises(data.DataError, match=r"/good is not an https address"):
        data.locate("toy")
    assert server.seen == ["/redirect"]
    assert _left_behind(places) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/gone", "404"), ("/wrong", "found: 5 bytes"), ("/half", "IncompleteRead|cut off|broken")],
)
def test_a_failed_download_names_the_reason_and_leaves_nothing(places, server, monkeypatch, path, reason):
    monkeypatch.setattr(files, "_require_https", lambda url: None)
    _urls(monkeypatch, server.url + path)
    with pytest.raises(data.DataError, match=reason) as error:
        data.locate("toy")
    assert server.url + path in str(error.value)
    assert "set VINB_DATA" in str(error.value)
    assert _left_behind(places) == []


def test_the_next_mirror_is_tried_and_the_result_kept(places, server, monkeypatch):
    monkeypatch.setattr(files, "_require_https", lambda url: None)
    _urls(monkeypatch, f"{server.url}/gone", f"{server.url}/half", f"{server.url}/good")
    assert data.locate("toy") == {"toy.bin": places / "cache" / "toy" / "toy.bin.gz"}
    assert server.seen == ["/gone", "/half", "/good"]
    assert _left_behind(places) == [places / "cache" / "toy" / "toy.bin.gz"]
    data.verify("toy")
    data.download("toy")  # intact: not fetched again
    assert len(server.seen) == 3
    _put(places / "cache", b"broken")
    data.download("toy")  # broken: replaced
    assert server.seen[3:] == ["/gone", "/half", "/good"]
    data.verify("toy")


def test_no_network_and_interruption(places, monkeypatch):
    _urls(monkeypatch, "https://127.0.0.1:1/toy.bin.gz")  # nobody listens on port 1
    with pytest.raises(data.DataError, match=r"could not be downloaded[^$]*127\.0\.0\.1:1[^$]*Connection"):
        data.locate("toy")

    def interrupted(url, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.locate("toy")
    assert _left_behind(places) == []


# Frey Face


def _frey(n=6):
    return np.random.default_rng(0).integers(0, 256, (n, 28, 20)).astype(np.uint8)


def test_frey_face_from_matlab_and_numpy_files(tmp_path):
    from scipy.io import savemat

    images = _frey()
    savemat(tmp_path / "frey_rawface.mat", {"ff": images.reshape(-1, 560).T})
    np.save(tmp_path / "frey.npy", images)
    for name in ("frey_rawface.mat", "frey.npy"):
        frey = data.load_frey_face(tmp_path / name)
        assert np.array_equal(frey.images, images)
        assert not frey.verified
        assert frey.checksums == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}


def test_frey_face_never_loads_pickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "bomb.mat").write_bytes((tmp_path / "bomb.npy").read_bytes())
    for name in ("bomb.npy", "bomb.mat"):
        with pytest.raises(data.DataError, match=name):
            data.load_frey_face(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (_frey().astype(np.float32), "float32"),
        (_frey()[:, 1:], r"\(6, 27, 20\)"),
        (_frey()[0, 0, 0], "shape"),
    ],
)
def test_frey_face_refuses_other_arrays(tmp_path, array, message):
    np.save(tmp_path / "other.npy", array)
    with pytest.raises(data.DataError, match=message):
        data.load_frey_face(tmp_path / "other.npy")


def test_frey_face_without_a_file(tmp_path):
    with pytest.raises(data.DataError, match=r"frey_rawface\.mat"):
        data.load_frey_face(tmp_path / "nowhere.mat")
    with pytest.raises(data.DataError, match="load_frey_face"):
        data.locate("frey-face")
