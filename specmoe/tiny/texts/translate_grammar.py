"""English and French rules for numbers, noun phrases, places and verbs.

Comes in: words of ``translate_lexicon`` and a ``random.Random`` where there is a choice. Goes out:
pairs (English, French) of the same meaning; ``translate_data`` makes sentences of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .counting import number_words
from .translate_lexicon import Adjective, Noun, Verb

Pair = tuple[str, str]

_UNITS = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize "
    "dix-sept dix-huit "
    "dix-neuf"
).split()
_TENS = "_ dix vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt".split()
_VOWELS = "aeiouyéèêàâîôœh"  # every h of the lexicon is mute


def english_number(number: int) -> str:
    """British words for 0 to 9999 with the hyphen of the compound tens: ``one hundred and
    twenty-two``."""
    words = number_words(number)
    tens, ones = number % 100 // 10, number % 10
    if tens >= 2 and ones:
        head, _, last = words.rpartition(" ")
        words = f"{head}-{last}"
    return words


def _french_below_100(number: int) -> str:
    if number < 20:
        return _UNITS[number]
    tens, ones = divmod(number, 10)
    if tens in (7, 9):
        tens, ones = tens - 1, ones + 10
    if not ones:
        return "quatre-vingts" if tens == 8 else _TENS[tens]
    joint = " et " if ones in (1, 11) and tens != 8 else "-"
    return f"{_TENS[tens]}{joint}{_UNITS[ones]}"


def french_number(number: int, feminine: bool = False) -> str:
    """French words for 0 to 9999, traditional spelling; before a feminine noun a last ``un`` is
    ``une``."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    parts = []
    if thousands:
        parts.append("mille" if thousands == 1 else f"{_UNITS[thousands]} mille")
    if hundreds:
        plural = "s" if hundreds > 1 and not small else ""
        parts.append("cent" if hundreds == 1 else f"{_UNITS[hundreds]} cent{plural}")
    if small or not parts:
        parts.append(_french_below_100(small))
    words = " ".join(parts)
    ends_in_un = words == "un" or words.endswith((" un", "-un"))
    return f"{words}e" if feminine and ends_in_un else words


def elides(word: str) -> bool:
    """Whether ``le``, ``de``, ``je`` and ``ne`` lose their vowel before ``word``."""
    return word[0].lower() in _VOWELS


def agree(adjective: Adjective, gender: str, plural: bool, following: str = "") -> str:
    """The French form; ``following`` is the word after an adjective that stands before its noun."""
    if plural:
        return adjective.masculine_plural if gender == "m" else adjective.feminine_plural
    if gender == "f":
        return adjective.feminine
    return adjective.vowel if following and elides(following) else adjective.masculine


@dataclass(frozen=True)
class Phrase:
    """A noun phrase without its article, both languages; ``before`` says that its adjective leads
    in French."""

    english: str
    french: str
    gender: str
    plural: bool
    before: bool = False


def bare_phrase(
    noun: Noun, plural: bool, before: Adjective | None = None, after: Adjective | None = None
) -> Phrase:
    """``small red apple`` and ``petite pomme rouge``."""
    english, french = (noun.plural, noun.fr_plural) if plural else (noun.singular, noun.fr_singular)
    if before:
        french = f"{agree(before, noun.gender, plural, french)} {french}"
    if after:
        french = f"{french} {agree(after, noun.gender, plural)}"
    words = [adjective.english for adjective in (before, after) if adjective]
    return Phrase(" ".join([*words, english]), french, noun.gender, plural, before is not None)


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def the(phrase: Phrase) -> Pair:
    """``the apple`` and ``la pomme``."""
    if phrase.plural:
        return f"the {phrase.english}", f"les {phrase.french}"
    if elides(phrase.french):
        return f"the {phrase.english}", f"l'{phrase.french}"
    return f"the {phrase.english}", f"{'le' if phrase.gender == 'm' else 'la'} {phrase.french}"


def some(phrase: Phrase) -> Pair:
    """``an apple`` and ``une pomme``; in the plural ``some apples``, ``des pommes``, ``de petites
    pommes``."""
    if not phrase.plural:
        return (
            f"{_a(phrase.english)} {phrase.english}"
        ), f"{'un' if phrase.gender == 'm' else 'une'} {phrase.french}"
    return f"some {phrase.english}", f"{'de' if phrase.before else 'des'} {phrase.french}"


def this(phrase: Phrase) -> Pair:
    """``this apple`` and ``cette pomme``."""
    if phrase.plural:
        return f"these {phrase.english}", f"ces {phrase.french}"
    masculine = "cet" if elides(phrase.french) else "ce"
    return f"this {phrase.english}", (
        f"{masculine if phrase.gender == 'm' else 'cette'} {phrase.french}"
    )


_OWNERS = {"my": ("mon", "ma", "mes"), "his": ("son", "sa", "ses"), "her": ("son", "sa", "ses")}
_PLURAL_OWNERS = {"our": ("notre", "nos"), "your": ("votre", "vos"), "their": ("leur", "leurs")}


def owned(owner: str, phrase: Phrase) -> Pair:
    """``my apple`` and ``ma pomme``; ``mon`` before a vowel."""
    english = f"{owner} {phrase.english}"
    if owner in _PLURAL_OWNERS:
        return english, f"{_PLURAL_OWNERS[owner][phrase.plural]} {phrase.french}"
    masculine, feminine, plural = _OWNERS[owner]
    if phrase.plural:
        return english, f"{plural} {phrase.french}"
    word = masculine if phrase.gender == "m" or elides(phrase.french) else feminine
    return english, f"{word} {phrase.french}"


OWNERS = (*_OWNERS, *_PLURAL_OWNERS)


def counted(number: int, phrase: Phrase) -> Pair:
    """``twenty-one apples`` and ``vingt et une pommes``; ``phrase`` is plural."""
    return (
        f"{english_number(number)} {phrase.english}",
        f"{french_number(number, phrase.gender == 'f')} {phrase.french}",
    )


def of_the(noun: Noun) -> str:
    """``du marché``, ``de la gare``, ``de l'hôtel``."""
    return _fused("du ", "de ", noun)


def at_the(noun: Noun) -> str:
    """``au marché``, ``à la gare``, ``à l'hôtel``."""
    return _fused("au ", "à ", noun)


def _fused(with_article: str, alone: str, noun: Noun) -> str:
    fuses = noun.gender == "m" and not elides(noun.fr_singular)
    return with_article + noun.fr_singular if fuses else alone + _le(noun)


def _le(noun: Noun) -> str:
    return the(bare_phrase(noun, False))[1]


def place(rng: random.Random, noun: Noun) -> Pair:
    """Where: ``near the station`` and ``près de la gare``."""
    english, french = rng.choice(
        (
            ("at", at_the(noun)),
            ("near", f"près {of_the(noun)}"),
            ("in front of", f"devant {_le(noun)}"),
            ("behind", f"derrière {_le(noun)}"),
        )
    )
    return f"{english} the {noun.singular}", french


@dataclass(frozen=True)
class Subject:
    """Who: ``person`` indexes the French endings (je, il, nous, vous, ils)."""

    english: str
    french: str
    person: int


PRONOUNS = (
    Subject("I", "je", 0),
    Subject("we", "nous", 2),
    Subject("you", "vous", 3),
    Subject("he", "il", 1),
    Subject("she", "elle", 1),
)
_FUTURE = ("ai", "a", "ons", "ez", "ont")
_HAVE = ("ai", "a", "avons", "avez", "ont")
TENSES = ("present", "past", "future")


def _english_verb(verb: Verb, tense: str, negated: bool, third: bool) -> str:
    if tense == "future":
        return f"will {'not ' if negated else ''}{verb.base}"
    if negated:
        return f"{'did' if tense == 'past' else 'does' if third else 'do'} not {verb.base}"
    return verb.past if tense == "past" else verb.third if third else verb.base


def _french_verb(verb: Verb, person: int, tense: str) -> tuple[str, str]:
    """(finite form, what follows it)."""
    if tense == "past":
        return _HAVE[person], f" {verb.participle}"
    return (verb.present[person], "") if tense == "present" else (verb.future + _FUTURE[person], "")


def predicate(subject: Subject, verb: Verb, tense: str, negated: bool) -> Pair:
    """Subject and verb: ``I did not find`` and ``je n'ai pas trouvé``."""
    finite, rest = _french_verb(verb, subject.person, tense)
    if negated:
        finite = f"{'n' + chr(39) if elides(finite) else 'ne '}{finite} pas"
    french = f"{subject.french} {finite}{rest}"
    if subject.french == "je" and elides(finite):
        french = f"j'{finite}{rest}"
    return f"{subject.english} {_english_verb(verb, tense, negated, subject.person == 1)}", french
