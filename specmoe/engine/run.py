"""One run of an engine: who may use it, what is held meanwhile, and how all of it ends.

Comes in: prompts that have been read, and the settings of a method. Goes out: a ``Run``, which is
iterated round by round and then gives its ``Output``. ``Engine.generate`` and ``Engine.start`` make
one; probes hold an engine without one.

Nothing here relies on a clean-up that comes to its end: an interrupt may cut any of them short. So
``held`` begins with what makes an engine clean (no read under way, an empty KV cache), and only
then hands out buffers.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch

from ..errors import SpecMoEError
from ..offload.experts import RunExperts
from ..offload.policies import RunPolicy
from ..offload.pool import ResidentPool
from ..offload.slots import Slots
from ..offload.transfers import allocate_slots
from ..speculate.loop import Batch, decode
from ..trace import PoolCounts, Round, Trace
from .methods import Method, source_slots
from .output import Output, make_output
from .prepare import Plan
from .progress import Watcher
from .shown import Shown


class _User:
    """Whoever has the turn; gone with the call that made it."""


class Turns:
    """One call at a time, in the process that loaded the engine."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process = os.getpid()
        # A weak reference: a call that was cut down before it could give its turn back has given it
        # back all the same.
        self._user: weakref.ref | None = None

    def is_taken(self) -> bool:
        return self._user is not None and self._user() is not None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within, every other call is refused: of another thread, of a callback, of a forked
        child."""
        if os.getpid() != self._process:
            raise SpecMoEError(
                "this process is a fork of the one that loaded the engine, and has "
                "no readers: load it here"
            )
        user = _User()
        with self._lock:
            if self.is_taken():
                raise SpecMoEError(
                    "the engine is in use, and does one call at a time: wait until the other one "
                    "has ended, or load a second"
                )
            self._user = weakref.ref(user)
        try:
            yield
        finally:
            self._user = None


@contextmanager
def held(engine, method: Method, trace: Trace) -> Iterator[RunExperts]:
    """The experts of one run, with a fresh pool over the engine's slots. Whatever an earlier run
    left behind ends first: ``StoreError`` while one of its reads has stalled."""
    with engine.turns.taken():
        engine.check_open()
        engine.store.drain()
        engine.decoder.free()
        slots, memory = _fast_memory(engine, method)
        pool = _new_pool(engine, method, slots, trace)
        with _ending(pool.reset_reads, engine.decoder.free, pool.tier.slots.let_go):
            with engine.experts.running(pool, pool.policy, method.drafting) as experts:
                with method.source.running(experts, memory):
                    _preload(experts, method)
                    yield experts


def _fast_memory(engine, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots of a run, and behind them what its draft source holds, uint8 [num_bytes]."""
    source, slots = method.source, engine.slots
    if engine.experts.copied != source.key:
        engine.experts.copied = None
    if method.num_slots is not None:
        return allocate_slots(method.num_slots, engine.store), slots[:0].view(-1)
    first = len(slots) - source_slots(source, engine.memory)
    return slots[:first], slots[first:].view(-1)[: source.num_bytes]


def _new_pool(engine, method: Method, slots: torch.Tensor, trace: Trace) -> ResidentPool:
    """An empty pool as ``method`` wants it, over ``slots``."""
    policy = RunPolicy(method.rule, method.first_kept)
    return ResidentPool(engine.store, Slots(slots), policy, method.mode, trace)


def _preload(experts: RunExperts, method: Method) -> None:
    """Fixed sets are fetched before decoding begins, and not counted."""
    for layer, chosen in enumerate(method.preload or []):
        if layer >= method.first_kept:
            experts.pool.fetch(layer, chosen)
    experts.pool.tier.counts = PoolCounts()


@contextmanager
def _ending(*ends: Callable[[], None]) -> Iterator[None]:
    """Every one of ``ends`` is called, whatever another raises; an error of the block itself goes
    before theirs."""
    failures: list[BaseException] = []
    try:
        yield
    except BaseException as failure:
        failures.append(failure)
        raise
    finally:
        for end in ends:
            try:
                end()
            except BaseException as failure:  # an interrupt, too: the others still have to end
                failures.append(failure)
        if failures:
            raise failures[0]


class Run(Shown):
    """A run under way: ``with engine.start(...) as run: for round in run: ...; run.output()``.

    Iterating gives one frozen ``Round`` after the other; leaving ``with`` ends every read and frees
    the KV cache, however the run ended. ``batch`` holds its parts: decoder, experts, sampler,
    planner, queue, rows in flight.
    """

    def __init__(self, engine, plan: Plan):
        self.engine = engine
        self.plan = plan
        self.trace = Trace(enabled=engine.options.trace)
        # both from ``with`` on
        self.watcher = cast(Watcher, None)
        self.batch = cast(Batch, None)
        self.seconds = 0.0
        self._rounds: Iterator[Round] = iter(())
        self._stack = ExitStack()

    @property
    def info(self) -> dict[str, Any]:
        rounds = self.batch.rounds if self.batch else []
        return {
            "method": self.plan.options.method,
            "prompts": len(self.plan.rows),
            "batch_size": self.plan.batch_size,
            "rounds": len(rounds),
            "new_tokens": sum(each.new_tokens for each in rounds),
            "seconds": self.seconds,
        }

    def __enter__(self) -> Run:
        plan, engine = self.plan, self.engine
        with ExitStack() as stack, torch.inference_mode():
            self.watcher = Watcher(plan.options, [row.tokens for row in plan.rows])
            stack.enter_context(_ending(self.watcher.close))
            experts = stack.enter_context(held(engine, plan.method, self.trace))
            # Hooks on routers are nothing for compiled passes.
            eager = plan.options.substitute == "router"
            stack.enter_context(engine.decoder.passes.plainly() if eager else nullcontext())
            engine.decoder.allocate(plan.batch_size, max(row.limit for row in plan.rows))
            self.batch = Batch(
                engine.decoder,
                experts,
                plan.sampler,
                plan.method.planner,
                deque(plan.rows),
                plan.batch_size,
                plan.eos,
                self.trace,
                source=plan.method.source,
            )
            self.trace.restart()
            self._rounds = decode(self.batch)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.__exit__(*exception)

    def __iter__(self) -> Run:
        return self

    @torch.inference_mode()
    def __next__(self) -> Round:
        began_s = time.perf_counter()
        try:
            done = next(self._rounds)
            self.watcher.see(self.batch.rows)
            return done
        finally:
            self.seconds += time.perf_counter() - began_s

    def output(self) -> Output:
        """Tokens, texts, stats and trace; rounds that are left run first."""
        for _ in self:
            pass
        engine, slots = self.engine, self.batch.experts.pool.tier.slots
        held_bytes = slots.num_bytes + self.plan.method.source.num_bytes
        run = self.seconds, held_bytes + engine.memory.scratch_bytes
        return make_output(self.plan, self.batch, self.watcher.finished, run, engine.tokenizer)
