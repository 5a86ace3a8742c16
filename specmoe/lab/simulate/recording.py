"""A run, as small as a replay needs it: sums per round and MoE layer.

Comes in: an ``Output`` and its engine's ``info``. Goes out: a ``Recording``, kept as npz.
``replay`` calls next.

    S rounds, L MoE layers that took part in them, G longest draft
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...errors import OptionError
from ..metrics import events
from ..writing import write_whole

FORMAT = 2
_COUNTS = ("experts", "pairs", "hits", "fetches", "prefetches")  # [S, L]
_ROUNDS = ("rows", "live", "committed", "gammas", "positions")  # [S]
_IDENTITY = ("name", "architecture", "layers", "experts", "top_k")


@dataclass(frozen=True)
class Recording:
    """Integer arrays. What is of prefill is not in it: an encoder runs there, so only decoder
    layers have columns."""

    info: dict = field(repr=False)  # the engine's
    method: str
    batch: int
    experts: np.ndarray  # [S, L] distinct experts that the verification needed
    pairs: np.ndarray  # [S, L] tokens sent to them
    hits: np.ndarray  # [S, L] of those experts, resident when asked for
    fetches: np.ndarray  # [S, L] reads on demand
    prefetches: np.ndarray  # [S, L] reads ahead, used or not
    rows: np.ndarray  # [S] rows in flight
    live: np.ndarray  # [S] tokens verified
    committed: np.ndarray  # [S] new tokens
    gammas: np.ndarray  # [S] draft steps
    drafting: np.ndarray  # [S, G] rows that still drafted at each step
    # [S] tokens of the longest row, its block included: how far attention looks
    positions: np.ndarray
    # what else tells this run from others: eviction, prefetch, gamma, ...
    settings: dict = field(default_factory=dict)

    @classmethod
    def of(cls, output, info: dict, **settings) -> Recording:
        """Of any run's trace, with ``settings`` written beside it; ``OptionError`` when it was not
        kept or cannot be of the model that ``info`` describes."""
        frame = output.trace.to_frame()
        if not (frame["kind"] == "round").any():
            raise OptionError("the run kept no trace to record: load the engine with trace=True")
        decode = frame[frame["phase"] != "prefill"]
        _check_events(decode, info)
        counts, rounds = _sums(decode), events(frame, None, "round").set_index("round")
        verify = decode[decode["kind"] == "verify"].groupby("round")["count"].sum()
        drafting = _drafting(decode, len(rounds))
        return cls(
            dict(info),
            output.stats.method,
            output.stats.batch_size,
            **counts,
            rows=rounds["size"].to_numpy(),
            live=verify.reindex(rounds.index, fill_value=0).to_numpy(),
            committed=rounds["count"].to_numpy(),
            gammas=(drafting > 0).sum(axis=1),
            drafting=drafting,
            settings=settings,
            positions=_positions(output.trace.blocks, len(rounds)),
        )

    def full(self) -> Recording:
        """Only the rounds with every row in flight, unless there is none: what a batch that is kept
        full does."""
        full = self.rows == self.batch
        if not full.any():
            return self
        return replace(self, **{name: getattr(self, name)[full] for name in ARRAYS})

    @property
    def num_new_tokens(self) -> int:
        return int(self.committed.sum())

    @property
    def num_reads(self) -> int:
        return int(self.fetches.sum() + self.prefetches.sum())

    @property
    def fetched_bytes(self) -> int:
        """Bytes that the run itself moved while decoding."""
        return self.num_reads * self.info["record_bytes"]

    def check(self, info: dict) -> None:
        """``OptionError`` unless it was made with the model of ``info`` (its records may be widened
        differently)."""
        for name in _IDENTITY:
            if self.info.get(name) != info.get(name):
                raise OptionError(
                    "the recording is of a model with "
                    f"{name}={self.info.get(name)!r}, not "
                    f"{info.get(name)!r}: record a run of this model"
                )

    def save(self, path) -> Path:
        """Write ``path`` (npz, compressed)."""
        return save_all([self], path)

    @classmethod
    def load(cls, path) -> Recording:
        """``OptionError`` when the file is no recording, or of another version."""
        return load_all(path)[0]


ARRAYS = (*_COUNTS, *_ROUNDS, "drafting")
_TOLD = ("method", "batch", "info", "settings")


def save_all(recordings: list[Recording], path) -> Path:
    """Recordings one after the other in ``path`` (npz, compressed): far smaller than a file
    each."""
    told = [
        {name: getattr(each, name) for name in _TOLD}
        | {
            "rounds": len(each.rows),
            "layers": each.experts.shape[1],
            "steps": each.drafting.shape[1],
        }
        for each in recordings
    ]
    arrays = {
        name: np.concatenate([getattr(each, name).ravel() for each in recordings])
        for name in ARRAYS
    }
    small = {
        name: array.astype(np.min_scalar_type(int(array.max(initial=0))))
        for name, array in arrays.items()
    }
    head = np.array(json.dumps({"format": FORMAT, "runs": told}, default=str))
    return write_whole(path, lambda file: np.savez_compressed(file, told=head, **small))


def load_all(path) -> list[Recording]:
    """What ``save_all`` wrote; ``OptionError`` when the file is none of its, or of another
    version."""
    try:
        with np.load(path, allow_pickle=False) as file:
            told = json.loads(str(file["told"]))
            arrays = {name: file[name].astype(np.int64) for name in ARRAYS if name in file}
    except (OSError, ValueError, KeyError, EOFError) as failure:
        raise OptionError(
            f"{Path(path).name} is not a recording of a run ({type(failure).__name__})"
        ) from None
    if told.get("format") != FORMAT:
        found = told.get("format")
        raise OptionError(
            f"{Path(path).name} is a recording of version {found!r}, this is {FORMAT}: record again"
        )
    places, found = dict.fromkeys(ARRAYS, 0), []
    for run in told["runs"]:
        found.append(Recording(**{name: run[name] for name in _TOLD}, **_take(arrays, places, run)))
    return found


def _take(
    arrays: dict[str, np.ndarray], places: dict[str, int], run: dict
) -> dict[str, np.ndarray]:
    """The next run's part of every array, in its shape; moves ``places`` on."""
    taken, rounds = {}, run["rounds"]
    for name in ARRAYS:
        columns = {"drafting": run["steps"]} | dict.fromkeys(_COUNTS, run["layers"])
        shape = (rounds, columns[name]) if name in columns else (rounds,)
        size = int(np.prod(shape))
        taken[name] = arrays[name][places[name] : places[name] + size].reshape(shape)
        places[name] += size
    return taken


def _check_events(decode, info: dict) -> None:
    for column, limit in (("layer", info["layers"]), ("expert", info["experts"])):
        if decode[column].max() >= limit:
            raise OptionError(
                f"the trace names {column} {decode[column].max()}, the model "
                f"{info['name']!r} has {limit}: "
                "it is the trace of another model"
            )
    sizes = set(decode.loc[decode["kind"].isin(["fetch", "prefetch"]), "size"]) - {
        info["record_bytes"]
    }
    if sizes:
        raise OptionError(
            f"the trace moves records of {sizes.pop()} bytes, the model "
            f"{info['name']!r} has records of "
            f"{info['record_bytes']}: it is the trace of another model"
        )


def _sums(decode) -> dict[str, np.ndarray]:
    """Counts [S, L] by name; reads that landed between rounds belong to the round before."""
    routed = decode[decode["kind"] == "route"]
    last = int(decode["round"].max())
    # an encoder's layers come first and take no part
    first = int(routed["layer"].min()) if len(routed) else 0
    shape = (last + 1, int(decode["layer"].max()) - first + 1)
    arrays = {name: np.zeros(shape, dtype=np.int64) for name in _COUNTS}
    kinds = {"route": "experts", "hit": "hits", "fetch": "fetches", "prefetch": "prefetches"}
    for kind, part in decode[decode["kind"].isin(list(kinds)) & (decode["round"] >= 0)].groupby(
        "kind", observed=True
    ):
        place = part["round"].to_numpy(), part["layer"].to_numpy() - first
        np.add.at(arrays[kinds[kind]], place, 1)
        if kind == "route":
            np.add.at(arrays["pairs"], place, part["count"].to_numpy())
    return arrays


def _drafting(decode, num_rounds: int) -> np.ndarray:
    """Rows that still drafted at each step [S, G]: a row that drafted n tokens took part in the
    first n."""
    verdicts = decode[decode["kind"] == "accept"]
    longest = int(verdicts["size"].max()) if len(verdicts) else 0
    steps = np.zeros((num_rounds, longest), dtype=np.int64)
    for number, size in zip(verdicts["round"], verdicts["size"]):
        steps[number, :size] += 1
    return steps


def _positions(blocks, num_rounds: int) -> np.ndarray:
    """Tokens of the longest row with what it drafted, by round [S]; its last token is the first of
    the block."""
    longest = np.zeros(num_rounds, dtype=np.int64)
    for block in blocks:
        longest[block.round] = max(longest[block.round], block.start + len(block.drafted))
    return longest
