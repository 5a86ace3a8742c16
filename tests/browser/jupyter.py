"""A JupyterLab of our own for the browser tests. A notebook comes in; the address of a server on a copy of it goes out."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # all cells are in the page, also unseen ones
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _emptied(path: Path) -> nbformat.NotebookNode:
    """The notebook as never run, so that whatever the page shows is of this run."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _write_settings(folder: Path) -> None:
    for name, values in SETTINGS.items():
        package, plugin = name.split(":")
        path = folder / package / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@contextmanager
def serving(notebooks: list[Path], folder: Path) -> Iterator[tuple[str, str]]:
    """``(address, token)`` of a server on copies of ``notebooks`` in ``folder``; stopped with all its kernels at the end."""
    work, settings, token, port = folder / "notebooks", folder / "settings", secrets.token_hex(8), free_port()
    work.mkdir(parents=True)
    for notebook in notebooks:
        nbformat.write(_emptied(notebook), work / notebook.name)
    _write_settings(settings)
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "JUPYTERLAB_SETTINGS_DIR": str(settings)}
    flags = [f"--ServerApp.root_dir={work}", f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--no-browser",
             f"--IdentityProvider.token={token}", "--allow-root", "--ServerApp.port_retries=0"]  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *flags]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **own, **quiet}, cwd=work)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, token, server, folder / "server.log")
        yield address, token
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait(address: str, token: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5)
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")
