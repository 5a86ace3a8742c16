"""A file of prompts in, a file of texts out: order kept, nothing lost when interrupted, memory for
one chunk only.

Comes in: the lines of ``job_lines`` and the files of ``job_files``. Goes out: one line per prompt,
in the same order: ``{"line", "id", "prompt", "text", "tokens", "seed", "job", "input"}`` ("texts"
and lists of tokens where the line has "n"; "seed" where it was sampled), or ``{"line", "error",
...}`` where a line could not be read or its prompt was refused. ``decoding`` calls this.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO

from ..engine.settings import gather
from ..errors import OptionError
from ..options import GenerateOptions, LoadOptions, from_kwargs
from .job_files import OutFile, OutStream, open_input
from .job_lines import (
    MAX_LINE_BYTES,
    Item,
    deciding,
    is_sampled,
    longest_first,
    read_items,
    read_lines,
)

BATCH_SIZE = 16  # where the user gives none
CHUNK_BATCHES = 4  # texts per chunk, in batches: the batch stays full, and little is lost
CHUNK_BYTES = 2 * MAX_LINE_BYTES  # of input, after which a chunk ends early
MAX_RECORD_BYTES = 16 * MAX_LINE_BYTES  # a longer line of the output was not written here
# Of each call's stats.
SUMMED = "num_new_tokens seconds fetched_bytes num_rounds num_plain_rounds num_turns".split()
WAY_OUT = "pass --overwrite or another --out"


def read_prompts(path: str | os.PathLike) -> list[str | list]:
    """All prompts at once; here an unreadable line, or one that says more than its prompt, is an
    ``OptionError``."""
    stream, name = open_input(path)
    prompts = []
    with stream:
        for item in read_items(stream, name):
            error = (
                item.error
                or (item.settings or item.call or item.n)
                and "decoding options of a line belong to specmoe generate"
            )
            if error:
                raise OptionError(f"{name} line {item.line}: {error}")
            prompts.append(item.prompt)
    return prompts


def fingerprint(identity: str, load: dict, decode: dict) -> str:
    """16 digits that change with the content of the model (``identity``) and with any option that
    decides the texts but the seed, which stands in the lines. An option written out with its
    default value is the default."""
    found: dict = {}
    for cls, given in ((LoadOptions, load), (GenerateOptions, gather(decode))):
        options = from_kwargs(cls, given)
        found |= {name: str(getattr(options, name)) for name in deciding(cls) - {"seed"}}
    found = {
        name: value for name, value in found.items() if value != "None"
    }  # a new option changes no old job
    return hashlib.sha256(json.dumps([identity, found], sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Job:
    """A job that can be stopped and taken up again. ``open_job`` makes it; ``run`` changes the
    output file only. Leaving the ``with`` block lets go of the files and of the lock."""

    stream: BinaryIO
    out: OutFile | OutStream
    items: Iterator[Item]  # those that are not done
    name: str
    seed: int | None  # of the lines that are sampled and have none of their own
    num_done: int = 0  # lines of the output that are there
    num_errors: int = 0  # of them, lines with an error
    totals: dict = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))
    num_kept_bytes: int = 0  # of the output, when it was opened

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception) -> None:
        self.out.close()
        if self.stream is not getattr(sys.stdin, "buffer", None):
            self.stream.close()

    def run(
        self,
        open_engine: Callable,
        options: dict,
        report: Callable[[int, str], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write what is missing. ``open_engine`` is called once, at the first prompt; ``report``
        hears of every line with an error, ``progress`` of the number of lines done."""
        options, engine = {"batch_size": BATCH_SIZE, **options}, None
        if self.seed is None:
            self.seed = secrets.randbits(31)
        for chunk in _chunks(self.items, CHUNK_BATCHES * options["batch_size"]):
            if engine is None and any(item.error is None for item in chunk):
                engine = open_engine()
            records = self._records(engine, chunk, options)
            self.out.begin(self.num_kept_bytes)
            for record in records:
                self._write(record, report)
                if progress is not None:
                    progress(self.num_done)
            self.out.sync()
        self.out.begin(self.num_kept_bytes)  # half a line is cut off even where none was missing

    def _write(self, record: dict, report: Callable[[int, str], None]) -> None:
        self.out.append(record)
        self.num_done += 1
        if "error" in record:
            self.num_errors += 1
            report(record["line"], record["error"])

    def _records(self, engine, items: list[Item], options: dict) -> list[dict]:
        bad = [item for item in items if item.error is not None]
        made = {item.line: item.record(self.name, error=item.error) for item in bad}
        for group in self._groups([item for item in items if item.error is None], options):
            made |= self._generate(engine, longest_first(group, options), options)
        return [made[item.line] for item in items]

    def _groups(self, items: list[Item], options: dict) -> list[list[Item]]:
        """The items by calls of ``generate``: of one kind and with the same options of the call.

        Noise is drawn by a prompt's number, and a call counts from its ``first_prompt`` on: a
        sampled item can only stand where that gives its number.
        """
        groups: list[list[Item]] = []
        latest: dict[str, list[Item]] = {}
        for item in items:
            alone = item.line if item.has_own_seed else None
            key = json.dumps([item.kind, item.n, item.call, alone], sort_keys=True)
            group = latest.get(key)
            is_next = group and item.number == group[0].number + len(group) * (item.n or 1)
            if group is None or (is_sampled(item, options) and not is_next):
                group = latest[key] = []
                groups.append(group)
            group.append(item)
        return groups

    def _generate(self, engine, items: list[Item], options: dict) -> dict[int, dict]:
        """Line -> record. A call that is refused is halved until the prompt that it is refused for
        is alone."""
        first, call = items[0], {**options, **items[0].call}
        if any(is_sampled(item, options) for item in items):
            number = 0 if first.has_own_seed else first.number
            call = {**call, "seed": first.call.get("seed", self.seed), "first_prompt": number}
        if any(item.settings for item in items):
            call["settings"] = [item.settings or None for item in items]
        if first.n is not None:
            call["num_return_sequences"] = first.n
        try:
            output = engine.generate([item.prompt for item in items], **call)
        except OptionError as refusal:
            if len(items) == 1:
                return {first.line: first.record(self.name, error=str(refusal))}
            halves = items[: len(items) // 2], items[len(items) // 2 :]
            return {
                k: v for half in halves for k, v in self._generate(engine, half, options).items()
            }
        for name in self.totals:
            self.totals[name] += getattr(output.stats, name)
        found = [self._found(item, index, output) for index, item in enumerate(items)]
        for item, one in zip(items, found):
            if is_sampled(item, options):
                one["seed"] = call["seed"]
        return {item.line: item.record(self.name, **one) for item, one in zip(items, found)}

    @staticmethod
    def _found(item: Item, index: int, output) -> dict:
        """Texts and tokens of the item at ``index`` of a call: lists of them where it has "n"."""
        n = item.n or 1
        found: dict = {}
        rows = range(index * n, index * n + n)
        starts, sequences = output.num_prompt_tokens, output.sequences
        tokens = [[int(token) for token in sequences[row][starts[row] :]] for row in rows]
        if output.new_texts:
            texts = [output.new_texts[row] for row in rows]
            found |= {"text": texts[0]} if item.n is None else {"texts": texts}
        return {**found, "tokens": tokens[0] if item.n is None else tokens}

    def take_up(self) -> None:
        """Pass over what the output has, comparing it line by line; what follows the last line
        break is the trace of an interruption."""
        with self.out.read() as file:
            for line, raw in read_lines(file, self.out.name, MAX_RECORD_BYTES):
                if raw is not None and not raw.endswith(b"\n"):
                    return
                record = _parse(raw)
                if record is None:
                    raise OptionError(
                        f"{self.out.name} line {line} was not written by specmoe: {WAY_OUT}"
                    )
                self._pass(line, record)
                self.num_done += 1
                self.num_errors += "error" in record
                self.num_kept_bytes += len(raw)

    def _pass(self, line: int, record: dict) -> None:
        """The next item must be the one that ``record`` was written for."""
        where, item = f"{self.out.name} line {line}", next(self.items, None)
        if item is None:
            raise OptionError(
                f"{self.out.name} has more lines than the prompts, which end at {line - 1}: "
                f"{WAY_OUT}"
            )
        if (record["line"], record.get("input")) != (item.line, item.digest):
            raise OptionError(
                f"{where} does not belong to line {item.line} of the prompts: {WAY_OUT}"
            )
        if record.get("job") != self.name:
            raise OptionError(
                f"{where} comes from a model of other content or other options (length, sampling): "
                f"{WAY_OUT}"
            )
        if "seed" in record and not item.has_own_seed:
            if self.seed not in (None, record["seed"]):
                raise OptionError(
                    f"{where} was drawn with seed {record['seed']}, not {self.seed}: {WAY_OUT}"
                )
            self.seed = record["seed"]


def _parse(raw: bytes | None) -> dict | None:
    """A line that was written here, or None."""
    try:
        record = json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(record, dict)
        or "line" not in record
        or type(record.get("seed", 0)) is not int
    ):
        return None
    return record


def _chunks(items: Iterator[Item], num_texts: int) -> Iterator[list[Item]]:
    """As many items as make ``num_texts``, or ``CHUNK_BYTES`` of input."""
    chunk: list[Item] = []
    texts = num_bytes = 0
    for item in items:
        chunk.append(item)
        texts, num_bytes = texts + (item.n or 1), num_bytes + item.num_bytes
        if texts >= num_texts or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, texts, num_bytes = [], 0, 0
    if chunk:
        yield chunk


def open_job(
    prompts: str | os.PathLike,
    out: str | os.PathLike,
    name: Callable[[], str],
    resume: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
) -> Job:
    """Check input and output, and lock the output, before anything is loaded. ``name`` gives the
    job's fingerprint when both are there; ``-`` is stdin, stdout."""
    if resume and overwrite:
        raise OptionError("--resume and --overwrite exclude each other")
    if str(out) == "-" and (resume or overwrite):
        raise OptionError("--resume and --overwrite belong to a file, not to --out -")
    stream, said = open_input(prompts)
    with ExitStack() as stack:
        file = OutStream() if str(out) == "-" else OutFile(out)
        job = stack.enter_context(Job(stream, file, iter(()), "", seed))
        if file.is_same_file(stream):
            raise OptionError(f"--out {out} is the file of prompts itself: name another one")
        if file.size and not (resume or overwrite):
            raise OptionError(
                f"{out} exists: pass --resume to go on where it stops, or --overwrite"
            )
        items = read_items(stream, said)
        job.items = chain([next(items)], items)
        job.name = name()
        if resume and file.size:
            job.take_up()
        stack.pop_all()
    return job
