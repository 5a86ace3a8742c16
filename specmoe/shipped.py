"""Files that come with the package: checkpoints, recordings, results, pages, notebooks.

Comes in: a place below ``specmoe/``. Goes out: its path, by ``importlib.resources``. Whoever reads
asks ``need_path`` first: an installation that lacks a file says so, and shows no other numbers.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from .errors import OptionError, StoreError

NOTEBOOKS = "SPECMOE_NOTEBOOKS"


def package_path(name: str = "") -> Path:
    """Where ``name`` (``lab/paper/results``) lies, or is to be written by who makes it."""
    return Path(str(resources.files("specmoe"))) / name


def need_path(path: Path) -> Path:
    """``path``, which comes with the package; ``StoreError`` where it is missing."""
    if not path.exists():
        raise StoreError(
            f"{path} is missing, which comes with specmoe: the installation is not whole, install "
            "specmoe again"
        )
    return path


def checkout() -> Path | None:
    """The folder of the checkout that this package runs from; None where it was installed from a
    wheel."""
    root = package_path().parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def notebooks_dir() -> Path:
    """``SPECMOE_NOTEBOOKS``, else the notebooks of the checkout, else those in the wheel."""
    if named := os.environ.get(NOTEBOOKS):
        if not Path(named).is_dir():
            raise OptionError(
                f"there is no folder of notebooks at {named}: correct the environment variable "
                f"{NOTEBOOKS}, or leave it out"
            )
        return Path(named)
    root = checkout()
    return root / "notebooks" if root else need_path(package_path("notebooks"))
