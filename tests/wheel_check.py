"""``make wheel-check``: build the sdist and, from it, the wheel; compare what they hold with the repository; install
the wheel into an environment of its own, in another folder, and do there what the README says.

Comes in: this tree. Goes out: one line for each step, and exit code 1 at the first that fails. The new environment
borrows torch and all else from the Python that runs this; ``--fresh`` downloads what the wheel declares, as CI does.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from functools import partial
from pathlib import Path

import built

ROOT = built.ROOT
QUICK = (
    "-p batch_sizes=1,4 -p new_tokens=8 -p repeats=1 -p expert_bytes=null -p link_bytes_per_s=null"
)
# What a newcomer types stands in these.
PAGES = ("README.md", "docs/quickstart.md", "docs/guide.md")
# Beside what they name: command, and words that its output must have.
OURS = {
    "specmoe --version": "specmoe ",
    "specmoe models": "tiny-translate",
    "specmoe generate tiny-skewed -p 'sums: 17 + 36' --max-new-tokens 8 --json": '"text": ',
    "specmoe doctor": "torch",
    "specmoe report list": "specmoe/notebooks/report.ipynb",
    f"specmoe report run report --out reports/quick {QUICK}": "reports/quick/report.html",
}


def pages() -> str:
    return "\n\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def commands_in(text: str) -> list[str]:
    """What stands in backquotes and can be typed as it is: nothing in capitals is to be filled in."""
    commands = re.findall(r"`(specmoe [^`]+)`", text)
    return [one for one in dict.fromkeys(commands) if not re.search("[A-Z]{3}", one)]


def examples_in(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


class Failed(Exception):
    pass


def run(words: list[str], **how) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, **how)
    if done.returncode:
        raise Failed(f"{shlex.join(words)} ended with {done.returncode}: {done.stderr[-1500:]}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    source = built.copied(folder / "source")
    run([sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source)])
    (sdist,), (wheel,) = (list((folder / "dist").glob(kind)) for kind in ("*.tar.gz", "*.whl"))
    run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)])
    return sdist, wheel


def compare(sdist: Path, wheel: Path) -> None:
    for there, wanted in (
        (built.names_in_wheel(wheel), built.belongs_in_the_wheel()),
        (built.names_in_sdist(sdist), built.tracked()),
    ):
        if there != wanted:
            raise Failed(f"too many: {sorted(there - wanted)}, missing: {sorted(wanted - there)}")


def install(wheel: Path, folder: Path, fresh: bool) -> Path:
    """The environment's folder of programs."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    if fresh:
        run([*pip, f"{wheel}[notebooks]"])
        return folder / "bin"
    library = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(library, "borrowed.pth").write_text("\n".join(borrowed()) + "\n")
    run([*pip, "--no-deps", "--force-reinstall", str(wheel)])
    return folder / "bin"


def borrowed() -> list[str]:
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


def environment(programs: Path, home: Path) -> dict[str, str]:
    """Nothing of the checkout, of the user or of a cache is found."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    data = os.pathsep.join(str(Path(path).parents[2] / "share/jupyter") for path in borrowed())
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "JUPYTER_PATH": data}
    own |= {"SPECMOE_CACHE": str(home / "packed"), "HF_HUB_OFFLINE": "1"}
    return env | own | {"PATH": os.pathsep.join([str(programs), "/usr/bin", "/bin"])}


def use(programs: Path, folder: Path) -> None:
    """Everything that the README and the guide say of an installed specmoe, in ``folder``."""
    folder.mkdir()
    where = {"cwd": folder, "env": environment(programs, folder)}
    python = str(programs / "python")
    found = run([python, "-c", "import specmoe; print(specmoe.__file__)"], **where).strip()
    if not Path(found).is_relative_to(programs.parent):
        raise Failed(f"specmoe is {found}, not the one that was installed")
    for number, example in enumerate(examples_in(pages()), 1):
        step(f"example {number}", partial(run, [python, "-c", example], **where))
    for command in (*OURS, *commands_in(pages())):
        step(command, partial(said, command, where))
    if not list(folder.glob("reports/quick/metrics.json")):
        raise Failed("the report left no metrics.json")


def said(command: str, where: dict) -> None:
    output = run(shlex.split(command), **where)
    if OURS.get(command, "") not in output or not output.strip():
        raise Failed(f"{command} said {output[:500]!r}")


def step(name: str, call):
    began_s = time.monotonic()
    result = call()
    print(f"{time.monotonic() - began_s:6.1f} s  {name}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the wheel and the sdist")
    parser.add_argument("--fresh", action="store_true", help="download what the wheel declares")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            sdist, wheel = step("sdist and wheel build", lambda: build(folder))
            step("they hold what they should", lambda: compare(sdist, wheel))
            programs = step(
                "the wheel installs", lambda: install(wheel, folder / "venv", given.fresh)
            )
            use(programs, folder / "elsewhere")
        except Failed as failure:
            print(f"wheel-check: {failure}", file=sys.stderr)
            return 1
        if given.out:
            shutil.copytree(folder / "dist", given.out, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
