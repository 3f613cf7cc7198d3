"""Generated table-to-text data in the manner of the E2E challenge: exact ground truth, unlimited, no one's data."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping

from dpaudit.privacy import validate

_FIRST = ("Blue", "Green", "Golden", "Loch", "Old", "Silver", "Red", "The", "Little", "Royal", "Wild", "Cotto")
_SECOND = ("Spice", "Vaults", "Mill", "Fyne", "Anchor", "Palace", "Wrestlers", "Olive", "Punter", "Cricketers", "Man")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "eatType": ("pub", "restaurant", "coffee shop"),
    "food": ("Italian", "French", "Chinese", "Indian", "Japanese", "English", "fast food"),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("riverside", "city centre"),
    "familyFriendly": ("yes", "no"),
    "near": ("Burger King", "Café Sicilia", "Crowne Plaza", "Raja Indian Cuisine", "The Bakers", "Avalon"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class TableRecord:
    """A table and what may be said of it.

    Parameters
    ----------
    fields : dict
        Attribute to value; ``name`` and ``eatType`` always, some of the others.
    text : str
        The sentence to learn.
    references : tuple of str
        Other wordings of the same facts, for scoring; ``text`` is the first.
    user : int
        Whose record it is, for units of privacy above one record.
    """

    fields: dict[str, str]
    text: str
    references: tuple[str, ...]
    user: int


def generated_tables(count: int, *, seed: int, users: int | None = None, references: int = 3) -> list[TableRecord]:
    """``count`` records from a public seed; the same seed gives the same records.

    Parameters
    ----------
    count, seed : int
    users : int or None
        Users to spread the records over; one record each by default.
    references : int
        Wordings of each table.

    Examples
    --------
    >>> generated_tables(1, seed=4)[0].text == generated_tables(2, seed=4)[0].text
    True
    """
    validate.integer_at_least(0, count=count)
    validate.integer_at_least(1, references=references)
    rng = random.Random(seed)
    records = []
    for number in range(count):
        fields = {"name": f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}", "eatType": rng.choice(_FIELDS["eatType"])}
        for key in rng.sample(sorted(set(_FIELDS) - {"eatType"}), rng.randint(2, 5)):
            fields[key] = rng.choice(_FIELDS[key])
        wordings = tuple(_sentence(fields, rng) for _ in range(references))
        owner = number if users is None else rng.randrange(users)
        records.append(TableRecord(fields, wordings[0], wordings, owner))
    return records


def _sentence(fields: Mapping[str, str], rng: random.Random) -> str:
    name, kind = fields["name"], fields["eatType"]
    article = "an" if fields.get("food", "x")[0] in "IE" else "a"
    food = f"{fields['food']} " if "food" in fields else ""
    opening = rng.choice(
        (
            f"{name} is {article} {food}{kind}",
            f"There is {article} {food}{kind} called {name}",
            f"{name} is {'a' if kind[0] != 'e' else 'an'} {kind} that serves {food or 'good '}food"
            if fields.get("food") != "fast food"
            else f"{name} is a fast food {kind}",
        )
    )
    place = []
    if "area" in fields:
        place.append({"riverside": "by the river", "city centre": "in the city centre"}[fields["area"]])
    if "near" in fields:
        place.append(f"near {fields['near']}")
    rng.shuffle(place)
    rest = []
    if "priceRange" in fields:
        price = fields["priceRange"]
        rest.append(
            rng.choice((f"Prices are {price}.", f"It has {price} prices."))
            if price.isalpha()
            else rng.choice((f"Prices are {price}.", f"The price range is {price}."))
        )
    if "rating" in fields:
        rest.append(rng.choice(("Customers rate it {}.", "It has a customer rating of {}.")).format(fields["rating"]))
    if "familyFriendly" in fields:
        friendly = fields["familyFriendly"] == "yes"
        rest.append(
            rng.choice(("It is family-friendly.", "Children are welcome."))
            if friendly
            else rng.choice(("It is not family-friendly.", "It is for adults only."))
        )
    rng.shuffle(rest)
    return " ".join([" ".join([opening, *place]) + ".", *rest])
