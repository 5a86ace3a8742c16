"""A file of prompts in, a file of texts out: order kept, nothing lost when interrupted.

Comes in: JSON lines ``{"prompt": ...}`` or ``{"id": ..., "prompt": ...}``; a prompt is a text or a list of token ids.
Goes out: one line per prompt, in the same order: ``{"line", "id", "prompt", "text", "tokens", "job"}``, or
``{"line", "error", ...}`` where a line could not be read or its prompt was refused. ``commands`` calls this.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .errors import OptionError

BATCH_SIZE = 16  # where the user gives none
CHUNK_BATCHES = 4  # prompts per call of ``generate``, in batches: the batch stays full, and little is lost
# Options that decide the texts; method, gamma and batch size do not, so a job may be resumed with others.
DECIDING = (
    "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed", "accept_rule", "eos_token_id",
    "source_lang", "target_lang", "expert_bytes", "dtype",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One line of the input. ``number`` counts the readable ones from 0; ``error`` says why a line is not."""

    line: int
    number: int = -1
    prompt: str | list[int] | None = None
    id: Any = None
    error: str | None = None

    def record(self, job: str, **result) -> dict:
        """The output line of this item."""
        known = {} if self.id is None else {"id": self.id}
        if self.prompt is not None:
            known["prompt"] = self.prompt
        return {"line": self.line, **known, **result, "job": job}

    def fits(self, record: dict) -> bool:
        """Whether ``record`` was written for this item."""
        return (record.get("line"), record.get("id"), record.get("prompt")) == (self.line, self.id, self.prompt)


def read_items(path: str | os.PathLike) -> list[Item]:
    """Every line but blank ones; ``OptionError`` when there is no file or nothing in it."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as failure:
        raise OptionError(f"cannot read prompts from {path}: {failure.strerror or failure}") from failure
    items: list[Item] = []
    num_readable = 0
    for line, raw in enumerate(lines, start=1):
        if raw.strip():
            item = _read_item(line, num_readable, raw)
            num_readable += item.error is None
            items.append(item)
    if not items:
        raise OptionError(f'{path} holds no prompts: write lines like {{"prompt": "..."}}')
    return items


def _read_item(line: int, number: int, raw: bytes) -> Item:
    try:
        found = json.loads(raw.decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair could not be written back
    except (ValueError, RecursionError) as failure:
        return Item(line, error=f"not JSON: {failure}")
    if not isinstance(found, dict) or "prompt" not in found:
        return Item(line, error='not an object with a "prompt"')
    prompt = found["prompt"]
    is_ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if _is_chat(prompt):
        return Item(line, id=found.get("id"), error='"prompt" holds chat messages: write the text itself')
    if not (isinstance(prompt, str) or is_ids):
        return Item(line, id=found.get("id"), error='"prompt" is neither a text nor a list of token ids')
    if not prompt:
        return Item(line, id=found.get("id"), error='"prompt" is empty')
    return Item(line, number, prompt, found.get("id"))


def _is_chat(prompt: object) -> bool:
    messages = prompt if isinstance(prompt, list) else [prompt]
    return any(isinstance(message, dict) and "role" in message for message in messages)


def read_prompts(path: str | os.PathLike) -> list[str | list[int]]:
    """Only the prompts; here an unreadable line is an ``OptionError``."""
    items = read_items(path)
    for item in items:
        if item.error is not None:
            raise OptionError(f"{path} line {item.line}: {item.error}")
    return [item.prompt for item in items]


def fingerprint(model: str, options: dict) -> str:
    """Eight digits that change with the model or with any option that decides the texts."""
    deciding = {name: str(options[name]) for name in DECIDING if options.get(name) is not None}
    text = json.dumps([str(model), deciding], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass
class Job:
    """A job that can be stopped and taken up again. ``open_job`` makes it; ``run`` changes the output file only."""

    out: Path
    items: list[Item]
    name: str
    num_done: int  # lines of the output that are there
    num_errors: int  # of them, lines with an error
    stats: list = field(default_factory=list)

    @property
    def needs_engine(self) -> bool:
        return any(item.error is None for item in self.items[self.num_done :])

    def run(self, engine, options: dict, report: Callable[[int, str], None], progress=None) -> None:
        """Write what is missing. ``report`` hears of every line with an error, ``progress`` of lines done."""
        left, options = self.items[self.num_done :], {"batch_size": BATCH_SIZE, **options}
        size = CHUNK_BATCHES * options["batch_size"]
        with open(self.out, "a", encoding="utf-8") as file:
            for start in range(0, len(left), size):
                for record in self._records(engine, left[start : start + size], options):
                    _append(file, record)
                    self.num_done += 1
                    if "error" in record:
                        self.num_errors += 1
                        report(record["line"], record["error"])
                    if progress is not None:
                        progress(self.num_done, len(self.items))

    def _records(self, engine, items: list[Item], options: dict) -> list[dict]:
        made = {item.line: item.record(self.name, error=item.error) for item in items if item.error is not None}
        for same_kind in _by_kind([item for item in items if item.error is None]):
            made |= self._generate(engine, same_kind, options)
        return [made[item.line] for item in items]

    def _generate(self, engine, items: list[Item], options: dict) -> dict[int, dict]:
        """Line -> record. A chunk with a prompt that the engine refuses is halved until that prompt is alone."""
        try:
            output = engine.generate([item.prompt for item in items], **_numbered(options, items))
        except OptionError as refusal:
            if len(items) == 1:
                return {items[0].line: items[0].record(self.name, error=str(refusal))}
            middle = len(items) // 2
            first, second = (self._generate(engine, part, options) for part in (items[:middle], items[middle:]))
            return first | second
        self.stats.append(output.stats)
        made = {}
        for index, item in enumerate(items):
            text = {"text": output.new_texts[index]} if output.new_texts else {}
            tokens = [int(token) for token in output.sequences[index]][output.num_prompt_tokens[index] :]
            made[item.line] = item.record(self.name, **text, tokens=tokens)
        return made


def _by_kind(items: list[Item]) -> Iterator[list[Item]]:
    """Texts and lists of ids apart, neighbours together: one call of ``generate`` takes one kind."""
    group: list[Item] = []
    for item in items:
        if group and type(group[0].prompt) is not type(item.prompt):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _numbered(options: dict, items: Sequence[Item]) -> dict:
    """Sampling draws by (seed, prompt's number), so the number in the whole job has to be told."""
    if not options.get("do_sample") or items[0].number == 0:
        return options
    return {**options, "first_prompt": items[0].number}


def _append(file: TextIO, record: dict) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def open_job(prompts, out, name: str, resume: bool = False, overwrite: bool = False) -> Job:
    """Check input and output before anything is loaded. With ``resume`` a half-written last line is cut off."""
    items, out = read_items(prompts), Path(out)
    if out.exists() and os.path.samefile(prompts, out):
        raise OptionError(f"--out {out} is the file of prompts itself: name another one")
    if not out.parent.is_dir():
        raise OptionError(f"--out {out}: there is no folder {out.parent}")
    if resume and overwrite:
        raise OptionError("--resume and --overwrite exclude each other")
    done: list[dict] = []
    if out.exists():
        if resume:
            done, num_bytes = _written(out)
            _check_corresponds(out, items, done, name)
            os.truncate(out, num_bytes)
        elif overwrite:
            out.write_bytes(b"")
        else:
            raise OptionError(f"{out} exists: pass --resume to go on where it stops, or --overwrite")
    return Job(out, items, name, len(done), sum("error" in record for record in done))


def _written(out: Path) -> tuple[list[dict], int]:
    """The records in ``out`` and their bytes; what follows the last line break is the trace of an interruption."""
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    records = []
    for line, raw in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(raw)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "line" not in record:
            raise OptionError(f"{out} line {line} was not written by specmoe: pass --overwrite or another --out")
        records.append(record)
    return records, len(whole)


def _check_corresponds(out: Path, items: list[Item], done: list[dict], name: str) -> None:
    way_out = "pass --overwrite or another --out"
    if len(done) > len(items):
        raise OptionError(f"{out} has {len(done)} lines, the prompts only {len(items)}: {way_out}")
    for line, (item, record) in enumerate(zip(items, done), start=1):
        if not item.fits(record):
            raise OptionError(f"{out} line {line} does not belong to line {item.line} of the prompts: {way_out}")
        if record.get("job") != name:
            raise OptionError(
                f"{out} line {line} comes from another model or other options (seed, length, sampling): {way_out}"
            )
