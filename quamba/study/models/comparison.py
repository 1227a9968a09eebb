"""Models side by side: the perplexity of sliding windows, and how each differs from the first, in pairs of windows."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from ...checkpoint import recipe_of
from ...errors import QuambaError
from ...evaluation.compare import perplexity_ratio
from ...evaluation.log import finite
from ...evaluation.perplexity import PerplexityResult, Window
from ...evaluation.sliding import joined_stream, sliding_perplexity, sliding_windows
from ...text.data import load_text, text_sha256
from ...text.sources import check_data_dir, data_dir_for
from ..logs.comparison import Change
from ..markdown import markdown_table
from .sources import ModelSource, common_tokens

MAX_LENGTH = 2048
WINDOWS_THROUGH = 4  # how many windows a token is in, where the user chooses no stride


@dataclass(frozen=True)
class SlidingText:
    """A text as it is measured on: the tokens of all of it, and the windows that count."""

    name: str
    sha256: str
    tokens: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class ModelFigures:
    """Hold what one model was measured to have; per text its perplexity and the ratio to the first model's, None of
    that."""

    label: str
    name: str
    path: str
    scheme: str | None  # None of a float model
    dtype: str  # of what is float in it
    results: dict[str, PerplexityResult]
    ratios: dict[str, Change | None]


@dataclass(frozen=True)
class ModelComparison:
    """The models, of which the first is what the others differ from; the texts; how it was measured."""

    models: tuple[ModelFigures, ...]
    texts: tuple[SlidingText, ...]
    max_length: int
    stride: int
    confidence: float
    resamples: int
    seed: int


def window_sizes(sources: Sequence[ModelSource], max_length: int | None, stride: int | None) -> tuple[int, int]:
    """(max_length, stride): those given, else 2048, or the fewest positions that a model has, and a quarter of it.

    Raises QuambaError where a model has fewer positions than the length that was asked for.
    """
    limits = [(source.max_positions, source.label) for source in sources if source.max_positions is not None]
    positions, label = min(limits, default=(None, None))
    if max_length is None:
        max_length = MAX_LENGTH if positions is None else min(MAX_LENGTH, positions)
    elif positions is not None and max_length > positions:
        raise QuambaError(
            f"max_length is {max_length}, and {label} has {positions} positions: give at most {positions}"
        )
    return max_length, max(1, max_length // WINDOWS_THROUGH) if stride is None else stride


def read_texts(
    sources: Sequence[ModelSource],
    datasets: Sequence[str],
    max_length: int,
    stride: int,
    max_windows: int | None = None,
    data_dir: str | None = None,
) -> list[SlidingText]:
    """The windows of every text (names or files as in `data.load_text`, test splits).

    `data_dir`: a folder or file that stands in for the hub, for every text that it can stand in for.
    Raises QuambaError for unknown texts, for a `data_dir` that lacks a text or stands in for none, for models of
    different tokenizers and for sizes that do not fit.
    """
    if twice := [dataset for dataset in datasets if list(datasets).count(dataset) > 1]:
        raise QuambaError(f"the text {twice[0]!r} is given twice: name each text once")
    check_data_dir(data_dir, *datasets)
    documents = {dataset: load_text(dataset, "test", data_dir_for(data_dir, dataset)) for dataset in datasets}
    tokenizers = [source.tokenizer() for source in sources]
    texts = []
    for dataset, pages in documents.items():
        stream = common_tokens(sources, tokenizers, partial(joined_stream, pages), dataset)
        windows = sliding_windows(stream, max_length, stride)[:max_windows]
        texts.append(SlidingText(dataset, text_sha256(pages), len(stream), tuple(windows)))
    return texts


def compare_models(
    sources: Sequence[ModelSource],
    texts: Sequence[SlidingText],
    max_length: int,
    stride: int,
    *,
    batch_size: int = 8,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> ModelComparison:
    """Measures the models on the same windows, one after another: a model is loaded when the one before it is gone.

    `texts`: as `read_texts` gave them for these sizes; confidence, resamples and seed as in `paired_bootstrap`.
    Raises QuambaError for a model that cannot be loaded.
    """
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    models: list[ModelFigures] = []
    for source in sources:
        base = models[0].results if models else None
        models.append(_measure(source, texts, base, batch_size, progress, options))
        gc.collect()  # modules and their hooks refer to each other: the next model needs the memory now
    return ModelComparison(tuple(models), tuple(texts), max_length, stride, **options)


def _measure(
    source: ModelSource,
    texts: Sequence[SlidingText],
    base: dict[str, PerplexityResult] | None,
    batch_size: int,
    progress: bool,
    options: dict,
) -> ModelFigures:
    model = source.load()
    results: dict[str, PerplexityResult] = {}
    ratios: dict[str, Change | None] = {}
    for text in texts:
        description = f"{source.label}, {text.name}"
        measured = sliding_perplexity(model, text.windows, batch_size, progress=progress, description=description)
        results[text.name] = measured
        ratios[text.name] = _ratio(base[text.name], measured, options) if base else None
    recipe, dtype = recipe_of(model), str(model.dtype).removeprefix("torch.")
    scheme = recipe.name if recipe else None
    return ModelFigures(source.label, source.name, str(source.checkpoint.path), scheme, dtype, results, ratios)


def _ratio(base: PerplexityResult, other: PerplexityResult, options: dict) -> Change:
    """The ratio of perplexities; an interval where there are two windows or more, and every figure is finite."""
    pairs = np.stack([base.window_nll, other.window_nll])  # [2, windows]
    if pairs.shape[1] < 2 or not np.isfinite(pairs).all():
        return Change(other.ppl / base.ppl)
    return Change(*perplexity_ratio(base, other, **options))


def to_dict(comparison: ModelComparison) -> dict:
    """The comparison as plain data for JSON; what is not a finite number is None."""
    settings = ("max_length", "stride", "confidence", "resamples", "seed")
    return finite(
        {
            "base": comparison.models[0].label,
            **{name: getattr(comparison, name) for name in settings},
            "texts": [
                {"name": text.name, "sha256": text.sha256, "tokens": text.tokens, "windows": len(text.windows)}
                for text in comparison.texts
            ],
            "models": [_model_dict(model) for model in comparison.models],
        }
    )


def _model_dict(model: ModelFigures) -> dict:
    return {
        **{name: getattr(model, name) for name in ("label", "name", "path", "scheme", "dtype")},
        "texts": {
            text: {
                "ppl": result.ppl,
                "tokens": result.tokens,
                "ratio": asdict(ratio) if (ratio := model.ratios[text]) else None,
                "window_nll": result.window_nll.tolist(),
                "window_tokens": result.window_tokens.tolist(),
            }
            for text, result in model.results.items()
        },
    }


def to_markdown(comparison: ModelComparison) -> str:
    """A line for each model: its format, and for every text its perplexity and the ratio to the first model's."""
    base = comparison.models[0]
    header = ["perplexity", "format"]
    for text in comparison.texts:
        header += [text.name, f"vs {base.label}"]
    lines = [header]
    for model in comparison.models:
        line = [model.label, model.scheme or model.dtype]
        for text in comparison.texts:
            line += [f"{model.results[text.name].ppl:.4f}", _change(model.ratios[text.name])]
        lines.append(line)
    measured = "; ".join(
        f"{text.name}: {base.results[text.name].tokens} tokens predicted in {len(text.windows)} windows"
        for text in comparison.texts
    )
    text = (
        f"{markdown_table(lines)}\nWindows of {comparison.max_length} tokens, one every {comparison.stride}; what an "
        f"earlier window predicted is context alone. {measured}.\n"
    )
    if any(change and change.low is not None for model in comparison.models for change in model.ratios.values()):
        text += (
            f"In square brackets: the {100 * comparison.confidence:g} % interval of a bootstrap over the pairs of "
            f"windows ({comparison.resamples} resamples, seed {comparison.seed}).\n"
        )
    return text


def _change(change: Change | None) -> str:
    if change is None:
        return ""
    interval = "" if change.low is None else f" [{change.low:.4f}, {change.high:.4f}]"
    return f"x{change.estimate:.4f}{interval}"
