"""Files that give every layer a scheme of its own (mixed precision): read, checked, written.

All of these mean the same for a model of four layers, scheme names in any case:

    ["w8a8", "w4a8", "w4a8", "w8a8"]
    {"1-2": "w4a8", "default": "w8a8"}
    {"layers": ["w8a8", "w4a8", "w4a8", "w8a8"], "search": {...}}

The last one is what a search writes, with its figures, which the reader leaves alone. Layers may differ in the bits of
weights and of activations: between blocks the hidden states are float32.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import QuambaError
from ..scheme.formats import SCHEMES
from ..storage.files import write_output

DEFAULT = "default"  # key of the scheme that layers without one of their own take
LAYERS, SEARCH = "layers", "search"  # keys of a file that a search wrote
PLACE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")  # `5` or `0-3`
FORMS = 'a list of scheme names, one a layer, or a map such as {"0-3": "w4a8", "default": "w8a8"}'
SHOWN = 5  # layers that a message lists


class _RepeatedKey(Exception):
    """A JSON object names a key twice, of which Python would keep the last alone."""


def read_layer_schemes(path: str | Path, layer_count: int) -> tuple[str, ...]:
    """The scheme name of every layer, in order, of a model with `layer_count` layers.

    Raises QuambaError, naming the file and the entry: for a file that cannot be read or is no JSON, another form than
    the module says, a scheme that there is not, and layers that are named twice, not at all, or do not exist.
    """
    return parse_layer_schemes(_read_json(Path(path)), layer_count, path)


def _read_json(path: Path) -> object:
    """Return what a file holds. Raises QuambaError where it cannot be read or is no JSON."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise QuambaError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise QuambaError(f"{path} is no JSON: it is not text in UTF-8") from error
    try:
        return json.loads(text, object_pairs_hook=_unrepeated)
    except _RepeatedKey as error:
        raise QuambaError(f"{path} names {error} twice: keep one of the two") from error
    except (ValueError, RecursionError) as error:
        raise QuambaError(f"{path} is no JSON: {error}") from error


def check_searchable(path: str | Path) -> None:
    """Raises QuambaError where a search must not write its schemes: to a folder, and over what no search wrote."""
    path = Path(path)
    if path.is_dir():
        raise QuambaError(f"{path} is a folder: name the file that the search writes")
    if not path.exists():
        return
    try:
        content = _read_json(path)
    except QuambaError:
        content = None
    if not isinstance(content, dict) or not {LAYERS, SEARCH} <= set(content):
        raise QuambaError(f"{path} was not written by a search, which would replace it: name another file")


def parse_layer_schemes(content: object, layer_count: int, source: str | Path) -> tuple[str, ...]:
    """Return the schemes of a list or map as JSON gives it; `source`: where it is from, for the messages. Raises
    QuambaError."""
    layers = content
    if isinstance(content, dict) and LAYERS in content:
        if unknown := sorted(set(content) - {LAYERS, SEARCH}):
            raise QuambaError(f'{source}: beside "{LAYERS}" only "{SEARCH}" may stand, not {_quoted(unknown)}: drop it')
        layers = content[LAYERS]
    if isinstance(layers, list | tuple):
        return _of_list(layers, layer_count, source)
    if isinstance(layers, dict):
        return _of_map(layers, layer_count, source)
    raise QuambaError(f"{source} holds {_shown(layers)}: give {FORMS}")


def write_layer_schemes(path: str | Path, schemes: Sequence[str], search: Mapping | None = None) -> None:
    """Writes a file, whole or not at all, that `read_layer_schemes` reads back, with the figures of a search beside it.

    `search`: plain data without NaN and infinity. Raises QuambaError where the file cannot be written, and for schemes
    that there are not.
    """
    layers = parse_layer_schemes(list(schemes), len(schemes), path)
    content = {LAYERS: layers} if search is None else {LAYERS: layers, SEARCH: search}
    write_output(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")


def _unrepeated(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(_shown(name) for name in names if names.count(name) > 1))
    return content


def _of_list(names: Sequence, layer_count: int, source: str | Path) -> tuple[str, ...]:
    if len(names) != layer_count:
        raise QuambaError(
            f"{source} lists {len(names)} schemes, the model has {layer_count} layers: give one for each layer, or a "
            f'map with a "{DEFAULT}"'
        )
    return tuple(_scheme(name, f"layer {layer}", source) for layer, name in enumerate(names))


def _of_map(entries: dict, layer_count: int, source: str | Path) -> tuple[str, ...]:
    entries = dict(entries)
    default = _scheme(entries.pop(DEFAULT), f'"{DEFAULT}"', source) if DEFAULT in entries else None
    schemes, named_by = [default] * layer_count, {}
    for key, name in entries.items():
        scheme = _scheme(name, _shown(key), source)
        for layer in _layers_of(key, layer_count, source):
            if layer in named_by:
                raise QuambaError(
                    f"{source} names layer {layer} twice, in {_shown(named_by[layer])} and {_shown(key)}: "
                    "keep one of the two"
                )
            named_by[layer], schemes[layer] = key, scheme
    missing = [layer for layer, scheme in enumerate(schemes) if scheme is None]
    if missing:
        shown = ", ".join([*map(str, missing[:SHOWN]), *(["..."] if len(missing) > SHOWN else [])])
        raise QuambaError(
            f"{source} gives no scheme to {len(missing)} of {layer_count} layers ({shown}): name them, or add a "
            f'"{DEFAULT}"'
        )
    return tuple(schemes)


def _layers_of(key: str, layer_count: int, source: str | Path) -> Iterator[int]:
    """The layers that a key of a map stands for."""
    match = PLACE.fullmatch(str(key).strip())
    if match is None:
        raise QuambaError(
            f'{source} has the key {_shown(key)}: write a layer as "5", several as "0-3", all others as "{DEFAULT}"'
        )
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise QuambaError(f'{source} has the range {_shown(key)}, which is empty: write it as "{last}-{first}"')
    if last >= layer_count:
        raise QuambaError(
            f"{source} names layer {max(first, layer_count)} ({_shown(key)}): the model has layers 0 to "
            f"{layer_count - 1}"
        )
    return iter(range(first, last + 1))


def _scheme(name: object, place: str, source: str | Path) -> str:
    """A known scheme's name as the table writes it."""
    if not isinstance(name, str):
        raise QuambaError(f"{source} gives {place} {_shown(name)}, which is no name of a scheme: {_choices()}")
    if name.lower() not in SCHEMES:
        raise QuambaError(f"{source} gives {place} the unknown scheme {_shown(name)}: {_choices()}")
    return name.lower()


def _choices() -> str:
    return f"choose one of {', '.join(SCHEMES)}"


def _shown(value: object) -> str:
    """A value as JSON writes it, shortened where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(_shown, names))
