"""What the workshop's check does to a machine: starts a kernel, JupyterLab, a notebook; looks for
memory and a browser.

Comes in: code, a folder, a notebook. Goes out: what they said, or an error. Every process started
here has ended when the call returns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_S = 90
# A kernel's own remarks are nothing to whoever reads ten lines.
QUIET = ["--log-level=ERROR"]
NOTEBOOK_S = 600
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "brave-browser",
    "firefox",
    "firefox-esr",
    "epiphany-browser",
)


def available_memory_bytes() -> int | None:
    """Bytes that a new process can have; None where the system does not say."""
    from . import doctor

    try:
        import psutil  # ipykernel brings it

        free_bytes = psutil.virtual_memory().available
        limit_bytes = doctor.memory_bytes().get("limit_bytes", free_bytes)
    except Exception:  # no psutil, no /proc, a system unlike all others
        return None
    return min(free_bytes, limit_bytes)


def find_browser() -> str | None:
    """The name of a browser with a window; on macOS and Windows the system's own always is one."""
    named = os.environ.get("BROWSER", "").split(os.pathsep)[0]
    if named and shutil.which(named.split()[0]):
        return named
    if sys.platform in ("darwin", "win32"):
        return "the system's browser"
    return next((name for name in BROWSERS if shutil.which(name)), None)


def has_lab_extension(name: str) -> bool:
    """Whether JupyterLab would find the extension ``name``."""
    from jupyter_core.paths import jupyter_path

    return any((Path(place) / name).is_dir() for place in jupyter_path("labextensions"))


def ask_kernel(code: str) -> list[str]:
    """The lines that ``code`` prints in a new kernel ``python3``."""
    from jupyter_client.manager import start_new_kernel

    said, errors = [], []

    def hear(message: dict) -> None:
        content = message["content"]
        said.append(content.get("text", ""))
        if message["msg_type"] == "error":
            errors.append(f"{content['ename']}: {content['evalue']}")

    manager, client = start_new_kernel(
        kernel_name="python3", startup_timeout=START_S, extra_arguments=QUIET
    )
    try:
        client.execute_interactive(code, timeout=START_S, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if errors:
        raise RuntimeError(f"in the kernel: {errors[0]}")
    return "".join(said).splitlines()


def start_jupyterlab(folder: Path) -> float:
    """Seconds until a JupyterLab on ``folder`` answers; it is ended then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began_s = time.perf_counter()
    with _server(folder, port) as (server, log):
        while time.perf_counter() - began_s < START_S:
            if server.poll() is not None:
                raise RuntimeError(f"JupyterLab ended at once: {_last_line(log)}")
            if _answers(f"http://127.0.0.1:{port}/lab?token=doctor"):
                return time.perf_counter() - began_s
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {START_S} s")


@contextlib.contextmanager
def _server(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen, Path]]:
    flags = [f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}", "--no-browser"]
    flags += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=doctor"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--allow-root")
    with tempfile.TemporaryDirectory() as own:
        log = Path(own) / "log"
        with log.open("w") as stream:
            server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *flags],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "JUPYTER_RUNTIME_DIR": own},
            )
        try:
            yield server, log
        finally:
            server.kill()
            server.wait()


def _answers(address: str) -> bool:
    # A proxy that the environment names has nothing to do with this machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as answer:
            return b"jupyter-config-data" in answer.read()
    except OSError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def run_notebook(path: Path):
    """Run every cell of a copy of ``path`` and return it; raises at the first that fails."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=NOTEBOOK_S,
        extra_arguments=QUIET,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        return client.execute()
    except nbclient.exceptions.CellExecutionError as failure:
        raise RuntimeError(f"{path.stem}: {failure.ename}: {failure.evalue}") from None
