"""The words of the translation model's sentences, English and French side by side.

Goes out: tables of nouns, adjectives, verbs and small words; ``translate_grammar`` puts them
together. Every English form has one French form, so that one translation of a sentence is right.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """``gender`` is ``m`` or ``f``."""

    singular: str
    plural: str
    fr_singular: str
    fr_plural: str
    gender: str


@dataclass(frozen=True)
class Adjective:
    """French forms; ``vowel`` is the masculine singular before a vowel (``vieil``)."""

    english: str
    masculine: str
    feminine: str
    masculine_plural: str
    feminine_plural: str
    vowel: str


@dataclass(frozen=True)
class Verb:
    """English base, third person, past; French present (je, il, nous, vous, ils), participle, stem
    of the future."""

    base: str
    third: str
    past: str
    present: tuple[str, str, str, str, str]
    participle: str
    future: str


def _noun(line: str) -> Noun:
    english, french, gender = line.split()
    singular, _, plural = english.partition("/")
    fr_singular, _, fr_plural = french.partition("/")
    return Noun(
        singular, plural or f"{singular}s", fr_singular, fr_plural or f"{fr_singular}s", gender
    )


def _adjective(line: str) -> Adjective:
    """``english masculine [feminine [masculine plural [vowel form]]]``; what is left out is
    regular."""
    english, masculine, *rest = line.split()
    feminine = rest[0] if rest else masculine + ("" if masculine.endswith("e") else "e")
    plural = rest[1] if len(rest) > 1 else masculine + ("" if masculine[-1] in "sx" else "s")
    return Adjective(
        english,
        masculine,
        feminine,
        plural,
        f"{feminine}s",
        rest[2] if len(rest) > 2 else masculine,
    )


def _regular(line: str) -> Verb:
    """A verb in -er: ``base third past infinitive`` (English words joined by ``_``)."""
    base, third, past, infinitive = (word.replace("_", " ") for word in line.split())
    stem = infinitive[:-2]
    present = (f"{stem}e", f"{stem}e", f"{stem}ons", f"{stem}ez", f"{stem}ent")
    return Verb(base, third, past, present, f"{stem}é", infinitive)


def _irregular(line: str) -> Verb:
    base, third, past, je, il, nous, vous, ils, participle, future = line.split()
    return Verb(base, third, past, (je, il, nous, vous, ils), participle, future)


def _lines(parse, text: str) -> tuple:
    return tuple(parse(line.strip()) for line in text.strip().splitlines())


THINGS = _lines(
    _noun,
    """
    apple pomme f
    orange orange f
    book livre m
    key clé f
    chair chaise f
    table table f
    lamp lampe f
    clock horloge f
    car voiture f
    boat bateau/bateaux m
    knife/knives couteau/couteaux m
    plate assiette f
    glass/glasses verre m
    bottle bouteille f
    letter lettre f
    photo photo f
    shirt chemise f
    dress/dresses robe f
    hat chapeau/chapeaux m
    coat manteau/manteaux m
    shoe chaussure f
    bag sac m
    box/boxes boîte f
    ticket billet m
    umbrella parapluie m
    flower fleur f
    tree arbre m
    horse cheval/chevaux m
    dog chien m
    bird oiseau/oiseaux m
    cake gâteau/gâteaux m
    egg œuf m
    map carte f
    ring bague f
    bicycle vélo m
    window fenêtre f
    """,
)

PEOPLE = _lines(
    _noun,
    """
    girl fille f
    boy garçon m
    woman/women femme f
    man/men homme m
    nurse infirmière f
    doctor médecin m
    teacher professeur m
    baker boulanger m
    farmer fermier m
    singer chanteuse f
    student étudiant m
    lawyer avocat m
    queen reine f
    king roi m
    child/children enfant m
    dancer danseuse f
    """,
)

FAMILY = _lines(
    _noun,
    """
    sister sœur f
    brother frère m
    mother mère f
    father père m
    aunt tante f
    uncle oncle m
    daughter fille f
    son fils/fils m
    cousin cousin m
    """,
)

PLACES = _lines(
    _noun,
    """
    market marché m
    station gare f
    garden jardin m
    hotel hôtel m
    school école f
    church/churches église f
    bridge pont m
    museum musée m
    kitchen cuisine f
    airport aéroport m
    house maison f
    library/libraries bibliothèque f
    shop magasin m
    harbour port m
    """,
)

EVENTS = _lines(
    _noun,
    """
    meeting réunion f
    concert concert m
    lesson leçon f
    dinner dîner m
    wedding mariage m
    fair foire f
    exam examen m
    game match m
    film film m
    party fête f
    """,
)

BEFORE_THINGS = _lines(
    _adjective,
    """
    small petit
    big grand
    old vieux vieille vieux vieil
    new nouveau nouvelle nouveaux nouvel
    beautiful beau belle beaux bel
    good bon bonne
    pretty joli
    """,
)

AFTER_THINGS = _lines(
    _adjective,
    """
    red rouge
    blue bleu
    green vert
    black noir
    white blanc blanche
    yellow jaune
    grey gris
    heavy lourd
    expensive cher chère
    clean propre
    broken cassé
    strange étrange
    """,
)

BEFORE_PEOPLE = _lines(_adjective, "young jeune\nold vieux vieille vieux vieil\nlittle petit")

AFTER_PEOPLE = _lines(
    _adjective,
    """
    tired fatigué
    happy heureux heureuse
    Italian italien italienne
    German allemand
    famous célèbre
    polite poli
    """,
)

VERBS = _lines(
    _regular,
    """
    look_for looks_for looked_for chercher
    find finds found trouver
    carry carries carried porter
    show shows showed montrer
    keep keeps kept garder
    wash washes washed laver
    draw draws drew dessiner
    order orders ordered commander
    forget forgets forgot oublier
    count counts counted compter
    bring brings brought apporter
    admire admires admired admirer
    """,
) + _lines(
    _irregular,
    """
    buy buys bought achète achète achetons achetez achètent acheté achèter
    sell sells sold vends vend vendons vendez vendent vendu vendr
    lose loses lost perds perd perdons perdez perdent perdu perdr
    choose chooses chose choisis choisit choisissons choisissez choisissent choisi choisir
    take takes took prends prend prenons prenez prennent pris prendr
    see sees saw vois voit voyons voyez voient vu verr
    """,
)

TRADES = tuple(verb for verb in VERBS if verb.base in ("buy", "sell"))

MONTHS = tuple(
    zip(
        "January February March April May June July August September October November "
        "December".split(),
        "janvier février mars avril mai juin juillet août septembre octobre novembre "
        "décembre".split(),
        strict=True,
    )
)
WEEKDAYS = tuple(
    zip(
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
        "lundi mardi mercredi jeudi vendredi samedi dimanche".split(),
        strict=True,
    )
)
PARTS_OF_DAY = (("morning", "matin"), ("evening", "soir"), ("day", "jour"), ("week", "semaine"))
CURRENCIES = (("euro", "euros", "euro", "euros"), ("dollar", "dollars", "dollar", "dollars"))
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third "
    "twenty-fourth "
    "twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"
).split()
