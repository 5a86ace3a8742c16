"""A Jupyter server of our own for the browser tests: JupyterLab, Notebook 7 or Voila.

Notebooks come in; the address of a server on copies of them goes out. The front end may live in
another environment (``SPECMOE_JUPYTER`` names its Python); the kernel is always this one.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

FRONT_ENDS = {  # the module to run, its own flags
    "lab": (
        "jupyterlab",
        [
            "--ServerApp.root_dir={work}",
            "--ServerApp.port={port}",
            "--ServerApp.ip=127.0.0.1",
            "--IdentityProvider.token={token}",
            "--allow-root",
            "--ServerApp.port_retries=0",
        ],
    ),
    "notebook": (
        "notebook",
        [
            "--ServerApp.root_dir={work}",
            "--ServerApp.port={port}",
            "--ServerApp.ip=127.0.0.1",
            "--IdentityProvider.token={token}",
            "--allow-root",
            "--ServerApp.port_retries=0",
        ],
    ),
    "voila": ("voila", ["{work}", "--port={port}", "--Voila.ip=127.0.0.1", "--token={token}"]),
}
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # all cells are in the page, also unseen ones
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _emptied(path: Path) -> nbformat.NotebookNode:
    """The notebook as never run, so that whatever the page shows is of this run."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    return notebook


def _write_settings(folder: Path, theme: str) -> None:
    own = {"@jupyterlab/apputils-extension:themes": {"theme": theme, "adaptive-theme": False}}
    for name, values in {**SETTINGS, **own}.items():
        package, plugin = name.split(":")
        path = folder / package / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


def _write_kernel(folder: Path) -> None:
    """The kernel ``python3`` is the Python that runs the tests, whatever environment the front end
    lives in."""
    path = folder / "kernels" / "python3" / "kernel.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    path.write_text(
        json.dumps({"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"})
    )


@contextmanager
def serving(
    notebooks: list[Path], folder: Path, front_end: str = "lab", theme: str = "JupyterLab Light"
) -> Iterator[tuple[str, str]]:
    """``(address, token)`` of a server on copies of ``notebooks`` in ``folder``; stopped with all
    its kernels at the end."""
    work, settings, token, port = (
        folder / "notebooks",
        folder / "settings",
        secrets.token_hex(8),
        free_port(),
    )
    work.mkdir(parents=True)
    for notebook in notebooks:
        nbformat.write(_emptied(notebook), work / notebook.name)
    _write_settings(settings, theme)
    _write_kernel(folder / "data")
    own = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    quiet = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTER_PATH": str(folder / "data"),
    }
    module, flags = FRONT_ENDS[front_end]
    values = {"work": work, "port": port, "token": token}
    command = [os.environ.get("SPECMOE_JUPYTER", sys.executable), "-m", module, "--no-browser"]
    command += [flag.format(**values) for flag in flags]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **own, **quiet}, cwd=work
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, token, server, folder / "server.log")
        yield address, token
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait(
    address: str, token: str, server: subprocess.Popen, log: Path, seconds: float = 60
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/?token={token}", timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
