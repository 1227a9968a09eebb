"""The results as Markdown: speeds side by side, ratios, growth, memory; and the place in a page that shows them."""

from pathlib import Path

from quamba.storage.files import write_output

from . import growth, rows
from .shapes import SHAPES, Case
from .systems import COUNTERPARTS, SYSTEMS

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
MISSING = "-"
GROWTH_SHAPE = "130m"
MEGABYTE = 1e6

Lookup = dict[tuple, dict]


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table, every column but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def figure(value: float | None) -> str:
    """Three digits, no exponent."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(ours: dict | None, theirs: dict | None, column: str) -> str:
    """`1.42x`, or nothing to show where one of them was not measured."""
    return f"{ours[column] / theirs[column]:.2f}x" if ours and theirs else MISSING


def cases_in(results: list[dict]) -> list[Case]:
    """The cases at which more than one system was measured, or else all of them, in order of size."""
    counts: dict[Case, int] = {}
    for row in results:
        if row["system"] in {system.system for system in SYSTEMS}:
            case = Case(row["shape"], row["batch"], row["prompt"])
            counts[case] = counts.get(case, 0) + 1
    order = list(SHAPES)
    shared = [case for case, count in counts.items() if count > 1] or list(counts)
    return sorted(shared, key=lambda case: (order.index(case.shape), case.batch, case.prompt))


def _case_label(case: Case) -> str:
    return f"{case.shape}, {case.batch} x {case.prompt}"


def speed_table(results: list[dict], column: str) -> str:
    """Tokens per second of every system that was measured, a line for each case."""
    found = {rows.key_of(row): row for row in results}
    measured = {(row["system"], row.get("scheme")) for row in results}
    systems = [s for s in SYSTEMS if s.system != rows.FLOOR and (s.system, s.scheme) in measured]
    systems.sort(key=lambda system: list(dict.fromkeys(s.system for s in SYSTEMS)).index(system.system))
    header = ["shape, batch x prompt", *(f"{system.system} {system.scheme}" for system in systems)]
    lines = []
    for case in cases_in(results):
        values = [_value(found, system.system, system.scheme, case, column) for system in systems]
        lines.append([_case_label(case), *map(figure, values)])
    return markdown(header, lines)


def ratio_table(results: list[dict], column: str) -> str:
    """Ours against the system with as many bits a weight, against transformers in float32, and against the floor."""
    found = {rows.key_of(row): row for row in results}
    measured = {row.get("scheme") for row in results if row["system"] == "quamba"}
    schemes = [scheme for scheme in COUNTERPARTS if scheme in measured]
    header = ["shape, batch x prompt"]
    for scheme in schemes:
        against = COUNTERPARTS[scheme].replace(":", " ")
        header.append(f"{scheme} / {against}")
        if not against.startswith("transformers"):
            header.append(f"{scheme} / transformers float32")
        header.append(f"{scheme}, % of floor")
    lines = [[_case_label(case), *_ratios(found, schemes, case, column)] for case in cases_in(results)]
    return markdown(header, lines)


def _ratios(found: Lookup, schemes: list[str], case: Case, column: str) -> list[str]:
    cells = []
    for scheme in schemes:
        ours = _row(found, "quamba", scheme, case)
        system, against = COUNTERPARTS[scheme].split(":")
        cells.append(ratio(ours, _row(found, system, against, case), column))
        if system != "transformers":
            cells.append(ratio(ours, _row(found, "transformers", "float32", case), column))
        floor = _row(found, rows.FLOOR, scheme, case)
        cells.append(f"{100 * ours[column] / floor[column]:.0f}" if ours and floor else MISSING)
    return cells


def _row(found: Lookup, system: str, scheme: str, case: Case) -> dict | None:
    return found.get((system, scheme, case.shape, case.batch, case.prompt))


def _value(found: Lookup, system: str, scheme: str, case: Case, column: str) -> float | None:
    row = _row(found, system, scheme, case)
    return row[column] if row else None


def growth_table(results: list[dict]) -> str | None:
    """Prefill, step and memory by prompt, with the exponents; None where no scheme has three prompts at batch 1."""
    schemes = [s.scheme for s in SYSTEMS if s.system == "quamba"]
    by_scheme = {scheme: growth.rows_of(results, "quamba", scheme, GROWTH_SHAPE) for scheme in schemes}
    scheme, found = max(by_scheme.items(), key=lambda item: len(item[1]))
    if len(found) < 3:
        return None
    lengths = [row["prompt"] for row in found]
    seconds = [growth.prefill_seconds(row) for row in found]
    step = [1e3 / row["decode_tok_s"] for row in found]
    memory = [row["memory_bytes"] / MEGABYTE for row in found]
    columns = [("prefill, s", seconds), ("a step after it, ms", step), ("peak memory, MB", memory)]
    header = [f"quamba {scheme}, {GROWTH_SHAPE}, prompt of", *map(str, lengths), "exponent"]
    lines = [[label, *map(figure, values), f"{growth.exponent(lengths, values):.2f}"] for label, values in columns]
    return markdown(header, lines)


def megabytes(row: dict, column: str) -> str:
    """`123 MB`."""
    return f"{row[column] / MEGABYTE:.0f} MB"


def memory_line(results: list[dict]) -> list[str]:
    """One sentence for each memory row."""
    return [
        f"A process that serves quamba {row['scheme']} {row['shape']} holds {megabytes(row, 'memory_bytes')} more than "
        f"one that imported the package (peak {megabytes(row, 'peak_bytes')}); the packed weights are "
        f"{megabytes(row, 'packed_bytes')}, 1.15 times those and 64 MB are {megabytes(row, 'limit_bytes')}."
        for row in results
        if row["system"] == rows.MEMORY
    ]


def machine_line(machine: dict) -> str:
    """Date, processor, floors and versions in one sentence each."""
    rates = {int(size): rate / 1e9 for size, rate in machine["read_bytes_s"].items()}
    smallest, largest = min(rates), max(rates)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if len(version) < 20)
    int8 = machine["operations_s"]["int8"] / 1e9
    sets = ", ".join(machine["instruction_sets"])
    return (
        f"{machine['date']}, commit {machine['commit']}: {machine['cpu']}, {machine['threads']} threads ({sets}); "
        f"reads {rates[largest]:.1f} GB/s from memory and {rates[smallest]:.1f} GB/s from a buffer of "
        f"{smallest >> 20} MiB, multiplies int8 matrices at {int8:.0f} GOPS; {versions}."
    )


def report(results: list[dict]) -> str:
    """All of it."""
    machine = next((row for row in results if row["system"] == rows.MACHINE), None)
    parts = [machine_line(machine)] if machine else []
    for title, column in (("Prefill", "prefill_tok_s"), ("Decode", "decode_tok_s")):
        parts += [f"{title}, tokens a second:", speed_table(results, column)]
        parts += [f"{title}, ours against the others:", ratio_table(results, column)]
    if grown := growth_table(results):
        parts += ["Growth with the prompt (exponent 1: a straight line, 0: constant):", grown]
    parts += memory_line(results)
    return "\n\n".join(parts)


def fill(page: Path, text: str) -> None:
    """Puts the text between the two marker comments of a file. Raises ValueError where it has none."""
    content = page.read_text("utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise ValueError(f"{page} has no place for the table: it needs one {BEGIN} and, below it, one {END}")
    before, after = content.split(BEGIN)[0], content.split(END)[1]
    write_output(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
