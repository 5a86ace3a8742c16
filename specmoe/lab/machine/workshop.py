"""Is this machine ready for a workshop? Nine checks and a verdict: ten lines.

Comes in: a folder of notebooks. Goes out: one ``Finding`` for each check, and PASS or FAIL. The
checks do what a room will do: start JupyterLab and a kernel, open the shipped models, pass an
exercise, run a notebook. Each line says in one sentence what to do. Nothing here needs a network.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError, SpecMoEError, one_line, path_of
from ...shipped import notebooks_dir
from . import doctor, rooms

NOTEBOOK = "00_start_here"
WIDGETS = ("ipywidgets", "anywidget")
# A Python that had decoded with both tiny-translate and tiny-skewed held 0.46 GB.
LEAST_MEMORY_BYTES, ENOUGH_MEMORY_BYTES = 10**9, 2 * 10**9
LEAST_DISK_BYTES = 5 * 10**8
SLOW_NOTEBOOK_S = 120.0
PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """What one check found, in one sentence; where something is wrong the sentence says what to
    do."""

    name: str
    status: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.status}  {self.name:<10}  {self.sentence}"


class Trouble(Exception):
    """Why a check did not pass, and what to do, in one sentence."""


class Doubt(Trouble):
    """A workshop can go on with this."""


def findings(notebooks: str | os.PathLike | None = None) -> Iterator[Finding]:
    """The nine checks, each as soon as it is known; a check that breaks has failed."""
    folder = notebooks_folder(notebooks)
    checks: dict[str, Callable[[], str]] = {
        "memory": check_memory,
        "disk": check_disk,
        "widgets": check_widgets,
        "models": check_models,
        "exercise": check_exercise,
        "kernel": check_kernel,
        "jupyterlab": check_jupyterlab,
        "notebook": lambda: check_notebook(folder),
        "browser": check_browser,
    }
    for name, check in checks.items():
        yield _finding(name, check)


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, PASS, check())
    except Trouble as trouble:
        return Finding(name, WARN if isinstance(trouble, Doubt) else FAIL, str(trouble))
    except Exception as failure:  # whatever breaks here breaks in the room
        reason = one_line(f"{type(failure).__name__}: {failure}")
        return Finding(name, FAIL, f"{reason:.300} (install specmoe[notebooks] anew)")


def verdict(found: list[Finding], seconds: float) -> Finding:
    """The tenth line."""
    failed = [one.name for one in found if one.status == FAIL]
    doubtful = [one.name for one in found if one.status == WARN]
    if failed:
        return Finding("workshop", FAIL, f"not ready: mend {', '.join(failed)}, then ask again")
    but = f", but look at {', '.join(doubtful)}" if doubtful else ""
    return Finding("workshop", PASS, f"ready{but} (looked for {seconds:.0f} s)")


def notebooks_folder(named: str | os.PathLike | None) -> Path | None:
    """``named``, ``$SPECMOE_NOTEBOOKS``, the checkout's, the wheel's or the current folder's; None if
    none is there. A name that was given must lead to ``00_start_here``."""
    if named is not None:
        folder = path_of(named, "a folder of notebooks")
        if not (folder / f"{NOTEBOOK}.ipynb").is_file():
            raise OptionError(f"{folder} has no {NOTEBOOK}.ipynb: name the folder of the notebooks")
        return folder
    places = [Path("notebooks").resolve()]
    with suppress(SpecMoEError):
        places.insert(0, notebooks_dir())
    return next((place for place in places if (place / f"{NOTEBOOK}.ipynb").is_file()), None)


# The machine


def check_memory() -> str:
    free_bytes = rooms.available_memory_bytes()
    if free_bytes is None:
        raise Doubt("this system does not say how much memory is free: see that 2 GB are")
    said = f"{free_bytes / 1e9:.1f} GB are free"
    if free_bytes < LEAST_MEMORY_BYTES:
        raise Trouble(f"only {said}: close other programs, a kernel needs 1 GB")
    if free_bytes < ENOUGH_MEMORY_BYTES:
        raise Doubt(f"only {said}: keep one notebook open at a time")
    return said


def check_disk() -> str:
    folder = doctor.cache_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix="specmoe-doctor-"):
            free_bytes = shutil.disk_usage(place).free
    except OSError as failure:
        raise Trouble(
            f"nothing can be written to {place} ({failure.strerror}): set SPECMOE_CACHE to a "
            "folder of your own"
        ) from None
    if free_bytes < LEAST_DISK_BYTES:
        raise Trouble(
            f"only {free_bytes / 1e9:.1f} GB are free in {place}: make room, or set SPECMOE_CACHE "
            "to another disk"
        )
    return f"{free_bytes / 1e9:.0f} GB are free where packed experts go, {folder}"


def check_browser() -> str:
    name = rooms.find_browser()
    if name is None:
        raise Doubt("no browser was found: open JupyterLab's address from another machine")
    return f"{name} is there"


# The package


def check_widgets() -> str:
    versions = {name: _installed(name) for name in WIDGETS}
    if not rooms.has_lab_extension("@jupyter-widgets/jupyterlab-manager"):
        raise Trouble(
            "JupyterLab does not know the widgets: install jupyterlab_widgets into the Python that "
            "runs JupyterLab"
        )
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _installed(name: str) -> str:
    """The version of a package, if it is one that specmoe[notebooks] allows."""
    from packaging.requirements import Requirement

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Trouble(f"{name} is missing: install specmoe[notebooks] again") from None
    for line in importlib.metadata.requires("specmoe") or ():
        wanted = Requirement(line)
        if wanted.name == name and not wanted.specifier.contains(version, prereleases=True):
            raise Trouble(f"{name} {version} is not {wanted.specifier}: pip install '{wanted}'")
    return version


def check_models() -> str:
    import specmoe

    from ...tiny import SHIPPED

    for name in SHIPPED:
        with specmoe.load(name, store="memory", draft_experts=4) as engine:
            if name == "tiny-skewed":
                engine.generate(["sums: 17 + 36"], max_new_tokens=4)
    return f"{', '.join(SHIPPED)} open"


def check_exercise() -> str:
    from ..exercises import ExerciseError, check_acceptance, parts

    check_acceptance(parts.accept)
    try:
        check_acceptance(lambda *given: None)
    except ExerciseError:
        return "the check of greedy acceptance passes a right answer and refuses an empty one"
    raise Trouble("the check of greedy acceptance passes an empty answer: install specmoe anew")


# Jupyter


def check_kernel() -> str:
    import specmoe

    ours = Path(specmoe.__file__).resolve()
    executable, python, theirs = rooms.ask_kernel(
        "import sys, specmoe; print(sys.executable, sys.version.split()[0], specmoe.__file__, "
        "sep='\\n')"
    )
    if Path(theirs).resolve() != ours:
        raise Trouble(
            f"the kernel python3 is {executable} and has another specmoe: run "
            f"'{sys.executable} -m ipykernel install --sys-prefix'"
        )
    return f"python3 starts and finds specmoe; it is Python {python}"


def check_jupyterlab() -> str:
    version = _installed("jupyterlab")
    with tempfile.TemporaryDirectory() as folder:
        seconds = rooms.start_jupyterlab(Path(folder))
    return f"JupyterLab {version} answered after {seconds:.0f} s"


def check_notebook(folder: Path | None) -> str:
    if folder is None:
        raise Trouble(
            f"no {NOTEBOOK}.ipynb was found: start this where notebooks/ lies, or add --notebooks "
            "DIR"
        )
    began_s = time.perf_counter()
    rooms.run_notebook(folder / f"{NOTEBOOK}.ipynb")
    seconds = time.perf_counter() - began_s
    said = f"{NOTEBOOK} ran in {seconds:.0f} s"
    if seconds > SLOW_NOTEBOOK_S:
        raise Doubt(f"{said}: start long cells before you explain them")
    return said
