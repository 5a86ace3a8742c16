"""How far packing is: told to a function, or shown as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# called with bytes done and bytes in all; True: a bar, where it takes long enough to wonder
Progress = Callable[[int, int], None] | bool | None
LONG_BYTES = 2**28


@contextmanager
def reporting(progress: Progress, total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A function that takes the bytes done so far and tells ``progress``, a bar, or nobody."""
    if progress is not True or total < LONG_BYTES:
        yield lambda done: callable(progress) and progress(done, total)
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True) as bar:
        yield lambda done: bar.update(done - bar.n)
