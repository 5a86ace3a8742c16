"""What a wheel and an sdist of this tree hold, made in a folder of their own, without a network.

Comes in: nothing. Goes out: folders and names of files. ``test_wheel`` asks on every run; ``wheel_check`` asks of
finished archives.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the tools add to an sdist.
ADDED = ("PKG-INFO", "setup.cfg", "specmoe.egg-info/")


def tracked(*folders: str) -> set[str]:
    """Files that belong to the project: those of git, and new ones that it does not ignore."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in said.splitlines() if (ROOT / name).is_file()}


def belongs_in_the_wheel() -> set[str]:
    notebooks = {f"specmoe/{name}" for name in tracked("notebooks") if name.endswith(".ipynb")}
    return tracked("specmoe") | notebooks


def copied(target: Path) -> Path:
    """A clean copy of the tree: a build leaves folders behind, and reads those of an earlier one."""
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def build_tree(target: Path) -> tuple[set[str], set[str]]:
    """Files that would be in the wheel and in the sdist; those of the wheel lie in ``target/lib``."""
    words = ["egg_info", "--egg-base", str(target), "build_py", "--build-lib", str(target / "lib")]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *words], cwd=ROOT, check=True, capture_output=True
    )
    files = (path for path in (target / "lib").rglob("*") if path.is_file())
    wheel = {path.relative_to(target / "lib").as_posix() for path in files}
    listed = (target / "specmoe.egg-info" / "SOURCES.txt").read_text("utf-8").splitlines()
    return wheel, {name for name in listed if "specmoe.egg-info/" not in name}


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def names_in_sdist(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        names = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
    return {name for name in names if not name.startswith(ADDED)}
