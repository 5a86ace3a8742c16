"""How a student's function is called: watched, and with the failing call told.

Comes in: a ``Task`` (what the function is called, its arguments, what it should give) and a
student's function. Goes out: its answer, or an ``ExerciseError`` of one sentence, with the call
that failed, what was answered and what is right on the lines below it. A class, a generator, a
wrong number of arguments, an exception, a print, a changed argument, random numbers of one's own
and a loop without end are told apart.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import operator
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .verdict import NOTHING, ExerciseError, require

LONGEST = 240  # characters of one argument
SECONDS = 60  # of one call


@dataclass(frozen=True)
class Task:
    """What a student's function is: its ``name``, ``parameters``, in words what it gives back
    (``expects``), and the arguments that it may write in."""

    name: str
    parameters: tuple[str, ...]
    expects: str
    writable: tuple[str, ...] = ()
    none_is_an_answer: bool = False
    seconds: int = SECONDS

    def told(self, arguments: Sequence, *, answer: Any = ..., right: Any = ...) -> str:
        """The call, and below it what was answered and what is right, where they are given."""
        named = zip(self.parameters, arguments)
        lines = [f"{self.name}({', '.join(f'{key}={shown(value)}' for key, value in named)})"]
        lines += [] if answer is ... else [f"your answer: {shown(answer)}"]
        lines += [] if right is ... else [f"expected:    {shown(right)}"]
        return "\n".join(f"  {line}" for line in lines)

    def check_function(self, function: Callable) -> None:
        """Raise unless ``function`` can be called with this task's arguments."""
        kind = type(function).__name__
        require(
            not inspect.isclass(function),
            f"{getattr(function, '__name__', kind)} is a class: give a function",
        )
        require(
            callable(function),
            f"give the function itself, not {kind}: leave out its brackets",
        )
        require(
            not inspect.isgeneratorfunction(function) and not inspect.iscoroutinefunction(function),
            f"your function yields or awaits: return {self.expects} instead",
        )
        with contextlib.suppress(TypeError, ValueError):
            signature = inspect.signature(function)
            try:
                signature.bind(*self.parameters)
            except TypeError:
                takes, needs = len(signature.parameters), len(self.parameters)
                raise ExerciseError(
                    f"your function takes {takes} arguments and is called with {needs}: "
                    f"{self.name}({', '.join(self.parameters)})"
                ) from None

    def call(self, function: Callable, *arguments, right: Any = ..., note: str = "") -> Any:
        """``function(*arguments)``. The arguments are handed over as copies, but for those that it
        may write in. ``note`` is added to the sentence of an exception."""
        self.check_function(function)
        given = [
            value if name in self.writable else copy.deepcopy(value)
            for name, value in zip(self.parameters, arguments, strict=True)
        ]
        before = copy.deepcopy(arguments)
        said, drawn = io.StringIO(), _random_states()
        try:
            with contextlib.redirect_stdout(said), _time_limit(self.seconds):
                answer = function(*given)
        except NotImplementedError:
            raise ExerciseError(
                f"{NOTHING}: the function should give {self.expects}", self.told(before)
            ) from None
        except ExerciseError as failure:
            raise failure.at(self.told(before, right=right)) from None
        except Exception as failure:
            sentence = f"your function raised {type(failure).__name__}: {failure}{note}"
            raise ExerciseError(sentence, self.told(before, right=right)) from failure
        self._watch(answer, said.getvalue(), drawn, (before, given), right)
        return answer

    def _watch(self, answer, said: str, drawn, arguments, right) -> None:
        before, after = arguments
        told = self.told(before, answer=answer, right=right)
        if said:
            raise ExerciseError(
                f"your function prints ({said.strip()!r:.40}): take the print out, and return the "
                "answer",
                told,
            )
        if answer is None and not self.none_is_an_answer:
            raise ExerciseError(f"{NOTHING}: the function should give {self.expects}", told)
        if inspect.isgenerator(answer) or isinstance(answer, Iterator):
            kind = type(answer).__name__
            raise ExerciseError(f"your answer is a {kind}: make a list of it, list(...)", told)
        for name, old, new in zip(self.parameters, before, after):
            if name not in self.writable and not same(old, new):
                raise ExerciseError(
                    f"your function changes its argument {name}: work on a copy of it", told
                )
        if not same(drawn, _random_states()):
            raise ExerciseError(
                "your function draws random numbers of its own: use only what it is given, so "
                "that a run can be repeated",
                told,
            )

    def ask(self, function: Callable, arguments: Sequence, read: Callable, right: Any = ...) -> Any:
        """The answer, brought into the form of ``read``; a wrong form is told."""
        answer = self.call(function, *arguments, right=right)
        return self.read(answer, arguments, read, right)

    def read(self, answer: Any, arguments: Sequence, read: Callable, right: Any = ...) -> Any:
        """``read(answer)``, or the sentence that says what is wrong with its form."""
        told = functools.partial(self.told, arguments, answer=answer, right=right)
        try:
            return read(answer)
        except ExerciseError as failure:
            raise failure.at(told()) from None
        except Exception:
            kind = type(answer).__name__
            raise ExerciseError(
                f"your answer ({kind}) has the wrong form: the function should give {self.expects}",
                told(),
            ) from None


def _random_states() -> list:
    kind, keys, place, *_ = np.random.get_state()  # noqa: NPY002 (a watch on the old one)
    return [random.getstate(), keys, place, torch.get_rng_state()]


@contextlib.contextmanager
def _time_limit(seconds: int):
    """Stop what does not end, where the system can: by an alarm in the main thread."""
    main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not main:
        yield
        return

    def ring(*_):
        raise ExerciseError(
            f"your function did not answer within {seconds} seconds: look for a loop without end"
        )

    handler = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


def same(a: Any, b: Any) -> bool:
    """Equal in value and shape, tensors and arrays within lists too."""
    if isinstance(a, torch.Tensor | np.ndarray) or isinstance(b, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b) < 600:
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b))
    return bool(a == b)


def shown(value: Any) -> str:
    """``value`` as a line, at most ``LONGEST`` characters; floats with six digits."""
    text = repr(_plain(value))
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


# ---- the forms of an answer ----


def whole(value: Any) -> int:
    """A whole number: no bool, no 1.7."""
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return operator.index(value)


def listed(value: Any) -> list:
    """The members of a list, tuple, set, array or tensor."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if not isinstance(value, list | tuple | set | frozenset | range):
        raise TypeError(value)
    return list(value)


def wholes(value: Any) -> list[int]:
    """A list of whole numbers."""
    return [whole(one) for one in listed(value)]


def numbers(value: Any) -> list[float]:
    """A list of numbers."""
    return [float(one) for one in listed(value)]
