"""Seeded damage to the files of checkpoints: values, types, names and sizes in JSON, bytes of anything."""

import json
import random
from pathlib import Path

NUMBERS = (0, -1, 1, 3, 7, 2**31, 2**63, 10**7, 10**30, 0.5, -2.5, 1e308, float("nan"), float("inf"))
VALUES = (
    *NUMBERS,
    None,
    True,
    False,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "\ud800",
    [],
    {},
    [0],
    [None, "a"],
    {"a": 1},
    "0" * 5000,
)
FACTORS = (2, -1, 1000, 1 / 3)


def mutate_json(value: object, random_: random.Random) -> object:
    """The same data with one change: a value, a key, an entry, anywhere."""
    places = list(_places(value))
    if not places or random_.random() < 0.02:
        return random_.choice(VALUES)
    holder, key = random_.choice(places)
    kind = random_.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder[key], int | float):
        number = holder[key] * random_.choice(FACTORS)
        holder[key] = (
            int(number) if isinstance(holder[key], int) and number == number and abs(number) < 1e300 else number
        )
    elif kind == 2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 3 and isinstance(holder, list):
        holder.insert(key, random_.choice(VALUES))
    else:
        holder[key] = random_.choice(VALUES)
    return value


def _places(value: object):
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries)[:400]:
        yield value, key
        yield from _places(entry)


def mutate_bytes(data: bytes, random_: random.Random, head: int = 4096) -> bytes:
    """The same bytes, some of them flipped, cut off, doubled or taken out, mostly near the begin."""
    place = random_.randrange(max(1, len(data) if random_.random() < 0.2 else min(head, len(data))))
    kind = random_.randrange(5)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + random_.randrange(1, 9) :]
    if kind == 2:
        return data[:place] + bytes(random_.randrange(256) for _ in range(random_.randrange(1, 9))) + data[place:]
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 4, 64))):
        at = random_.randrange(min(len(data), place + 64)) if data else 0
        if data:
            changed[at] ^= 1 << random_.randrange(8)
    return bytes(changed)


def mutate_file(file: Path, random_: random.Random) -> str:
    """Changes a file in place; returns what was done, for a message."""
    data = file.read_bytes()
    if file.suffix == ".json" and random_.random() < 0.8:
        changed = mutate_json(json.loads(data), random_)
        file.write_text(json.dumps(changed, ensure_ascii=True))
        return f"{file.name} = {json.dumps(changed)[:3000]}"
    if random_.random() < 0.03:
        file.unlink()
        return f"{file.name} removed"
    changed = mutate_bytes(data, random_)
    file.write_bytes(changed)
    return f"{file.name}: {len(data)} -> {len(changed)} bytes"
