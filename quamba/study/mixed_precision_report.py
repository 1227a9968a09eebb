"""The frontier of mixed precision as a table: what the weights take against what it costs in prediction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..evaluation.log import finite
from ..mixed_precision.budget import MEGABYTE
from ..mixed_precision.search import Assignment, Losses, Sizes, frontier, uniform_assignments
from .markdown import markdown_table

FRONTIER, UNIFORM, CHOSEN = "frontier", "uniform", "chosen"


@dataclass(frozen=True)
class FrontierPoint:
    """One assignment: `kinds` says why it is shown; `perplexity`: None where it was not measured."""

    schemes: tuple[str, ...]
    kinds: tuple[str, ...]
    mean_bits: float
    size: int  # bytes of the blocks' weights
    loss: float  # predicted, nats
    perplexity: float | None

    @property
    def label(self) -> str:
        """Return how many layers have which scheme: `w8a8 x 4, w4a8 x 20`, or the one scheme of all."""
        if UNIFORM in self.kinds:
            return self.schemes[0]
        return ", ".join(f"{name} x {count}" for name, count in Counter(self.schemes).most_common())


@dataclass(frozen=True)
class FrontierReport:
    """Points from the largest to the smallest, and the perplexity of the float model where it was measured."""

    points: tuple[FrontierPoint, ...]
    float_perplexity: float | None = None

    @property
    def measured(self) -> bool:
        """Return whether any point has a perplexity."""
        return any(point.perplexity is not None for point in self.points)


def frontier_report(
    losses: Losses,
    sizes: Sizes,
    weight_count: int,
    chosen: Sequence[Assignment] = (),
    perplexities: Mapping[tuple[str, ...], float] | None = None,
    float_perplexity: float | None = None,
) -> FrontierReport:
    """The frontier, the uniform assignments and the `chosen` ones, each once.

    `losses`, `sizes`, `weight_count`: as `choose_schemes` takes them; `perplexities`: of assignments, by their schemes.
    Raises ValueError for a perplexity of schemes that are none of these.
    """
    groups = {
        FRONTIER: frontier(losses, sizes),
        UNIFORM: uniform_assignments(losses, sizes),
        CHOSEN: chosen,
    }
    kinds: dict[tuple[str, ...], list[str]] = {}
    assignments = {}
    for kind, group in groups.items():
        for assignment in group:
            assignments.setdefault(assignment.schemes, assignment)
            kinds.setdefault(assignment.schemes, []).append(kind)
    perplexities = perplexities or {}
    if unknown := set(perplexities) - set(assignments):
        raise ValueError(f"perplexities of assignments that are not shown: {unknown}")
    points = [
        FrontierPoint(
            schemes,
            tuple(dict.fromkeys(kinds[schemes])),
            assignment.mean_bits(weight_count),
            assignment.size,
            assignment.loss,
            perplexities.get(schemes),
        )
        for schemes, assignment in assignments.items()
    ]
    points.sort(key=lambda point: (-point.size, point.loss))
    return FrontierReport(tuple(points), float_perplexity)


def to_dict(report: FrontierReport) -> dict:
    """The report as plain data for JSON; what is not finite is None."""
    return finite(asdict(report))


def to_markdown(report: FrontierReport) -> str:
    """A row for every point, the largest first; perplexities where any was measured, `-` where one was not."""
    header = ["layers", "mean bits", "MB", "predicted loss", *(["perplexity"] if report.measured else []), ""]
    lines = [header]
    for point in report.points:
        figures = [f"{point.mean_bits:.3f}", f"{point.size / MEGABYTE:.3f}", f"{point.loss:.3e}"]
        if report.measured:
            figures.append("-" if point.perplexity is None else f"{point.perplexity:.4f}")
        lines.append([point.label, *figures, ", ".join(point.kinds)])
    text = markdown_table(lines)
    text += "\nPredicted loss: the sum over the layers of KL(float || quantized) in nats, each layer quantized alone.\n"
    if report.float_perplexity is not None:
        text += f"Perplexity of the float model: {report.float_perplexity:.4f}.\n"
    return text
