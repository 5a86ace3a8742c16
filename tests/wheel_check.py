"""``make wheel-check``: build the sdist and, from it, the wheel; compare what they hold with the repository; install
the wheel into an environment of its own, in another folder, and do there what the README says.

Comes in: this tree. Goes out: one line for each step, with its seconds, and exit code 1 at the first that fails. Building
and the new environment borrow setuptools, torch and all else from the Python that runs this; ``--fresh`` downloads what
the project and the wheel declare, as CI does.
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
    "specmoe completion bash": "complete ",
    "specmoe generate tiny-skewed -p 'sums: 17 + 36' --max-new-tokens 8 --json": '"text": ',
    "specmoe doctor": "torch",
    "specmoe report list": "specmoe/notebooks/report.ipynb",
    f"specmoe report run report --out reports/quick {QUICK}": "reports/quick/report.html",
}
REFUSED = {
    "specmoe bnech tiny-skewed": "did you mean 'bench'?",
    "specmoe generate tiny-skewed -p x --gama 3": "did you mean --gamma?",
}
# Where it lies, and what Tab shows.
FIND = "import specmoe; assert {'load', 'Engine'} <= {*dir(specmoe)}; print(specmoe.__file__)"
# What a reader fills in, and what stands there here.
FILES = {
    "grid.yaml": "model: tiny-skewed\nmethod: [cached, specmoe]\ndraft_experts: 4\ngamma: 2\n"
    "max_new_tokens: 4\nnum_prompts: 1\n",
    "in.jsonl": '{"prompt": "sums: 17 + 36", "max_new_tokens": 8}\n',
}
FILLED = {"MODEL": "tiny-skewed", "DIR": "records", "GRID.yaml": "grid.yaml", "COMMAND": "sweep"}
# The report runs for most of a minute; tests/test_report_choosing.py runs it on a small grid.
ELSEWHERE = {"specmoe report run best_settings -p model=DIR"}


def pages() -> str:
    return "\n\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def commands_in(text: str) -> list[str]:
    """What stands in backquotes, each once, as the pages have it."""
    return list(dict.fromkeys(re.findall(r"`(specmoe [^`]+)`", text)))


def typed(command: str) -> str:
    """``command`` with what a reader fills in."""
    for name, value in FILLED.items():
        command = re.sub(rf"\b{name}\b", value, command)
    return command


def examples_in(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


class Failed(Exception):
    pass


def run(words: list[str], code: int = 0, **how) -> str:
    """What a program says that ends with ``code``."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, **how)
    if done.returncode != code:
        raise Failed(f"{shlex.join(words)} ended with {done.returncode}: {done.stderr[-1500:]}")
    return done.stderr if code else done.stdout


def build(folder: Path, fresh: bool) -> tuple[Path, Path]:
    source = built.copied(folder / "source")
    how = [] if fresh else ["--no-isolation"]
    run([sys.executable, "-m", "build", *how, "--outdir", str(folder / "dist"), str(source)])
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
    venv.create(folder, with_pip=fresh)  # else pip is borrowed, too
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
    for name, text in FILES.items():
        (folder / name).write_text(text)
    where = {"cwd": folder, "env": environment(programs, folder)}
    python = str(programs / "python")
    found = step("import specmoe", partial(run, [python, "-c", FIND], **where))
    if not Path(found.strip()).is_relative_to(programs.parent):
        raise Failed(f"specmoe is {found}, not the one that was installed")
    for number, example in enumerate(examples_in(pages()), 1):
        step(f"example {number}", partial(run, [python, "-c", example], **where))
    for command, words in REFUSED.items():
        step(command, partial(said, command, words, where, 2))
    for command in dict.fromkeys([*OURS, *commands_in(pages())]):
        if command not in ELSEWHERE:
            step(command, partial(said, typed(command), OURS.get(command, ""), where))
    for left in ("reports/quick/metrics.json", "out.jsonl", "records", "sweeps/*/rows.jsonl"):
        if not list(folder.glob(left)):
            raise Failed(f"the commands left no {left}")


def said(command: str, words: str, where: dict, code: int = 0) -> None:
    copies = Path(where["env"]["SPECMOE_CACHE"])
    names = [path.name for path in sorted(copies.glob("tiny*"))]
    command = command.replace("NAME", names[0] if names else "none")  # of a packed copy
    output = run(shlex.split(command), code, **where)
    if words not in output or not output.strip():
        raise Failed(f"{command} said {output[:500]!r}")


def step(name: str, call):
    """Its name before it runs: where it hangs, one sees which."""
    began_s = time.monotonic()
    print(f"{name} ", end="", flush=True)
    result = call()
    print(f"- {time.monotonic() - began_s:.1f} s", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the wheel and the sdist")
    parser.add_argument("--fresh", action="store_true", help="download what the wheel declares")
    given, began_s = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            sdist, wheel = step("sdist and wheel build", lambda: build(folder, given.fresh))
            step("they hold what they should", lambda: compare(sdist, wheel))
            programs = step(
                "the wheel installs", lambda: install(wheel, folder / "venv", given.fresh)
            )
            use(programs, folder / "elsewhere")
        except Failed as failure:
            print(f"\nwheel-check: {failure}", file=sys.stderr)
            return 1
        if given.out:
            shutil.copytree(folder / "dist", given.out, dirs_exist_ok=True)
    print(f"all of it: {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
