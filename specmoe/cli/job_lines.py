"""What one line of a job may say, and the lines of a file of any length, one at a time.

Comes in: JSON lines ``{"prompt": text | ids}`` or ``{"messages": [...]}``, with ``"id"``, ``"n"``
and decoding options if you like. Goes out: one ``Item`` per line that is not blank; what cannot be
used is an item with an ``error``. ``jobs`` calls this.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..engine.settings import CALLABLES, OF_A_ROW, SAMPLED, check_row
from ..errors import OptionError, StoreError, nearest
from ..options import GenerateOptions, LoadOptions, from_kwargs

MAX_LINE_BYTES = 2**23  # a longer line becomes an error line, without being held in memory
MAX_SEQUENCES = 1024  # of one line's "n"
# Options that change speed and memory, never the texts: a job may be resumed with others.
FREE = frozenset(
    "method gamma planner draft draft_set substitute draft_top_k eviction prefetch batch_size "
    "first_prompt streamer progress store device draft_experts fast_memory link_bytes_per_s "
    "compile trace num_readers revision gguf_file token cache_dir".split()
)
# What a line may set: settings of its own row, and what its whole call of ``generate`` must have.
OF_THE_ROW = set(OF_A_ROW) - set(CALLABLES)
OF_THE_CALL = {"seed", "source_lang", "target_lang"}
OTHER_NAMES = {"stop": "stop_strings"}


def deciding(cls: type[GenerateOptions] | type[LoadOptions]) -> set[str]:
    """Names of the options that decide the texts."""
    return {option.name for option in dataclasses.fields(cls)} - FREE


@dataclass(frozen=True)
class Item:
    """One line of the input. ``error`` says why it cannot be used."""

    line: int
    digest: str  # of the line's content
    num_bytes: int
    # texts asked for by the readable lines before it: what its noise is drawn by
    number: int = -1
    prompt: str | list | None = None  # a text, token ids or messages
    id: Any = None
    n: int | None = None
    settings: dict = field(default_factory=dict)  # of its row
    call: dict = field(default_factory=dict)  # of the call that it is in
    error: str | None = None

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list) and isinstance(self.prompt[0], dict)

    @property
    def kind(self) -> str:
        return "messages" if self.is_chat else type(self.prompt).__name__

    @property
    def has_own_seed(self) -> bool:
        """Such a line gets what ``generate`` gives its prompt alone."""
        return "seed" in self.call

    def record(self, job: str, **result) -> dict:
        """The output line of this item."""
        known = {} if self.id is None else {"id": self.id}
        if self.prompt is not None:
            known["messages" if self.is_chat else "prompt"] = self.prompt
        return {"line": self.line, **known, **result, "job": job, "input": self.digest}


def read_lines(file: BinaryIO, name: str, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, bytes with their line break) of every line; None for one of more than
    ``limit`` bytes. A line without a break is the last one, whatever is written behind it later: a
    file may grow while it is read."""
    number, raw = 0, b"\n"
    try:
        while raw.endswith(b"\n") and (raw := file.readline(limit + 1)):
            number += 1
            first, num_bytes = raw, len(raw)
            # The end of the file was in the middle of a line, and more may be there by now.
            while not raw.endswith(b"\n") and (rest := file.readline(2**16)):
                num_bytes += len(rest)
                first, raw = (first + rest if num_bytes <= limit + 1 else b""), rest
            is_whole = num_bytes <= limit + raw.endswith(b"\n")
            yield number, first if is_whole else None
    except OSError as failure:
        reason = failure.strerror or failure
        raise StoreError(f"{name} cannot be read after line {number}: {reason}") from failure


def read_items(file: BinaryIO, name: str) -> Iterator[Item]:
    """Every line but blank ones; ``OptionError`` for a file that holds none, or is not UTF-8."""
    number, is_empty = 0, True
    for line, raw in read_lines(file, name, MAX_LINE_BYTES):
        if line == 1 and raw is not None:
            raw = _without_mark(raw, name)
        if raw is None or raw.strip():
            item = _read_item(line, number, raw)
            number += (item.n or 1) if item.error is None else 0
            is_empty = False
            yield item
    if is_empty:
        raise OptionError(f'{name} holds no prompts: write lines like {{"prompt": "..."}}')


def _without_mark(raw: bytes, name: str) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise OptionError(f"{name} is UTF-16: save it as UTF-8")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _read_item(line: int, number: int, raw: bytes | None) -> Item:
    if raw is None:
        return Item(line, "", 0, error=f"longer than {MAX_LINE_BYTES} bytes: shorten it")
    raw = raw.strip()
    known = dict(line=line, digest=_digest(raw), num_bytes=len(raw))
    try:
        found = _DECODER.decode(raw.decode("utf-8"))
        known["digest"] = _digest(json.dumps(found, ensure_ascii=False, sort_keys=True).encode())
    except UnicodeEncodeError:
        return Item(**known, error="not JSON: half a surrogate pair, which UTF-8 cannot hold")
    except (ValueError, RecursionError) as failure:
        return Item(**known, error=f"not JSON: {failure}")
    if not isinstance(found, dict):
        return Item(**known, error='not an object with a "prompt" or "messages"')
    known["id"] = found.pop("id", None)
    try:
        prompt = _prompt(found)
        n = _num_sequences(found)
        settings, call = _options(found)
        return Item(**known, number=number, prompt=prompt, n=n, settings=settings, call=call)
    except OptionError as failure:
        return Item(**known, error=str(failure))


def is_sampled(item: Item, options: dict) -> bool:
    return bool(item.settings.get("do_sample", options.get("do_sample")))


def longest_first(items: list[Item], options: dict) -> list[Item]:
    """So that a batch is full until its last texts end together, and prompts of a length are
    prefilled together. Noise goes by the number of a text, so sampled ones stay as they are."""
    if any(is_sampled(item, options) for item in items):
        return items
    most = options.get("max_new_tokens", GenerateOptions.max_new_tokens)
    return sorted(
        items, key=lambda item: (-item.settings.get("max_new_tokens", most), -item.num_bytes)
    )


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _prompt(found: dict) -> str | list:
    """The prompt of a line, taken out of it."""
    if ("prompt" in found) == ("messages" in found):
        how = "both" if "prompt" in found else "neither"
        raise OptionError(f'a line has a "prompt" or "messages", and this one has {how}')
    name = "prompt" if "prompt" in found else "messages"
    value = found.pop(name)
    is_chat = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    if not value and (is_chat or isinstance(value, str)):
        raise OptionError(f'"{name}" is empty')
    if name == "messages":
        if not is_chat or not all(isinstance(one.get("role"), str) for one in value):
            raise OptionError('"messages" is not a list of objects with a "role" and a "content"')
    elif is_chat or (isinstance(value, dict) and "role" in value):
        raise OptionError('"prompt" holds chat messages: call it "messages"')
    elif not isinstance(value, str) and not _is_ids(value):
        raise OptionError('"prompt" is neither a text nor a list of token ids')
    return value


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _num_sequences(found: dict) -> int | None:
    n = found.pop("n", None)
    if n is not None and not (type(n) is int and 1 <= n <= MAX_SEQUENCES):
        raise OptionError(
            f'"n" is {_short(n)}: it must be a whole number from 1 to {MAX_SEQUENCES}'
        )
    return n


def _options(found: dict) -> tuple[dict, dict]:
    """The decoding options of a line: (of its row, of its call). As on the command line,
    a temperature, ``top_k`` and so on ask for sampling, and temperature 0 for none."""
    settings, call = {}, {}
    for name, value in found.items():
        full = OTHER_NAMES.get(name, name)
        if full not in OF_THE_ROW | OF_THE_CALL:
            known = [*OF_THE_ROW, *OF_THE_CALL, *OTHER_NAMES, "prompt", "messages", "id", "n"]
            raise OptionError(f"unknown key {_short(name)}: {nearest(name[:80], known)}")
        if full in settings:
            raise OptionError(f"{name!r} and {full!r} are one option: write one of them")
        if value is not None:
            (settings if full in OF_THE_ROW else call)[full] = value
    asked = [name for name in SAMPLED if name in settings]
    if asked and "do_sample" not in settings:
        settings["do_sample"] = settings.get("temperature", 1) != 0
    try:
        from_kwargs(GenerateOptions, call)
        settings = check_row(settings, "decoding options")
    except TypeError as failure:
        raise OptionError(f"a decoding option has a value of the wrong kind: {failure}") from None
    if settings.get("temperature") == 0:
        settings = {name: value for name, value in settings.items() if name not in SAMPLED}
    return settings, call


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _no_twins(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_short(twice)} stands twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:60]} is no finite number")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_twins, parse_float=_finite, parse_constant=_finite
)
