"""What a terminal sees: completion, --quiet, no colours where NO_COLOR says so."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from specmoe.cli import decoding, parser, printing
from specmoe.cli.parser import COMMANDS, QUIET, build_parser, main

pty = pytest.importorskip("pty", reason="no terminals of this kind here")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
MAIN = [sys.executable, "-m", "specmoe"]


def on_a_terminal(*words: str, **env: str) -> str:
    """What ``specmoe WORDS`` shows on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [*MAIN, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | env
    ) as running:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        running.wait(timeout=120)
    os.close(ours)
    return shown.decode("utf-8", "replace")


def complete(*words: str) -> set[str]:
    """What bash offers for the last of ``words``."""
    script = subprocess.run([*MAIN, "completion", "bash"], capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    typed = " ".join(f"'{word}'" for word in words)
    ask = (
        f"{script.stdout}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        f"_shtab_specmoe; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def test_tab_completes_commands_options_words_and_shipped_models():
    _, by_name = build_parser()
    assert complete("specmoe", "") >= set(COMMANDS)
    assert complete("specmoe", "generate", "--ev") == {"--eviction"}
    assert complete("specmoe", "generate", "--eviction", "l") == {"lru", "lfu"}
    assert "tiny-skewed" in complete("specmoe", "generate", "tiny-s")
    options = set(by_name["plan"]._option_string_actions)
    assert complete("specmoe", "plan", "--") == {name for name in options if name[:2] == "--"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_the_other_shells_get_a_script_with_every_command(shell):
    done = subprocess.run([*MAIN, "completion", shell], capture_output=True, text=True)
    assert done.returncode == 0 and all(command in done.stdout for command in COMMANDS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_it_is_and_with_quiet_only_what_was_found(monkeypatch):
    monkeypatch.setattr(sys, "stderr", seen := Terminal())
    show = printing.progress("records")
    show(3, 3)
    assert "0 records [" in seen.getvalue()
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    told = []
    monkeypatch.setattr(
        parser,
        "plug_in",
        lambda _: told.append([printing.progress("records"), printing.training_progress()]),
    )
    assert main(["models", "--quiet"]) == 0 and told == [[None, None]]
    # who calls main from Python has a bar again
    assert printing.progress("records") is not None and not set(QUIET) & set(os.environ)


def test_a_job_shows_its_rate_its_bytes_and_its_time_left(monkeypatch, tmp_path):
    monkeypatch.setattr(printing, "progress", lambda unit: lambda *told: seen.append(told))
    seen, file = [], tmp_path / "in"
    file.write_bytes(b"x" * 99 + b"\n" + b"y" * 300)
    with file.open("rb") as stream:
        stream.readline()
        totals = {"num_new_tokens": 60, "seconds": 2.0}
        decoding.watching(SimpleNamespace(stream=stream, totals=totals))(5)
    assert seen == [(5, 20, "30 tokens/s, 100 of 400 bytes read")]


def test_nobody_watches_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert printing.progress("records") is None


@pytest.mark.parametrize("words", [["--help"], ["models", "--wrong", "--debug"]], ids=" ".join)
def test_no_color_means_none(words):
    shown = on_a_terminal(*words, NO_COLOR="1", TERM="xterm-256color")
    assert "specmoe" in shown and "\x1b" not in shown
