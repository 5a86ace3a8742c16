"""A kit for a room without a network: everything that a Linux, macOS or Windows machine with Python
needs, in one folder.

Comes in: a checkout, a folder, platforms, Python versions. Goes out: wheels, notebooks, tutorials,
slides and a start script for each platform. ``wheels`` says which packages; ``download`` may be
replaced, which is how the tests work without a network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError, SpecMoEError, check_choice, one_line
from ...shipped import need_path, package_path
from . import places, slides, wheels
from .wheels import PLATFORMS

TEMPLATES = package_path("lab/workshop/start")
SCRIPTS = {
    "linux": ("start.sh",),
    "macos": ("start.command",),
    "windows": ("start.bat",),
}
FOLDERS = ("notebooks", "tutorials")
# "3.11" alone is 3.11.0 to pip, which some packages refuse; a room's Python is a later one.
PATCH = 9
# torch without its GPU libraries, which a room does not need; for Linux it has an index of its own.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Kit:
    """What is made, for whom. ``pythons``: versions such as "3.11", which a wheel is made for."""

    root: Path
    out: Path
    platforms: Sequence[str]
    pythons: Sequence[str]

    def __post_init__(self) -> None:
        for name in self.platforms:
            check_choice("platforms", name, PLATFORMS)
        for version in self.pythons:
            if not wheels.is_version(version):
                raise OptionError(f"python={version!r} is no version: write it as 3.12")
        if not self.platforms or not self.pythons:
            raise OptionError("a kit needs a platform and a Python version: --platforms linux")


def run_pip(words: Sequence[str]) -> None:
    """``pip`` of this Python; its last line where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # The first of its errors may only list what it passed over.
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["ERROR: no word"]
        raise SpecMoEError(
            f"pip {words[0]} failed ({one_line(said[-1]):.300}): leave that platform or Python out, "
            "or try again with a network"
        )


def build(kit: Kit, pip: Callable[[Sequence[str]], None] = run_pip) -> dict:
    """Write the kit; returns what ``kit.json`` says of it."""
    out = places.writable(kit.out)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _wheel_of(kit.root, Path(scratch), pip)
        shelf = out / "wheels"
        shelf.mkdir(exist_ok=True)
        shutil.copy2(wheel, shelf)
    pins = {}
    for platform in kit.platforms:
        for python in kit.pythons:
            found = wheels.closure(shelf / wheel.name, platform, python)
            pins[f"{platform} {python}"] = found
            for words in downloads(found, shelf, platform, python):
                pip(words)
    _copy_material(kit, out)
    return _record(kit, out, wheel.name, pins)


def downloads(pins: Sequence[str], shelf: Path, platform: str, python: str) -> list[list[str]]:
    """The words of each ``pip download``. It is told every package, so it follows no requirement:
    pip would read those as if they were of the machine that downloads."""
    words = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(shelf)]
    words += ["--python-version", f"{python}.{PATCH}", "--implementation", "cp"]
    for tag in PLATFORMS[platform].tags:
        words += ["--platform", tag]
    labelled = [pin for pin in pins if pin.endswith("+cpu")]
    others = [pin for pin in pins if pin not in labelled]
    index = ["--extra-index-url", CPU_INDEX, "--timeout", "30", "--retries", "1"]
    return [[*words, *others]] + [[*words, *index, pin] for pin in labelled]


def plan(kit: Kit) -> list[str]:
    """What ``build`` would do, in lines."""
    lines = [f"specmoe from {kit.root} as a wheel into {kit.out / 'wheels'}"]
    lines += [
        f"wheels for {platform}, Python {python}"
        for platform in kit.platforms
        for python in kit.pythons
    ]
    scripts = ", ".join(name for platform in kit.platforms for name in SCRIPTS[platform])
    return [*lines, f"notebooks, tutorials, slides and {scripts} into {kit.out}"]


def _wheel_of(root: Path, scratch: Path, pip: Callable[[Sequence[str]], None]) -> Path:
    """The wheel of the checkout, built in a copy: a build leaves folders behind."""
    source = scratch / "source"
    hidden = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints")
    for name in ("specmoe", "notebooks"):
        shutil.copytree(root / name, source / name, ignore=hidden)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(root / name, source)
    pip(["wheel", "--no-deps", "--wheel-dir", str(scratch), str(source)])
    found = list(scratch.glob("specmoe-*.whl"))
    if len(found) != 1:
        raise SpecMoEError(
            f"no wheel of specmoe came out of {root}: see that it is a whole checkout"
        )
    return found[0]


def _copy_material(kit: Kit, out: Path) -> None:
    left_out = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "source")
    for name in FOLDERS:
        shutil.copytree(kit.root / name, out / name, ignore=left_out, dirs_exist_ok=True)
    page = kit.root / "docs" / "specmoe.html"
    if page.is_file():
        shutil.copy2(page, out)
    slides.make(kit.root, places.writable(out / "slides"))
    names = [name for platform in kit.platforms for name in SCRIPTS[platform]]
    first = {one: wheels.first_patch(out / "wheels", one, PATCH) for one in kit.pythons}
    for name in names:
        text = script(name, first)
        (out / name).write_bytes(text.encode("utf-8"))
        (out / name).chmod(0o755)
    read_me = need_path(TEMPLATES / "README.txt").read_text(encoding="utf-8")
    (out / "README.txt").write_text(read_me.format(pythons=_said(first)), "utf-8")


def script(name: str, first: Mapping[str, int]) -> str:
    """A start script for Pythons of which the ``first`` patch is named (3.11 from 3.11.5 on);
    Windows wants its own line ends."""
    source = "start.bat" if name.endswith(".bat") else "start.sh"
    text = need_path(TEMPLATES / source).read_text(encoding="utf-8")
    patches = {int(version.partition(".")[2]): patch for version, patch in first.items()}
    words = {"@PYTHONS@": " ".join(first), "@FIRST@": repr(patches), "@SAID@": _said(first)}
    for mark, word in words.items():
        text = text.replace(mark, word)
    return text.replace("\n", "\r\n") if source == "start.bat" else text


def _said(first: Mapping[str, int]) -> str:
    # no brackets: in a Windows script they would end the block that says this
    return ", ".join(f"{one} from {one}.{patch} on" for one, patch in first.items())


def _record(kit: Kit, out: Path, wheel: str, pins: dict) -> dict:
    files = [path for path in out.rglob("*") if path.is_file()]
    found = {
        "wheel": wheel,
        "platforms": list(kit.platforms),
        "pythons": list(kit.pythons),
        "pins": pins,
        "bytes": sum(path.stat().st_size for path in files),
    }
    (out / "kit.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
