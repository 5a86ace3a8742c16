"""Short measurements of this machine: disk, arithmetic, copies.

Comes in: where to measure, how much, for how long. Goes out: plain dicts of rates. ``doctor`` calls
them, and turns a failure of one into a line of its report.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import StoreError
from ...offload.direct import PAGE, open_around_page_cache, pages


class RawFile:
    """One reader of a file, around the page cache; ``how`` says which way: "direct" or "page cache
    dropped". ``buffer``: of another file that the same reader reads."""

    def __init__(self, path: str | os.PathLike, block_bytes: int, buffer=None):
        self.buffer = pages(block_bytes) if buffer is None else buffer
        self.memory = memoryview(self.buffer)
        try:
            self.file, self.how = open_around_page_cache(path)
        except StoreError:  # no way here
            self.file, self.how = os.open(path, os.O_RDONLY), "through the page cache"

    def read(self, offset: int, num_bytes: int) -> int:
        """Read ``num_bytes`` at ``offset`` into the buffer; returns how many came."""
        if self.how == "page cache dropped":
            os.posix_fadvise(self.file, offset, num_bytes, os.POSIX_FADV_DONTNEED)
        return os.preadv(self.file, [self.memory[:num_bytes]], offset)

    def close(self) -> None:
        os.close(self.file)


READERS = (1, 2, 4, 8)


def disk_rates(
    folder: Path, file_bytes: int, record_bytes: int, seconds: float, readers=READERS
) -> dict:
    """``link_rates`` of a temporary file of ``file_bytes`` in ``folder``, and how fast it was
    written.

    A folder that is not there yet is not made: the file lies where it would be made.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < 2 * file_bytes:
        raise OSError(f"{free_bytes} bytes free in {folder}, the probe wants {2 * file_bytes}")
    with tempfile.NamedTemporaryFile(dir=place, prefix="specmoe-doctor-") as file:
        written_bytes_per_s = _fill(file, file_bytes)
        rates = link_rates(file.name, record_bytes, seconds, readers)
        return {"folder": str(folder), **rates, "written_bytes_per_s": written_bytes_per_s}


def link_rates(path: str | os.PathLike, record_bytes: int, seconds: float, readers=READERS) -> dict:
    """The raw link, of a file that is there: bytes per second read in sequence, and at random
    places a record at a time by 1, 2, 4 and 8 readers (``seconds`` each); the latency of one
    page."""
    file_bytes = os.path.getsize(path)
    record_bytes = min(-(-record_bytes // PAGE) * PAGE, file_bytes)
    rates = {
        str(n): _random_rate(path, file_bytes, record_bytes, seconds, n)["bytes_per_s"]
        for n in readers
    }
    page = _random_rate(path, file_bytes, PAGE, seconds / 3, 1)
    return {
        "reads": page["how"],
        "sequential_bytes_per_s": _sequential_rate(path, file_bytes, seconds),
        "record_bytes": record_bytes,
        "random_bytes_per_s": rates,
        "page_latency_s": page["seconds"] / max(page["num_reads"], 1),
    }


def _fill(file, num_bytes: int) -> float:
    """Write random bytes and force them to the disk; returns bytes per second."""
    block = os.urandom(min(num_bytes, 2**23))
    began_s = time.perf_counter()
    for start in range(0, num_bytes, len(block)):
        file.write(block[: num_bytes - start])
    file.flush()
    os.fsync(file.fileno())
    return num_bytes / (time.perf_counter() - began_s)


def _sequential_rate(path: str, file_bytes: int, seconds: float, block_bytes: int = 2**22) -> float:
    block_bytes = min(block_bytes, file_bytes)
    reader, offset, num_bytes = RawFile(path, block_bytes), 0, 0
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        num_bytes += reader.read(offset, block_bytes)
        offset = offset + block_bytes if offset + 2 * block_bytes <= file_bytes else 0
    rate = num_bytes / (time.perf_counter() - began_s)
    reader.close()
    return rate


def _random_rate(
    path: str, file_bytes: int, record_bytes: int, seconds: float, num_readers: int
) -> dict:
    """``num_readers`` threads read records at random places for ``seconds``: all bytes over the
    time it took."""
    began_s = time.perf_counter()

    def serve(seed: int) -> tuple[int, str]:
        return _read_until(path, file_bytes, record_bytes, began_s + seconds, seed)

    with ThreadPoolExecutor(num_readers) as readers:
        done = list(readers.map(serve, range(num_readers)))
    spent_s = time.perf_counter() - began_s
    num_reads = sum(num for num, _ in done)
    rate = num_reads * record_bytes / spent_s
    return {"bytes_per_s": rate, "num_reads": num_reads, "seconds": spent_s, "how": done[0][1]}


def _read_until(
    path: str, file_bytes: int, record_bytes: int, clock_s: float, seed: int
) -> tuple[int, str]:
    """Read records at random places until the clock says ``clock_s``; how many, and how."""
    reader, places, num_reads = RawFile(path, record_bytes), random.Random(seed), 0
    try:
        while num_reads == 0 or time.perf_counter() < clock_s:
            reader.read(places.randrange(file_bytes // record_bytes) * record_bytes, record_bytes)
            num_reads += 1
    finally:
        reader.close()
    return num_reads, reader.how


def raw_reads_rate(files: list[Path], record_bytes: int, num_bytes: int, num_readers: int) -> float:
    """Bytes per second of ``num_readers`` threads that read so many bytes, in records anywhere in
    ``files``, each once, in the order in which they lie."""
    record_bytes = -(-record_bytes // PAGE) * PAGE
    places = [
        (file, index * record_bytes)
        for file in files
        for index in range(os.path.getsize(file) // record_bytes)
    ]
    number = max(1, min(len(places), num_bytes // record_bytes))
    chosen = iter(sorted(random.sample(places, number)))  # threads may share a list's iterator

    def serve(_) -> int:
        buffer = pages(record_bytes)
        opened = {file: RawFile(file, record_bytes, buffer) for file in files}
        done_bytes = sum(opened[file].read(at, record_bytes) for file, at in chosen)
        for file in opened.values():
            file.close()
        return done_bytes

    began_s = time.perf_counter()
    with ThreadPoolExecutor(num_readers) as readers:
        done_bytes = sum(readers.map(serve, range(num_readers)))
    return done_bytes / (time.perf_counter() - began_s)


# Arithmetic and copies


def _best_s(work: Callable, seconds: float, synchronize: Callable = lambda: None) -> float:
    """The shortest time one call of ``work`` took, over ``seconds`` of calls after a first one."""
    work()
    synchronize()
    best_s, until_s = float("inf"), time.perf_counter() + seconds
    while best_s == float("inf") or time.perf_counter() < until_s:
        began_s = time.perf_counter()
        work()
        synchronize()
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s


def compute_rates(seconds: float, device: str = "cpu", size: int = 1024) -> dict:
    """FLOP per second of square matrix products in fp32 and bf16."""
    import torch

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(size, size, device=device).to(dtype)  # [size, size]
        best_s = _best_s(lambda a=a: a @ a, seconds, synchronize)
        rates[f"{name}_flop_per_s"] = 2 * size**3 / best_s
    return rates


def memory_copy_rate(seconds: float, num_bytes: int = 2**26) -> dict:
    """Bytes copied per second from memory to memory (each byte is read once and written once)."""
    import torch

    source = torch.zeros(num_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {"bytes_per_s": num_bytes / _best_s(lambda: target.copy_(source), seconds)}


def memory_read_rate(num_bytes: int = 2**29, repeats: int = 5) -> float:
    """Bytes per second that all threads together read and add up: the fastest way to touch weights
    once."""
    import torch

    content = torch.ones(num_bytes // 8, dtype=torch.int64)
    content.sum()
    return num_bytes / min(_seconds(content.sum) for _ in range(repeats))


def cache_bytes(cpu: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """The last-level cache of a processor, as Linux tells it; 0 where it does not."""
    sizes = [0]
    for path in Path(cpu).glob("index*/size"):
        number, unit = path.read_text().strip()[:-1], path.read_text().strip()[-1:]
        sizes.append(int(number or 0) * {"K": 2**10, "M": 2**20}.get(unit, 1))
    return max(sizes)


def _seconds(work: Callable) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def cuda_copy_rates(seconds: float, num_bytes: int = 2**28) -> dict:
    """Bytes per second from host memory to the GPU, page-locked and pageable."""
    import torch

    target = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    rates = {}
    for name, pin in (("pinned", True), ("pageable", False)):
        source = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pin)
        best_s = _best_s(
            lambda source=source: target.copy_(source, non_blocking=True),
            seconds,
            torch.cuda.synchronize,
        )
        rates[f"{name}_bytes_per_s"] = num_bytes / best_s
    return rates
