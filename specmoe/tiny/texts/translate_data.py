"""Endless English and French sentence pairs with exact grammar: what the translation model learns
and is tested on.

Comes in: a seed and a side of the split. Goes out: ``SentencePair``s. A sentence is held out when
the CRC-32 of its English text says so (one in ten), whatever the seed: no held-out sentence can be
a training sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import translate_grammar as grammar
from . import translate_lexicon as words
from .data import is_held_out
from .translate_grammar import Pair, Phrase, Subject


@dataclass(frozen=True)
class SentencePair:
    """An English sentence and its one French translation."""

    english: str
    french: str


def _both(*parts: Pair) -> Pair:
    return " ".join(part[0] for part in parts), " ".join(part[1] for part in parts)


def _thing(rng: random.Random, plural: bool | None = None) -> Phrase:
    """A thing with none, one or two adjectives."""
    many = rng.random() < 0.4 if plural is None else plural
    before = rng.choice(words.BEFORE_THINGS) if rng.random() < 0.4 else None
    after = rng.choice(words.AFTER_THINGS) if rng.random() < 0.4 else None
    return grammar.bare_phrase(rng.choice(words.THINGS), many, before, after)


def _person(rng: random.Random) -> Subject:
    """Somebody: ``the young nurses``, ``her brother``, or a pronoun."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(grammar.PRONOUNS)
    plural = rng.random() < 0.3
    if kind < 0.5:
        pair = grammar.owned(
            rng.choice(grammar.OWNERS), grammar.bare_phrase(rng.choice(words.FAMILY), plural)
        )
    else:
        before = rng.choice(words.BEFORE_PEOPLE) if rng.random() < 0.4 else None
        after = rng.choice(words.AFTER_PEOPLE) if rng.random() < 0.3 else None
        pair = grammar.the(grammar.bare_phrase(rng.choice(words.PEOPLE), plural, before, after))
    return Subject(*pair, person=4 if plural else 1)


def _number(rng: random.Random, low: int = 2) -> int:
    return rng.randrange(low, rng.choice((20, 100, 100, 1000)))


def _object(rng: random.Random) -> Pair:
    kind = rng.random()
    if kind < 0.35:
        return grammar.counted(_number(rng), _thing(rng, plural=True))
    if kind < 0.5:
        return grammar.owned(rng.choice(grammar.OWNERS), _thing(rng))
    return rng.choice((grammar.the, grammar.some, grammar.this))(_thing(rng))


def _definite(rng: random.Random) -> Pair:
    return rng.choice((grammar.the, grammar.this))(_thing(rng))


def _price(rng: random.Random) -> Pair:
    one, many, fr_one, fr_many = rng.choice(words.CURRENCIES)
    amount = _number(rng, 1)
    name, fr_name = (one, fr_one) if amount == 1 else (many, fr_many)
    pair = f"{grammar.english_number(amount)} {name}", f"{grammar.french_number(amount)} {fr_name}"
    if rng.random() < 0.4:
        cents = rng.randrange(2, 100)
        small = f"{grammar.english_number(cents)} cents", f"{grammar.french_number(cents)} centimes"
        pair = _both(pair, ("and", "et"), small)
    return pair


def _hour(hour: int) -> str:
    return f"{grammar.french_number(hour, feminine=True)} heure{'s' if hour > 1 else ''}"


def _clock(rng: random.Random) -> Pair:
    """``at a quarter to eight``, ``at 7:45``."""
    hour, minutes = rng.randrange(1, 13), rng.randrange(5, 60)
    name, after = grammar.english_number(hour), hour % 12 + 1
    forms = (
        (f"at half past {name}", f"à {_hour(hour)} et demie"),
        (f"at a quarter past {name}", f"à {_hour(hour)} et quart"),
        (f"at a quarter to {grammar.english_number(after)}", f"à {_hour(after)} moins le quart"),
        (f"at {name} o'clock", f"à {_hour(hour)}"),
        (
            f"at {hour}:{minutes:02d}",
            f"à {_hour(hour)} {grammar.french_number(minutes, feminine=True)}",
        ),
    )
    pair = rng.choice((*forms, forms[-1]))
    if hour == 12 or rng.random() < 0.6:
        return pair
    later = ("in the afternoon", "de l'après-midi") if hour < 6 else ("in the evening", "du soir")
    return _both(pair, rng.choice((("in the morning", "du matin"), later)))


def _date(rng: random.Random) -> Pair:
    """``on Tuesday, the ninth of May`` or ``on the ninth of May 1984``."""
    day, (month, fr_month) = rng.randrange(1, 29), rng.choice(words.MONTHS)
    fr_day = "premier" if day == 1 else grammar.french_number(day)
    english, french = f"the {words.ORDINALS[day - 1]} of {month}", f"{fr_day} {fr_month}"
    if rng.random() < 0.5:
        weekday, fr_weekday = rng.choice(words.WEEKDAYS)
        return f"on {weekday}, {english}", f"le {fr_weekday} {french}"
    year = rng.randrange(1950, 2050)
    return f"on {english} {year}", f"le {french} {grammar.french_number(year)}"


def _when(rng: random.Random) -> tuple[str, Pair]:
    """(tense, time phrase that goes with it)."""
    tense = rng.choice(grammar.TENSES)
    if tense == "present":
        name, fr_name = rng.choice(words.PARTS_OF_DAY)
        return tense, (f"every {name}", f"chaque {fr_name}")
    day, fr_day = rng.choice(words.WEEKDAYS)
    if tense == "past":
        return tense, rng.choice((("yesterday", "hier"), (f"last {day}", f"{fr_day} dernier")))
    return tense, rng.choice((("tomorrow", "demain"), (f"next {day}", f"{fr_day} prochain")))


def _action(rng: random.Random, tense: str) -> Pair:
    """Somebody does something, perhaps somewhere, perhaps at some hour."""
    subject, verb = _person(rng), rng.choice(words.VERBS)
    negated = rng.random() < 0.2
    pair = _both(
        grammar.predicate(subject, verb, tense, negated),
        _definite(rng) if negated else _object(rng),
    )
    if verb in words.TRADES and not negated and rng.random() < 0.6:
        pair = _both(pair, ("for", "pour"), _price(rng))
    if rng.random() < 0.5:
        pair = _both(pair, grammar.place(rng, rng.choice(words.PLACES)))
    return _both(pair, _clock(rng)) if rng.random() < 0.25 else pair


def _timed(rng: random.Random) -> Pair:
    """``Yesterday, ...`` with one or two actions."""
    tense, when = _when(rng)
    pair = _both((f"{when[0]},", f"{when[1]},"), _action(rng, tense))
    if rng.random() < 0.6:
        pair = _both(pair, rng.choice((("and", "et"), (", but", ", mais"))), _action(rng, tense))
    return pair[0].replace(" ,", ","), pair[1].replace(" ,", ",")


def _cost(rng: random.Random) -> Pair:
    """What one or two things cost."""

    def one() -> Pair:
        phrase = _thing(rng)
        verb = ("cost", "coûtent") if phrase.plural else ("costs", "coûte")
        return _both(rng.choice((grammar.the, grammar.this))(phrase), verb, _price(rng))

    if rng.random() >= 0.7:
        return one()
    return _both(one(), rng.choice((("and", "et"), ("but", "mais"))), one())


def _event(rng: random.Random) -> Pair:
    """``the concert will begin on ..., at ... near the station``."""
    subject = grammar.the(grammar.bare_phrase(rng.choice(words.EVENTS), False))
    verb = rng.choice(
        (("begins", "commence"), ("began", "a commencé"), ("will begin", "commencera"))
    )
    pair = _both(subject, verb, _date(rng))
    pair = _both(pair, _clock(rng))
    return _both(pair, grammar.place(rng, rng.choice(words.PLACES))) if rng.random() < 0.6 else pair


def _there_are(rng: random.Random) -> Pair:
    """``there are five clean plates and three red hats behind the house``."""
    things = [
        grammar.counted(_number(rng), _thing(rng, plural=True))
        for _ in range(rng.choice((1, 2, 2)))
    ]
    pair = _both(("there are", "il y a"), things[0])
    if len(things) == 2:
        pair = _both(pair, ("and", "et"), things[1])
    return _both(pair, grammar.place(rng, rng.choice(words.PLACES)))


def _ages(rng: random.Random) -> Pair:
    """``my sister is thirty-one years old and his uncle is fifty years old``."""

    def one() -> Pair:
        pair = grammar.owned(
            rng.choice(grammar.OWNERS), grammar.bare_phrase(rng.choice(words.FAMILY), False)
        )
        age = rng.randrange(2, 100)
        years = f"is {grammar.english_number(age)} years old", f"a {grammar.french_number(age)} ans"
        return _both(pair, years)

    return _both(one(), rng.choice((("and", "et"), ("but", "mais"))), one())


KINDS: dict[str, tuple[float, Callable[[random.Random], Pair]]] = {
    "actions": (5.0, _timed),
    "prices": (2.0, _cost),
    "events": (2.0, _event),
    "counts": (1.5, _there_are),
    "ages": (1.0, _ages),
}


def sentence(rng: random.Random) -> SentencePair:
    """One pair, capitalised, with its full stop."""
    shares = [share for share, _ in KINDS.values()]
    _, make = rng.choices(list(KINDS.values()), weights=shares)[0]
    english, french = make(rng)
    return SentencePair(f"{english[0].upper()}{english[1:]}.", f"{french[0].upper()}{french[1:]}.")


def sentence_pairs(seed: int, held_out: bool = False) -> Iterator[SentencePair]:
    """An endless, deterministic stream of one side of the split."""
    rng = random.Random(f"{'held-out' if held_out else 'train'} translation {seed}")
    while True:
        pair = sentence(rng)
        if is_held_out(f"translation {pair.english}") == held_out:
            yield pair


def held_out_pairs(n: int, seed: int = 0) -> list[SentencePair]:
    """``n`` different held-out pairs: what tests, benches and reports run on."""
    found: dict[str, SentencePair] = {}
    for pair in sentence_pairs(seed, held_out=True):
        if len(found) == n:
            break
        found.setdefault(pair.english, pair)
    return list(found.values())
