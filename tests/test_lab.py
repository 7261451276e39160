"""`make lab` as a person uses it: a notebook is opened, set to smoke, run cell by cell and saved, over the server's protocol."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import nbformat
import psutil
import pytest
import requests
import websocket

from vinb import experiment
from vinb.experiment import notebooks

ROOT = Path(__file__).resolve().parents[1]
NAME = "support_match"  # the quickest at smoke


@pytest.fixture
def clone(tmp_path):
    """A folder as a clone has it, with one notebook: saving it, and its run, leave the repository as it is."""
    folder = tmp_path / "clone"
    (folder / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "notebooks" / "references.bib", folder / "notebooks")
    shutil.copy(ROOT / "notebooks" / f"{NAME}.ipynb", folder / "notebooks")
    (folder / "data").symlink_to(ROOT / "data", target_is_directory=True)
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return folder


class Server:
    """A running `make lab`: its REST calls, its process and what it printed."""

    def __init__(self, process, log, runtime, token):
        self.process, self.log, self.token = process, log, token
        deadline = time.monotonic() + 60
        while not (found := list(runtime.glob("jpserver-*.json"))):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"JupyterLab did not start within a minute: {log.read_text()}"
            time.sleep(0.1)
        self.url = json.loads(found[0].read_text())["url"]

    def __call__(self, method, path, status=200, /, **content):
        headers = {"Authorization": f"token {self.token}"}
        reply = requests.request(
            method,
            f"{self.url}{path}",
            headers=headers,
            json=content or None,
            timeout=30,
            allow_redirects=False,
        )
        assert reply.status_code == status, reply.text
        return reply


@pytest.fixture
def lab(clone, tmp_path, monkeypatch):
    """`make lab` in the clone, without a browser and with no settings but its own."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    token, runtime = secrets.token_hex(16), tmp_path / "runtime"
    runtime.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "VINB_", "JUPYTER"))
    } | {
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_TOKEN": token,
    }
    log = tmp_path / "log"
    process = subprocess.Popen(
        # -o: the environment is as it is, also where the pinned packages have changed since
        ["make", "-o", ".venv/.vinb-ready", "lab", "LAB=--no-browser --port=0"],
        cwd=clone,
        env=environment,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Server(process, log, runtime, token)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in family:  # one by one, since kernels have sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(10)


class Kernel:
    """The channels of a session's kernel, as JupyterLab speaks to them."""

    def __init__(self, server, kernel):
        address = server.url.replace("http", "ws", 1)
        self.session = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"{address}api/kernels/{kernel}/channels?session_id={self.session}&token={server.token}",
            timeout=120,
        )

    def run(self, source, cell):
        """The outputs of a cell, as nbformat has them, and its execution count."""
        number = uuid.uuid4().hex
        header = {
            "msg_id": number,
            "msg_type": "execute_request",
            "username": "",
            "session": self.session,
            "version": "5.3",
        }
        content = {
            "code": source,
            "silent": False,
            "store_history": True,
            "allow_stdin": False,
            "stop_on_error": True,
        }
        message = {"header": header, "parent_header": {}, "metadata": {"cellId": cell}, "content": content}
        self.socket.send(json.dumps(message | {"channel": "shell", "buffers": []}))
        outputs, count, left = [], None, {"idle", "execute_reply"}
        while left:
            reply = json.loads(self.socket.recv())
            if reply["parent_header"].get("msg_id") != number:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind in ("stream", "display_data", "execute_result", "error"):
                reply["header"]["msg_type"] = kind
                outputs.append(nbformat.v4.output_from_msg(reply))
            elif kind == "execute_reply":
                count = content["execution_count"]
                left.discard(kind)
            elif kind == "status":
                left.discard(content["execution_state"])
        return outputs, count


def test_a_notebook_is_opened_run_at_smoke_and_saved_in_jupyterlab(lab, clone):
    page = lab("GET", "lab").text
    assert "<title>JupyterLab</title>" in page
    assert f"{NAME}.ipynb" in [each["name"] for each in lab("GET", "api/contents").json()["content"]]
    assert requests.get(f"{lab.url}api/contents", timeout=30).status_code == 403  # without the token

    file = f"api/contents/{quote(NAME)}.ipynb"
    nb = lab("GET", file).json()["content"]
    (cell,) = (c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", ()))
    assert cell["source"].count('preset = "cpu"') == 1
    cell["source"] = cell["source"].replace('preset = "cpu"', 'preset = "smoke"')
    for each in nb["cells"]:
        if each["cell_type"] == "code":
            each["outputs"], each["execution_count"] = [], None
    lab("PUT", file, type="notebook", format="json", content=nb)

    session = lab(
        "POST",
        "api/sessions",
        201,
        path=f"{NAME}.ipynb",
        name=f"{NAME}.ipynb",
        type="notebook",
        kernel={"name": nb["metadata"]["kernelspec"]["name"]},
    ).json()
    kernel = Kernel(lab, session["kernel"]["id"])
    for each in nb["cells"]:
        if each["cell_type"] == "code" and each["source"].strip():
            each["outputs"], each["execution_count"] = kernel.run(each["source"], each["id"])
            wrong = [o for o in each["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
            assert not wrong, (each["source"], wrong)
    lab("PUT", file, type="notebook", format="json", content=nb)

    folder = clone / "runs" / NAME / "smoke"
    record = experiment.load(folder)
    assert "failed" not in record.verdicts.values()
    saved = nbformat.read(clone / "notebooks" / f"{NAME}.ipynb", 4)
    nbformat.validate(saved)
    assert record.environment["notebook_hash"] == notebooks.code_hash(saved)  # what ran is what was saved
    shown = [
        o
        for c in saved.cells
        for o in c.get("outputs", ())
        if o.output_type == "display_data" and "image/png" in o.data
    ]
    assert record.result["figures"]
    for output, figure in zip(shown, record.result["figures"], strict=True):
        assert (
            base64.b64decode(output.data["image/png"])
            == (folder / "figures" / f"{figure['name']}.png").read_bytes()
        )
        assert output.metadata["image/png"]["alt"] == figure["alt"]

    lab("DELETE", f"api/sessions/{session['id']}", 204)
    assert lab("GET", "api/kernels").json() == []
    family = psutil.Process(lab.process.pid).children(recursive=True)
    lab("POST", "api/shutdown")
    assert lab.process.wait(30) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert lab.url in lab.log.read_text()  # where a person without a browser finds it
