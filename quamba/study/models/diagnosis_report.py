"""A diagnosis of two models as Markdown and as plain data."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from ...evaluation.log import finite
from ..markdown import markdown_table
from .diagnose import EMBEDDING, LayerDifference, TensorComparison
from .diagnosis import Diagnosis


def to_dict(diagnosis: Diagnosis, top: int | None = None) -> dict:
    """The diagnosis as plain data for JSON, of the tensors those that differ most; what is not finite is None."""
    fields = asdict(diagnosis)
    tensors = fields["tensors"]
    tensors |= {"compared": len(tensors["differences"]), "identical": diagnosis.tensors.identical}
    tensors["differences"] = tensors["differences"][:top]
    return finite(fields)


def to_markdown(diagnosis: Diagnosis, labels: Sequence[str], text: str, top: int | None = None) -> str:
    """Return what the two of these labels predict, where they part, and the tensors that differ most.

    `text`: what they were run on, in words.
    """
    logits = diagnosis.logits
    parts = [
        f"{labels[0]} (a) and {labels[1]} (b) on {text}\n",
        f"Logits: KL(a || b) {logits.kl_mean:.3e} nats in the mean, {logits.kl_max:.3e} at most; both find the same "
        f"token likeliest at {100 * logits.agreement:.2f} % of {logits.positions} positions.\n",
    ]
    if diagnosis.layers:
        parts += [_parting(diagnosis), _layer_table(diagnosis.layers)]
    parts += [_tensor_section(diagnosis.tensors, top)]
    parts += [
        f"In {labels[side]} alone: {_grouped(names)}.\n"
        for side, names in enumerate((diagnosis.tensors.only_a, diagnosis.tensors.only_b))
        if names
    ]
    if diagnosis.tensors.unlike:
        parts.append(f"Of different shapes: {'; '.join(diagnosis.tensors.unlike)}.\n")
    parts += [f"Note: {note}.\n" for note in diagnosis.notes]
    return "\n".join(parts)


def layer_name(layer: int) -> str:
    """`layer 3`, or `embedding` for what the first block reads."""
    return "embedding" if layer == EMBEDDING else f"layer {layer}"


def _parting(diagnosis: Diagnosis) -> str:
    where = diagnosis.parting
    if where is None:
        return f"They part nowhere: no hidden state differs by more than {diagnosis.tolerance:g} of its norm.\n"
    return (
        f"They part at {layer_name(where.layer)}: behind it the hidden states differ by {where.relative:.3e} of their "
        f"norm, the first above {diagnosis.tolerance:g}.\n"
    )


def _layer_table(layers: Sequence[LayerDifference]) -> str:
    lines = [["hidden states behind", "relative", "largest"]]
    lines += [[layer_name(layer.layer), f"{layer.relative:.3e}", f"{layer.max_abs:.3e}"] for layer in layers]
    return markdown_table(lines)


def _tensor_section(tensors: TensorComparison, top: int | None) -> str:
    count = len(tensors.differences)
    if count == 0:
        return "No tensor of one model has a counterpart in the other.\n"
    shown = [difference for difference in tensors.differences if difference.max_abs != 0][:top]
    text = f"Tensors with a counterpart: {count}, of which {tensors.identical} are equal in every value"
    if not shown:
        return f"{text}.\n"
    lines = [["tensor", "shape", "largest", "mean", "relative", "integers that differ"]]
    for tensor in shown:
        differing = "" if tensor.differing_share is None else f"{100 * tensor.differing_share:.3f} %"
        shape = " x ".join(map(str, tensor.shape)) or "1"
        figures = [f"{value:.3e}" for value in (tensor.max_abs, tensor.mean_abs, tensor.relative)]
        lines.append([tensor.name, shape, *figures, differing])
    return f"{text}. Those that differ most:\n\n{markdown_table(lines)}"


def _grouped(names: Sequence[str]) -> str:
    """`layers.*.norm.weight (8)`: names that differ in the number of their block alone, together."""
    groups = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return ", ".join(f"{name} ({count})" if "*" in name else name for name, count in groups.items())
