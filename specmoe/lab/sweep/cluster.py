"""A sweep's workers by dask.distributed: a scheduler that runs somewhere, or processes started here.

Comes in: an address, or a number of processes. Goes out: an executor for ``sweep``, checked: the
scheduler answers and its workers have this specmoe. ``cli`` calls this.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from threading import Thread

import specmoe

from ...errors import OptionError, SpecMoEError, door

REACHED_WITHIN_S = 8


@contextmanager
def dask_executor(
    scheduler: str | None = None, workers: int | None = None
) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """The executor, and how many runs its workers can do at a time. With ``workers`` they are
    processes of one thread each; a scheduler of somebody else tries a run again by its own count
    (``distributed.scheduler.allowed-failures``, 3) before ``sweep`` does."""
    distributed = _need_distributed()
    with _client(distributed, scheduler, workers) as client:
        check_workers(client)
        # equal settings of two sweeps are two measurements
        executor = client.get_executor(pure=False)
        yield executor, lambda: sum(client.nthreads().values())


@contextmanager
def _client(distributed, scheduler: str | None, workers: int | None) -> Iterator:
    if scheduler is None:
        import dask

        # ``sweep`` tries again by itself, with nothing beside it: dask counts a death against every
        # run that the worker had
        once = {"distributed.scheduler.allowed-failures": 0}
        with (
            dask.config.set(once),
            # a model may be larger than the share of memory that dask would allow
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    with door(
        f"the scheduler {scheduler} cannot be reached",
        "start one (`dask scheduler`), and give the address that it prints",
        OptionError,
    ):
        _knock(scheduler)
        client = distributed.Client(scheduler, timeout=REACHED_WITHIN_S)
    with client:
        yield client


def _knock(scheduler: str) -> None:
    """A client would wait for ever for one that takes the connection and is silent; and for the
    name of a host that is being looked up asyncio waits however long that takes, so the thread is
    left alone."""
    from distributed.comm import connect

    async def knock() -> None:
        reached = connect(scheduler, timeout=REACHED_WITHIN_S)
        await (await asyncio.wait_for(reached, REACHED_WITHIN_S)).close()

    def ask() -> None:
        try:
            answer.set_result(asyncio.run(knock()))
        except BaseException as failure:
            answer.set_exception(failure)

    answer: Future = Future()
    Thread(target=ask, daemon=True).start()
    answer.result(REACHED_WITHIN_S + 1)


def check_workers(client) -> None:
    """``OptionError`` naming a worker that has another specmoe, or none. Without any worker yet,
    one line says that they are awaited: a queue may start them later."""
    if not client.nthreads():
        print("specmoe: the scheduler has no workers yet: waiting for them", file=sys.stderr)
        return
    with door(
        "a worker cannot import specmoe", "install it there, in the same version", OptionError
    ):
        found = client.run(version)
    for address, other in found.items():
        if other != specmoe.__version__:
            raise OptionError(
                f"the worker {address} has specmoe {other} and this process "
                f"{specmoe.__version__}: install the same on both"
            )


def version() -> str:
    return specmoe.__version__


def _need_distributed():
    try:
        import distributed
    except ImportError:
        raise SpecMoEError(
            "--scheduler and --workers need dask.distributed: pip install 'specmoe[dask]'"
        ) from None
    return distributed
