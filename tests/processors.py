"""Runs numerical tests and exact notebooks under several instruction sets and thread counts: ``make
test-processors``.

python tests/processors.py            # full: about the whole numerical part, three instruction
                                      sets, 1 and 2 threads
python tests/processors.py --short    # what ``make test`` runs: a few tests and one notebook,
                                      oldest instructions
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from test_notebooks import EXACT

ROOT = Path(__file__).parent.parent
SETS = {
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "native": {},
}
TESTS = (
    "test_exactness.py",
    "test_kernels.py",
    "test_kv_cache.py",
    "test_sampling.py",
    "test_adapters.py",
    "test_tiny.py",
)
SHORT = (
    "test_kernels.py",
    "test_exactness.py::test_logits_equal_transformers_logits",
    "test_exactness.py::test_fp32_arithmetic_on_bf16_experts_is_exact",
)
PARTS = ("tests", "exact notebooks")
SHORT_NOTEBOOKS = ("07_sampling_without_bias",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--notebooks", nargs="+", choices=EXACT, default=EXACT)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    sets, threads = (["oldest"], [1]) if options.short else (options.sets, options.threads)
    tests, notebooks = (SHORT, SHORT_NOTEBOOKS) if options.short else (TESTS, options.notebooks)
    failed = False
    print("| instructions | threads | part | result | seconds |\n|---|---|---|---|---|", flush=True)
    for name in sets:
        for num in threads:
            for part, command in zip(PARTS, (pytest_of(tests), nbval_of(notebooks))):
                if part in options.parts:
                    failed |= not run(name, num, part, command)
    return int(failed)


def run(name: str, num_threads: int, part: str, command: list[str]) -> bool:
    inherited = {key: value for key, value in os.environ.items() if key not in SETS["oldest"]}
    variables = {**inherited, **SETS[name], "OMP_NUM_THREADS": str(num_threads)}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else "no output"
    print(
        f"| {name} | {num_threads} | {part} | {last} | {time.monotonic() - began:.0f} |", flush=True
    )
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode == 0


def pytest_of(tests: tuple[str, ...]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{name}" for name in tests),
    ]


def nbval_of(notebooks: tuple[str, ...]) -> list[str]:
    """nbval compares every output but pictures with the committed one."""
    return [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-cell-timeout=900",
        "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
        "-c",
        "/dev/null",
        "--rootdir",
        "notebooks",
        *(f"notebooks/{name}.ipynb" for name in notebooks),
    ]


if __name__ == "__main__":
    sys.exit(main())
