"""Your own parts, by name: ``specmoe.register("eviction", "mine", function)``.

Comes in: a kind, a name, a function or a small class. Goes out: ``options`` takes the name wherever
it takes a built-in one; the room whose part it is asks ``own`` for it, and checks every answer.
Names live as long as the process.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from .errors import OptionError, SpecMoEError, check_choice, door, one_line, path_of

# kind -> the method that an object of yours has, where it is no function
KINDS = {
    "draft": "draft",
    "draft_set": "keep",
    "substitute": "stand_ins",
    "eviction": "keep",
    "planner": "next_gamma",
}
BUILT_IN = {
    "draft": ("resident", "ngram", "low_bit", "merged", "layer_skip", "mtp", "oracle"),
    "draft_set": ("random", "hot_global", "hot_temporal"),
    "substitute": ("affinity", "router", "random", "drop", "no_experts"),
    "eviction": ("lru", "lfu", "static", "temporal", "decayed"),
    "planner": ("cost", "confidence"),
}
_GIVEN: dict[str, dict[str, object]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, given) -> None:
    """``given`` is called ``name`` from now on, in this process, wherever ``generate``, ``bench``,
    sweeps and replays take a ``kind``. A function, or a class, of which every run has an object of
    its own:

    ==========  =====================================================  ============================
    kind        function                                               the contract, also of a class
    ==========  =====================================================  ============================
    draft       (texts, limits) -> a list of tokens for each row       speculate.sources.DraftSource
    draft_set   (layer, counts, num_draft) -> who drafts next          offload.policies.KeepPolicy
    substitute  (layer, residents, distances) -> who stands for each   offload.stand_ins.OwnTable
    eviction    (layer, counts, resident, num_kept) -> whom to keep    offload.policies.KeepPolicy
    planner     (rounds so far) -> tokens to draft for each row        speculate.planner.Planner
    ==========  =====================================================  ============================

    ``counts`` [E]: tokens of this step for each expert of ``layer``; ``resident`` a set of experts;
    ``rounds`` a list of ``trace.Round``. Whatever it answers, the text stays exact; an answer that
    cannot be followed raises ``OptionError`` in one sentence, and the engine goes on. Raises
    ``OptionError`` for a kind, name or object that cannot be taken, and for the name of a built-in.
    """
    check_choice("kind", kind, KINDS)
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
        raise OptionError(f"name {name!r} of a {kind} must be a word")
    if not is_part(kind, given):
        raise OptionError(
            f"{kind} {name} must be a function or have a method {KINDS[kind]}, not {given!r:.60}"
        )
    if name in BUILT_IN[kind]:
        raise OptionError(f"{kind} {name!r} is built in: give yours another name")
    _GIVEN[kind][name] = given


def forget(kind: str, name: str) -> None:
    """The name is free again."""
    _GIVEN[kind].pop(name, None)


def names(kind: str) -> list[str]:
    """The built-in names of ``kind``, then yours."""
    return [*BUILT_IN[kind], *_GIVEN[kind]]


def yours(kind: str) -> list[str]:
    """The names that somebody registered."""
    return [*_GIVEN[kind]]


def is_part(kind: str, value) -> bool:
    """Could ``value`` be a part of a user's own?"""
    return callable(value) or callable(getattr(value, KINDS[kind], None))


def check_part(kind: str, value) -> None:
    """``OptionError`` unless ``value`` is a known name of ``kind``, or somebody's own part."""
    if isinstance(value, str) or not is_part(kind, value):
        check_choice(kind, value, names(kind))


class Part:
    """A user's part in one run: what was given, or an object of it made with ``sizes``."""

    def __init__(self, kind: str, given, name: str, sizes: tuple = ()):
        self.name = name
        self.label = f"{kind} {name}"
        self.given = self.ask(given, *sizes) if isinstance(given, type) else given
        # a method of an object; else the object itself is asked
        self.method = getattr(self.given, KINDS[kind], None)

    def ask(self, function, *arguments):
        """What ``function`` of the user answers; ``OptionError`` where it raises."""
        try:
            return function(*arguments)
        except SpecMoEError:
            raise
        except Exception as failure:
            raise OptionError(
                f"{self.label} raised {type(failure).__name__}: {failure}"
            ) from failure

    def refusal(self, what: str) -> OptionError:
        return OptionError(f"{self.label} gave {what}")

    def numbers(self, answer, where: str, what: str) -> list[int]:
        """``answer`` as whole numbers; ``where`` it was given and ``what`` it should be."""
        try:
            return [operator.index(one) for one in answer]
        except Exception:  # what it gave may be a generator, which is the user's code, too
            raise self.refusal(f"{one_line(answer)[:60]} {where}: return {what}") from None


def own(kind: str, value, *sizes) -> Part | None:
    """The user's part that ``value`` names or is, made for a run; None: ``value`` is built in."""
    if isinstance(value, str):
        given, name = _GIVEN[kind].get(value), value
    else:
        given, name = value, getattr(value, "__name__", type(value).__name__)
    return None if given is None else Part(kind, given, name, sizes)


def plug_in(files: Iterable[str]) -> None:
    """Run each of ``files``, Python that registers parts (the command line's ``--plugin``)."""
    for file in files:
        path = path_of(file)
        with door(f"plugin {file} cannot be run", "correct the file", OptionError):
            names = {"__name__": path.stem, "__file__": str(path)}
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
