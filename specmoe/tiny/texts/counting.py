"""Documents with one right answer: numbers in words, dates, small sums.

Comes in: a ``random.Random``. Goes out: ``Document``s whose keys are the single facts (one number,
one date, one pair), so that a fact that is held out appears in no training document at all.
"""

from __future__ import annotations

import datetime
import random

from .templates import Document

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_FIRST_DAY = datetime.date(1990, 1, 1).toordinal()
_LAST_DAY = datetime.date(2049, 12, 31).toordinal()


def number_words(number: int) -> str:
    """British English words for 0 to 9999: 412 is ``four hundred and twelve``."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % unit
    joint = " and " if rest < 100 else " "
    return f"{_ONES[number // unit]} {name}" + (f"{joint}{number_words(rest)}" if rest else "")


def _listed(kind: str, facts: list[tuple[str, str, str]], sign: str) -> Document:
    """``kind: a, b`` followed by one line per fact; facts are (key, question, answer)."""
    lines = "".join(f"\n{question}{sign}{answer}" for _, question, answer in facts)
    asked = ", ".join(question for _, question, _ in facts)
    return Document(f"{kind}: {asked}", lines, tuple(f"{kind} {key}" for key, _, _ in facts))


def _single(kind: str, fact: tuple[str, str, str], sign: str) -> Document:
    key, question, answer = fact
    return Document(f"{question}{sign.rstrip()}", f" {answer}", (f"{kind} {key}",))


def _facts(kind: str, sign: str, rng: random.Random, fact) -> Document:
    """One fact alone (a quarter of the documents) or a list of 2 to 6."""
    if rng.random() < 0.25:
        return _single(kind, fact(rng), sign)
    return _listed(kind, [fact(rng) for _ in range(rng.randrange(2, 7))], sign)


def _number_fact(rng: random.Random) -> tuple[str, str, str]:
    number = rng.randrange(10 ** rng.choice((2, 3, 3, 4)))
    return str(number), str(number), number_words(number)


def numbers_document(rng: random.Random) -> Document:
    """``words: 412, 7`` with one line per number, or a run ``count: 412 to 415``."""
    if rng.random() < 0.7:
        return _facts("words", " -> ", rng, _number_fact)
    start, length = rng.randrange(10 ** rng.choice((2, 3, 4)) - 6), rng.randrange(3, 7)
    run = range(start, start + length)
    lines = "".join(f"\n{number} -> {number_words(number)}" for number in run)
    return Document(
        f"count: {run[0]} to {run[-1]}", lines, tuple(f"words {number}" for number in run)
    )


def _long_date(day: datetime.date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _date_fact(rng: random.Random) -> tuple[str, str, str]:
    day = datetime.date.fromordinal(rng.randrange(_FIRST_DAY, _LAST_DAY))
    return day.isoformat(), day.isoformat(), _long_date(day)


def dates_document(rng: random.Random) -> Document:
    """``dates: 2026-03-01, ...`` written out, or a week day by day from a date whose weekday is
    given."""
    if rng.random() < 0.6:
        return _facts("dates", " = ", rng, _date_fact)
    start = rng.randrange(_FIRST_DAY, _LAST_DAY - 7)
    days = [datetime.date.fromordinal(start + i) for i in range(rng.randrange(3, 8))]
    lines = "".join(f"\n{day} is a {_WEEKDAYS[day.weekday()]}, {_long_date(day)}" for day in days)
    prompt = f"calendar: {days[0]}, a {_WEEKDAYS[days[0].weekday()]}, to {days[-1]}"
    return Document(prompt, lines, tuple(f"dates {day}" for day in days))


def _sum_fact(rng: random.Random) -> tuple[str, str, str]:
    total = rng.randrange(100)
    left = rng.randrange(total + 1)
    if rng.random() < 0.7:
        return f"{left} + {total - left}", f"{left} + {total - left}", str(total)
    return f"{total} - {left}", f"{total} - {left}", str(total - left)


def arithmetic_document(rng: random.Random) -> Document:
    """``sums: 37 + 45, 82 - 3`` with one line per sum; everything stays within 0 to 99."""
    return _facts("sums", " = ", rng, _sum_fact)
