"""Measuring a model: perplexity, lm-eval tasks, paired comparisons of two models. `quamba.evaluate` is `evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..checkpoint import recipe_of
from ..errors import QuambaError
from ..models.original import require_whole
from ..models.positions import check_positions, max_positions
from ..models.text_config import text_config
from ..scheme.formats import FLOAT_STATE_BITS
from ..text.data import EMBEDDED_TEXT, evaluation_windows, load_text, text_sha256
from ..text.sources import check_data_dir, data_dir_for
from .compare import Interval, metric_differences, paired_bootstrap, perplexity_ratio
from .perplexity import SEQLEN, PerplexityResult, perplexity
from .stepwise import stepwise_perplexity

__all__ = [
    "EvaluationResult",
    "Interval",
    "PerplexityResult",
    "compare",
    "evaluate",
    "metric_differences",
    "paired_bootstrap",
    "perplexity",
    "perplexity_ratio",
    "stepwise_perplexity",
    "text_windows",
]

PPL_SEQLEN = 2048  # what published perplexities are measured with
EMBEDDED_PPL_SEQLEN = 512  # the embedded checkpoints were trained on 256 tokens at a time


class EvaluationResult(dict):
    """{"ppl": {dataset: number}, "lm_eval": {task: metrics}}: plain data for a log.

    What paired comparisons need stays beside it: `windows` {dataset: PerplexityResult} and `task_items` {task: {metric:
    a value per item}}; and `text_sha256` {dataset: hash of its documents}.
    """

    def __init__(self):
        super().__init__(ppl={}, lm_eval={})
        self.windows: dict[str, PerplexityResult] = {}
        self.text_sha256: dict[str, str] = {}
        self.task_items: dict[str, dict[str, list[float]]] = {}

    def add(self, other: "EvaluationResult", suffix: str = "") -> None:
        """Takes in what another evaluation of the same model measured; `suffix` goes behind its task names."""
        self["ppl"] |= other["ppl"]
        self.windows |= other.windows
        self.text_sha256 |= other.text_sha256
        self["lm_eval"] |= {task + suffix: metrics for task, metrics in other["lm_eval"].items()}
        self.task_items |= {task + suffix: items for task, items in other.task_items.items()}

    def item_values(self) -> dict:
        """{"ppl": {dataset: {"nll": [...], "tokens": [...]}}, "lm_eval": {task: {metric: [...]}}}: plain data.

        Per window its mean nll in nats and its predicted tokens; `write_log` keeps it beside the log.
        """
        windows = {
            dataset: {"nll": result.window_nll.tolist(), "tokens": result.window_tokens.tolist()}
            for dataset, result in self.windows.items()
        }
        return {"ppl": windows, "lm_eval": self.task_items}


def evaluate(
    model,
    tokenizer,
    ppl_datasets: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    *,
    ppl_seqlen: int | None = None,
    max_windows: int | None = None,
    by_token: bool = False,
    data_dir: str | Path | None = None,
    num_fewshot: int | None = 0,
    limit: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> EvaluationResult:
    """The perplexity of a model on texts (names or files as in `data.load_text`, test splits) and its lm-eval metrics.

    `ppl_seqlen`: tokens of a perplexity window, by default 512 on the embedded text and 2048 on others, or as many as
    the model has positions if those are fewer;
    `max_windows`: only the first windows; `by_token`: they are decoded token by token, which shows what the cached
    states of a Mamba cost (a model that keeps them in 8 bits is always read so); `data_dir`: a folder or file that
    stands in for the hub, for every text that it can stand in for; `num_fewshot`, `limit`, `include_path`, `seed`: as
    in `lm_eval.run_tasks`.
    Raises QuambaError for unknown texts and tasks, for what cannot be reached, for a `data_dir` that lacks a text or
    stands in for none, for windows longer than the model has positions, and for a model that a quantization left
    half-way. The model is run in eval mode; its mode, the tokenizer and torch's random numbers are the caller's again
    afterwards.
    """
    require_whole(model)
    result = EvaluationResult()
    for dataset, (sha256, windows) in text_windows(model, tokenizer, ppl_datasets, ppl_seqlen, data_dir).items():
        result.text_sha256[str(dataset)] = sha256
        measure = stepwise_perplexity if by_token or _has_integer_states(model) else perplexity
        measured = measure(model, windows, batch_size, max_windows, progress)
        result["ppl"][str(dataset)], result.windows[str(dataset)] = measured.ppl, measured
    if tasks:
        from .lm_eval import run_tasks  # seconds to import

        result["lm_eval"], result.task_items = run_tasks(
            model, tokenizer, tasks, num_fewshot, batch_size, limit, include_path, seed
        )
    return result


def text_windows(
    model,
    tokenizer,
    ppl_datasets: Sequence[str | Path],
    ppl_seqlen: int | None = None,
    data_dir: str | Path | None = None,
) -> dict[str | Path, tuple[str, list[Tensor]]]:
    """{text: (hash of its documents, windows)} of what `evaluate` measures perplexity on; arguments as there.

    All are read before any is measured. Raises QuambaError for what cannot be read, and for a text whose tokens the
    model's embedding lacks.
    """
    if ppl_datasets and ppl_seqlen:
        check_positions(model.config, ppl_seqlen, SEQLEN)
    check_data_dir(data_dir, *ppl_datasets)
    texts = {dataset: load_text(dataset, "test", data_dir_for(data_dir, dataset)) for dataset in ppl_datasets}
    found = {}
    for dataset, documents in texts.items():
        windows = evaluation_windows(documents, tokenizer, ppl_seqlen or _default_seqlen(dataset, model))
        check_tokens(windows, model, str(dataset))
        found[dataset] = (text_sha256(documents), windows)
    return found


def check_tokens(windows: Sequence[Tensor], model, text: str) -> None:
    """Raises QuambaError where the windows of a text have a token that the model's embedding has no row for."""
    largest, rows = max(int(window.max()) for window in windows), text_config(model).vocab_size
    if largest >= rows:
        raise QuambaError(
            f"{text} has token {largest}, and the model's embedding {rows} rows: the tokenizer is not this model's own"
        )


def _default_seqlen(dataset: str | Path, model) -> int:
    """Tokens of a perplexity window of that text where the user gives no number."""
    seqlen = EMBEDDED_PPL_SEQLEN if dataset == EMBEDDED_TEXT else PPL_SEQLEN
    return min(seqlen, max_positions(model.config) or seqlen)


def _has_integer_states(model) -> bool:
    """Return whether cached SSM states are integers, which a text that is read at once would not meet."""
    recipe = recipe_of(model)
    return recipe is not None and recipe.state_bits != FLOAT_STATE_BITS


def compare(base: EvaluationResult, other: EvaluationResult, **options) -> dict[str, dict]:
    """Paired intervals of everything that both measured.

    {"ppl": {dataset: Interval of the perplexity of `other` over that of `base`}, "lm_eval": {task: {metric: Interval of
    `other` minus `base`, in the metric's own unit}}}. Options as in `paired_bootstrap`.
    """
    return {
        "ppl": {
            dataset: perplexity_ratio(windows, other.windows[dataset], **options)
            for dataset, windows in base.windows.items()
            if dataset in other.windows
        },
        "lm_eval": {
            task: metric_differences(items, other.task_items[task], **options)
            for task, items in base.task_items.items()
            if task in other.task_items
        },
    }
