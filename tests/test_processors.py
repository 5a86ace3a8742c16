"""The same tokens, counts and printed numbers on every processor: the short form of ``make
test-processors``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a compiler and other processes: minutes where the cores are taken
def test_the_oldest_instructions_give_the_same_tokens_and_the_same_notebook():
    command = [sys.executable, "tests/processors.py", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
