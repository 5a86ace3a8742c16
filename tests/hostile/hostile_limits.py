"""The good checkpoint that the hostile ones are made of, and the two measures: seconds of computing
and memory."""

from __future__ import annotations

import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_architectures import make_checkpoint

from specmoe.checkpoint import pack

MOST_CPU_S = 2.0
MOST_MIB = 400


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    folder = make_checkpoint("mixtral", tmp_path_factory.mktemp("good") / "mixtral")
    pack(folder)  # what is imported at first use counts for nobody
    return folder


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


@contextmanager
def within_limits():
    """Little computing, little memory: of this process, so that the load of the machine does not
    count."""
    before_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    # a runaway ends here, not the machine
    resource.setrlimit(resource.RLIMIT_AS, (now + 4 * 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert time.process_time() - before_s < MOST_CPU_S
    assert grown_mib < MOST_MIB


@pytest.fixture
def limits():
    return within_limits
