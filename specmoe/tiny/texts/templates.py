"""Templated documents whose free values all stand in the prompt: JSON, SQL, CSV and short stories.

Comes in: a ``random.Random``. Goes out: ``Document(prompt, completion, keys)``; ``keys`` name the
facts it uses, and ``data`` holds a document out when any of its keys falls into the held-out tenth.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

FIRST = (
    "Ada Ben Cleo Dan Eva Finn Gia Hugo Ida Jon Kira Leo Mia Nils Olga Paul Rita Sam Tara Uma Vera "
    "Will Yara Zoe "
    "Alma Boris Clara Dora Emil Fred Greta Hans"
).split()
LAST = (
    "Novak Smith Garcia Rossi Berg Kim Lopez Meyer Silva Tanaka Brown Costa Dubois Evans Fischer "
    "Green Hansen "
    "Ito Jensen Keller Lind Moreau Olsen Park"
).split()
CITIES = {
    "Oslo": "Norway",
    "Paris": "France",
    "Lyon": "France",
    "Rome": "Italy",
    "Milan": "Italy",
    "Madrid": "Spain",
    "Berlin": "Germany",
    "Munich": "Germany",
    "Vienna": "Austria",
    "Lisbon": "Portugal",
    "Dublin": "Ireland",
    "Prague": "Czechia",
    "Athens": "Greece",
    "Tokyo": "Japan",
    "Osaka": "Japan",
    "Seoul": "Korea",
    "Lima": "Peru",
    "Cairo": "Egypt",
    "Delhi": "India",
    "Sydney": "Australia",
}
ITEMS = {
    "lamp": "home",
    "chair": "home",
    "table": "home",
    "mug": "kitchen",
    "kettle": "kitchen",
    "pan": "kitchen",
    "pen": "office",
    "notebook": "office",
    "stapler": "office",
    "ball": "sport",
    "racket": "sport",
    "tent": "outdoor",
    "rope": "outdoor",
    "radio": "music",
    "guitar": "music",
    "drum": "music",
}
TABLES = {
    "users": ("id", "name", "email", "city", "age"),
    "orders": ("id", "user_id", "item", "price", "quantity"),
    "products": ("id", "name", "category", "price", "stock"),
    "employees": ("id", "name", "department", "salary", "start_year"),
    "books": ("id", "title", "author", "year", "pages"),
    "flights": ("id", "origin", "destination", "distance", "seats"),
}
_TEXT_COLUMNS = {
    "name",
    "email",
    "city",
    "item",
    "category",
    "department",
    "title",
    "author",
    "origin",
    "destination",
}


@dataclass(frozen=True)
class Document:
    """One document: ``prompt + completion`` is the text; ``keys`` decide the split; ``exact`` if
    scored by match."""

    prompt: str
    completion: str
    keys: tuple[str, ...]
    exact: bool = True

    @property
    def text(self) -> str:
        return self.prompt + self.completion


def person(rng: random.Random) -> tuple[str, str]:
    """A full name and the e-mail address that follows from it."""
    first, last = rng.choice(FIRST), rng.choice(LAST)
    return f"{first} {last}", f"{first}.{last}@example.com".lower()


def _json_user(rng: random.Random) -> tuple[str, dict]:
    name, email = person(rng)
    city, number, active = rng.choice(list(CITIES)), rng.randrange(1, 1000), rng.random() < 0.5
    record = {
        "id": number,
        "name": name,
        "email": email,
        "city": city,
        "country": CITIES[city],
        "active": active,
    }
    return f"user {number}, {name}, {city}, {'active' if active else 'inactive'}", record


def _json_order(rng: random.Random) -> tuple[str, dict]:
    item, number, quantity = rng.choice(list(ITEMS)), rng.randrange(1, 1000), rng.randrange(1, 10)
    paid = rng.random() < 0.5
    record = {
        "order": number,
        "item": item,
        "category": ITEMS[item],
        "quantity": quantity,
        "paid": paid,
    }
    return f"order {number}, {quantity} {item}, {'paid' if paid else 'unpaid'}", record


def json_document(rng: random.Random) -> Document:
    """``json: user 17, Ada Novak, Oslo, active`` and the pretty-printed records it describes."""
    make = rng.choice((_json_user, _json_order))
    facts, records = zip(*(make(rng) for _ in range(rng.randrange(1, 4))), strict=True)
    value = records[0] if len(records) == 1 else list(records)
    return Document(
        f"json: {'; '.join(facts)}",
        "\n" + json.dumps(value, indent=2),
        ("json " + "; ".join(facts),),
    )


def _sql_select(rng: random.Random, table: str) -> tuple[str, str]:
    columns = rng.sample(TABLES[table], rng.randrange(1, 4))
    number = next(c for c in reversed(TABLES[table]) if c not in _TEXT_COLUMNS)
    bound, limit = rng.randrange(1, 500), rng.choice((5, 10, 20, 50, 100))
    word, sign = rng.choice((("over", ">"), ("under", "<"), ("equal to", "=")))
    order, direction = (
        rng.choice(columns),
        rng.choice((("ascending", "ASC"), ("descending", "DESC"))),
    )
    ask = (
        f"{', '.join(columns)} of {table} with {number} {word} {bound}, {order} {direction[0]}, "
        f"first {limit}"
    )
    return ask, (
        f"SELECT {', '.join(columns)}\nFROM {table}\nWHERE {number} {sign} {bound}\n"
        f"ORDER BY {order} {direction[1]}\nLIMIT {limit};"
    )


def _sql_create(rng: random.Random, table: str) -> tuple[str, str]:
    columns = [TABLES[table][0], *rng.sample(TABLES[table][1:], rng.randrange(2, 5))]
    kinds = [
        "INTEGER PRIMARY KEY" if c == "id" else "TEXT" if c in _TEXT_COLUMNS else "INTEGER"
        for c in columns
    ]
    body = ",\n".join(f"  {column} {kind}" for column, kind in zip(columns, kinds, strict=True))
    return f"create {table} with {', '.join(columns)}", f"CREATE TABLE {table} (\n{body}\n);"


def _sql_update(rng: random.Random, table: str) -> tuple[str, str]:
    column = rng.choice([c for c in TABLES[table] if c not in _TEXT_COLUMNS and c != "id"])
    value, row = rng.randrange(1, 1000), rng.randrange(1, 1000)
    return (
        f"set {column} of {table} {row} to {value}",
        f"UPDATE {table}\nSET {column} = {value}\nWHERE id = {row};",
    )


def _sql_count(rng: random.Random, table: str) -> tuple[str, str]:
    column = rng.choice(TABLES[table][1:])
    return (
        f"count {table} by {column}, most first",
        f"SELECT {column}, COUNT(*) AS total\nFROM {table}\nGROUP BY {column}\nORDER BY total "
        "DESC;",
    )


def sql_document(rng: random.Random) -> Document:
    """``sql: ...`` one or two requests in words, and the statements that answer them."""
    makes = rng.choices(
        (_sql_select, _sql_create, _sql_update, _sql_count),
        weights=(5, 2, 2, 1),
        k=rng.randrange(1, 4),
    )
    asks, answers = zip(*(make(rng, rng.choice(list(TABLES))) for make in makes), strict=True)
    return Document(
        f"sql: {'; '.join(asks)}", "\n" + "\n".join(answers), ("sql " + "; ".join(asks),)
    )


def csv_document(rng: random.Random) -> Document:
    """``csv: orders 1201 to 1206 of Ada Novak, Oslo, lamp, price 12`` and its rows, one per
    order."""
    (name, email), city, item = person(rng), rng.choice(list(CITIES)), rng.choice(list(ITEMS))
    start, rows, price = rng.randrange(100, 990), rng.randrange(2, 7), rng.randrange(2, 100)
    ask = f"orders {start} to {start + rows - 1} of {name}, {city}, {item}, price {price}"
    lines = ["order,customer,email,city,country,item,category,price"]
    lines += [
        f"{number},{name},{email},{city},{CITIES[city]},{item},{ITEMS[item]},{price}"
        for number in range(start, start + rows)
    ]
    return Document(f"csv: {ask}", "\n" + "\n".join(lines), (f"csv {ask}",))


_ANIMALS = {
    "fox": "a red tail and very quick feet",
    "cat": "soft grey fur and bright green eyes",
    "bear": "a big brown coat and a kind heart",
    "owl": "wide round eyes and quiet wings",
    "rabbit": "long white ears and a small pink nose",
    "mouse": "tiny paws and a very long tail",
    "dog": "a wet black nose and a loud happy bark",
    "duck": "yellow feet and a funny little walk",
    "frog": "smooth green skin and strong legs",
    "hedgehog": "sharp brown spines and a shy smile",
}
_PLACES = {
    "forest": "The trees there were tall and the moss was soft.",
    "farm": "Every morning the cows woke up before the sun.",
    "village": "The houses there had red roofs and small gardens.",
    "mountain": "Snow lay on the rocks even in summer.",
    "lake": "The water was clear and full of silver fish.",
    "garden": "Roses grew there next to an old stone wall.",
    "city": "The streets were full of lights and busy people.",
    "island": "Waves rolled onto the white sand all day long.",
}
_TROUBLES = {
    "lost key": (
        "lost the key to the front door",
        "looked under every stone and behind every bush",
        "found the key inside an old boot",
        "Small things like to hide in plain places",
    ),
    "storm": (
        "saw a dark storm coming over the hills",
        "carried the food and the blankets inside",
        "closed the last window just before the rain came",
        "Good friends make hard work light",
    ),
    "broken bridge": (
        "came to a bridge that was broken in the middle",
        "brought long branches and strong rope",
        "crossed the new bridge before the night fell",
        "Two heads are better than one",
    ),
    "hungry winter": (
        "had nothing left to eat in the cold winter",
        "shared a basket of apples and bread",
        "ate a warm soup together by the fire",
        "Sharing makes a little become a lot",
    ),
    "missing moon": (
        "could not see the moon in the sky",
        "climbed to the highest place to look for it",
        "saw the moon come out from behind a cloud",
        "What we miss is often only hidden",
    ),
    "big race": (
        "wanted to run in the big race but was afraid",
        "practised every day until the sun went down",
        "came in last but laughed all the way",
        "Trying is braver than winning",
    ),
    "strange noise": (
        "heard a strange noise in the night",
        "walked slowly towards the sound with a lamp",
        "found a little bird that was singing in its sleep",
        "Fear grows small in the light",
    ),
    "birthday": (
        "forgot the birthday of a dear friend",
        "baked a cake with honey and nuts",
        "sang a happy song until everyone danced",
        "It is never too late to be kind",
    ),
}


def story_document(rng: random.Random) -> Document:
    """``story: Mia the fox, forest, friend Leo the owl, lost key`` and a short story of these
    parts."""
    hero, friend = rng.sample(FIRST, 2)
    animal, other = rng.sample(list(_ANIMALS), 2)
    place, trouble = rng.choice(list(_PLACES)), rng.choice(list(_TROUBLES))
    problem, work, end, moral = _TROUBLES[trouble]
    ask = f"{hero} the {animal}, {place}, friend {friend} the {other}, {trouble}"
    article = "an" if other[0] in "aeiou" else "a"
    text = (
        f"Once upon a time there was {'an' if animal[0] in 'aeiou' else 'a'} {animal} named "
        f"{hero}. "
        f"{hero} had {_ANIMALS[animal]}. {hero} lived near the {place}. {_PLACES[place]}\n"
        f'One day {hero} {problem}. "Oh no," said {hero}, "what can I do?" Then {friend} came by. '
        f'{friend} was {article} {other} with {_ANIMALS[other]}. "I will help you," said '
        f"{friend}.\n"
        f'So {hero} and {friend} {work}. In the end they {end}. "Thank you, {friend}," said '
        f"{hero}. "
        f"{moral}."
    )
    return Document(f"story: {ask}", "\n" + text, (f"story {ask}",))
