"""Names of what users may add to, such as observers and rounding rules: a registry for each kind of thing."""

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

from .errors import QuambaError

NAME = re.compile(r"[\w.-]+")  # commas, colons and = separate names in options
Thing = TypeVar("Thing")  # a class or a function


class Registry(Generic[Thing]):
    """Finds the things of one kind by name. `kind`: what messages call one of them, such as "observer"."""

    def __init__(self, kind: str):
        self.kind = kind
        self._things: dict[str, Thing] = {}
        _registries.append(self)

    def add(self, name: str, thing: Thing) -> None:
        """Makes `thing` known as `name`. The same one defined again, by module and qualified name, replaces itself.

        Raises QuambaError for a name that no option could carry, and where it is taken by another.
        """
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise QuambaError(f"the {self.kind} name {name!r} is not made of letters, digits, '_', '-' and '.'")
        known = self._things.get(name)
        if known is not None and _origin(known) != _origin(thing):
            raise QuambaError(f"the {self.kind} name {name!r} is taken by {_origin(known)}")
        self._things[name] = thing

    def get(self, name: str) -> Thing:
        """The thing of that name. Raises QuambaError on an unknown one, listing the known ones."""
        if name not in self._things:
            raise QuambaError(f"unknown {self.kind} {name!r}: choose one of {', '.join(self._things)}")
        return self._things[name]

    def names(self) -> list[str]:
        """The names that `get` knows, in the order of registration."""
        return list(self._things)


_registries: list[Registry] = []  # all there are, for snapshots

Snapshot = Mapping[Registry, Mapping[str, object]]


def snapshot() -> Snapshot:
    """Return what every registry knows now."""
    return {registry: dict(registry._things) for registry in _registries}


def restore(before: Snapshot) -> None:
    """Makes every registry of a snapshot know what it knew then, and nothing else."""
    for registry, things in before.items():
        registry._things = dict(things)


def added_since(before: Snapshot) -> dict[str, list[str]]:
    """Kind -> the names that its registry knows now and did not know then; kinds without new ones are left out."""
    added = {
        registry.kind: [name for name in registry.names() if name not in things] for registry, things in before.items()
    }
    return {kind: names for kind, names in added.items() if names}


def _origin(thing: object) -> str:
    """Return where a class or function is defined; what has no name of its own, such as a partial, is only what it
    is."""
    return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else repr(thing)
