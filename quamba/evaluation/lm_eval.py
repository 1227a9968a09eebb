"""lm-eval (EleutherAI's evaluation harness) on our models: the model type `quamba`, and a call that runs tasks.

Importing this module imports lm-eval and registers the model type, so that `lm_eval --model quamba` works in a process
that has imported it.
"""

import contextlib
import copy
import difflib
import inspect
import io
import logging
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from numbers import Number
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..borders import foreign
from ..checkpoint import DTYPES, load_checkpoint, resolve_checkpoint, saved_dtype
from ..errors import QuambaError
from ..models.original import in_eval_mode
from ..models.positions import check_positions
from ..models.tying import truly_tied
from ..text.data import ASSETS, embedded_model_dir
from ..text.reading import once

logger = logging.getLogger(__name__)

TASKS_DIR = ASSETS / "tasks"
_running = threading.Lock()  # lm-eval seeds the generators, and we redirect the output, of the whole process
STDERR_RESAMPLES = 1000  # for metrics without a closed form; lm-eval's default of 100,000 takes longer than the model


# HFLM's arguments that mean something for a model that is loaded already; it drops all others without a word
HFLM_OPTIONS = ("truncation", "logits_cache", "max_length", "softmax_dtype", "mixed_precision_dtype", "batch_size")
HFLM_OPTIONS += ("max_batch_size", "add_bos_token", "prefix_token_id", "think_end_token", "enable_thinking")
HFLM_OPTIONS += ("chat_template_args",)


@register_model("quamba")
class QuambaLM(HFLM):
    """A float or quantized model as lm-eval sees it.

    `pretrained`: a loaded model (then `tokenizer` too), or any name that `quamba.load` resolves, also that of a
    quantized checkpoint. `tokenizer`: one that is loaded, or the name or folder of one; None: the checkpoint's own.
    Of a name, `pretrained_dir` and `device` are those of `quamba.load`, and `dtype` is that of what is float: "auto",
    as it was saved, or a name. Of HFLM's arguments those in HFLM_OPTIONS are passed on.
    Raises QuambaError for any other that is not at HFLM's default, for those of a name where a loaded model is given,
    for a tokenizer that cannot be read, and for a `max_length` beyond the model's positions.
    """

    def __init__(self, pretrained, tokenizer=None, pretrained_dir=None, dtype="auto", device=None, **options):
        _check_options(options)
        if isinstance(pretrained, str):
            checkpoint = resolve_checkpoint(pretrained, pretrained_dir)
            torch_dtype = saved_dtype(checkpoint) if dtype in (None, "auto") else _torch_dtype(dtype)
            pretrained, own = load_checkpoint(checkpoint, torch_dtype, device or "cpu")
            tokenizer = tokenizer or _with_bos(own, options.get("add_bos_token"))
        else:
            _check_loaded(pretrained, tokenizer, pretrained_dir, dtype, device)
        if options.get("max_length") is not None:
            check_positions(pretrained.config, options["max_length"], "max_length")
        if isinstance(tokenizer, str):
            tokenizer = _read_tokenizer(tokenizer, options.get("add_bos_token"))
        super().__init__(pretrained, tokenizer=tokenizer, backend="causal", **options)


def _check_options(options: dict) -> None:
    """Drops those at HFLM's default. Raises QuambaError for others that HFLM would not heed for a loaded model."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(HFLM.__init__).parameters.items()}
    defaults["backend"] = "causal"
    for name, value in list(options.items()):
        if name in HFLM_OPTIONS:
            continue
        if name not in defaults or value != defaults[name]:
            raise QuambaError(
                f"the lm-eval model 'quamba' takes no {name} (given: {value!r}): of lm-eval's own arguments it takes "
                f"{', '.join(HFLM_OPTIONS)}"
            )
        del options[name]


def _check_loaded(model, tokenizer, pretrained_dir, dtype, device) -> None:
    """Raises QuambaError for a loaded model without a tokenizer, and for arguments that could no longer change it."""
    if tokenizer is None:
        raise QuambaError("a loaded model comes with its tokenizer: give tokenizer too")
    if pretrained_dir is not None:
        raise QuambaError(f"pretrained_dir {str(pretrained_dir)!r} does nothing where a loaded model is given: drop it")
    if dtype not in (None, "auto") and _torch_dtype(dtype) != model.dtype:
        raise QuambaError(f"dtype is {dtype}, and the model that is given is {model.dtype}: load it in that dtype")
    if device is not None and torch.device(device) != torch.device(model.device):
        raise QuambaError(f"device is {device}, and the model that is given is on {model.device}: move it there")


def _with_bos(tokenizer: PreTrainedTokenizerBase, add_bos_token: bool | None) -> PreTrainedTokenizerBase:
    """The tokenizer that a checkpoint has, beginning a text as asked; None: as it does."""
    return tokenizer if add_bos_token is None else _read_tokenizer(tokenizer.name_or_path, add_bos_token)


def _read_tokenizer(name: str, add_bos_token: bool | None) -> PreTrainedTokenizerBase:
    """The tokenizer of that name: an embedded model's, a folder's, or one of the hub."""
    options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    with foreign(f"the tokenizer {name!r} cannot be read"):
        return AutoTokenizer.from_pretrained(embedded_model_dir(name) or name, **options)


class TaskResults(NamedTuple):
    """`metrics`: {task or group: metrics under lm-eval's own keys}; `items`: {task: {metric: a value per item}}.

    The values are in the order of the items, under the same keys ("acc,none"), so two models' results can be compared
    in pairs. lm-eval's `perplexity` has the log-likelihood of an item as its value.
    """

    metrics: dict[str, dict]
    items: dict[str, dict[str, list[float]]]


def run_tasks(
    model,
    tokenizer,
    tasks: Sequence[str],
    num_fewshot: int | None = 0,
    batch_size: int = 16,
    limit: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> TaskResults:
    """Runs lm-eval's `simple_evaluate` on tasks of any kind (log-likelihood, multiple choice, generation).

    `tasks`: `stdlib_cloze` (embedded), names, groups and tags that lm-eval knows, tasks of the folder `include_path`,
    or paths of task YAML files. `num_fewshot`: None leaves each task its own default; `limit`: only the first items;
    `seed`: of lm-eval's choice of few-shot examples and of torch, for tasks that sample.
    Raises QuambaError for unknown tasks, and when a task's data set is not local and the hub cannot be reached.
    """
    names = list(dict.fromkeys(tasks))
    manager = check_tasks(names, include_path)
    tokenizer = copy.deepcopy(tokenizer)  # lm-eval gives it a padding token
    fails = foreign(f"lm-eval fails on the tasks {', '.join(names)}")
    with fails, _running, _quiet(), _given_back(), in_eval_mode(model), truly_tied(model):
        results = simple_evaluate(
            model=QuambaLM(model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=STDERR_RESAMPLES,
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    items = {task: _item_values(samples) for task, samples in results["samples"].items()}
    return TaskResults({task: _plain(metrics) for task, metrics in results["results"].items()}, items)


@contextlib.contextmanager
def _given_back() -> Iterator[None]:
    """Keeps the caller's: stdout, where lm-eval prints notes, and the random numbers of Python, numpy and torch, which
    it seeds."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


class _Tasks(TaskManager):
    """Building a task reads its data set: a hub that cannot be reached shows here, as many kinds of error."""

    def load(self, task_list):
        loaded, shots = once(("tasks", self, *task_list), lambda: self._with_shots(task_list))
        for name, task in loaded["tasks"].items():  # an earlier evaluation of the same run may have set others
            task.set_config(key="num_fewshot", value=shots[name])
        return loaded

    def _with_shots(self, task_list):
        """The tasks, and the few-shot examples that each has of its own."""
        try:
            with foreign(f"cannot load the lm-eval tasks {', '.join(task_list)}"):
                loaded = self._load(task_list)
                return loaded, {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()}
        except SystemExit as error:
            raise QuambaError(f"the Python file of an lm-eval task ended the program ({error})") from error

    def _load(self, task_list):
        try:
            return super().load(task_list)
        except (OSError, datasets.exceptions.DatasetsError) as error:
            if isinstance(error, FileNotFoundError) and not isinstance(error, datasets.exceptions.DatasetsError):
                raise  # a file of a task of the user's own
            raise QuambaError(
                f"cannot load the data of the lm-eval tasks {', '.join(task_list)}: the Hugging Face hub cannot be "
                f"reached and no copy is in the local cache ({type(error).__name__}: {error}). stdlib_cloze is "
                "embedded and needs no hub"
            ) from error


def _task_manager(include_path: str | Path | None, include_defaults: bool) -> TaskManager:
    files = [] if include_path is None else sorted(path for path in Path(include_path).rglob("*") if path.is_file())
    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _indexed_tasks(include_path, include_defaults, stamps)


@lru_cache(maxsize=4)
def _indexed_tasks(include_path: str | Path | None, include_defaults: bool, _stamps: tuple) -> TaskManager:
    """`_stamps`: what changes with the files of `include_path`, which are then indexed anew."""
    folders = [TASKS_DIR] if include_path is None else [TASKS_DIR, include_path]
    return _Tasks(include_path=folders, include_defaults=include_defaults)


def check_tasks(names: Sequence[str], include_path: str | Path | None = None) -> TaskManager:
    """lm-eval's manager of all the tasks named. Raises QuambaError where one is unknown, without loading its data.

    lm-eval's own tasks take seconds to index: that is done only where a name asks for it.
    """
    if not names:
        raise QuambaError("no lm-eval task is named")
    if include_path is not None and not Path(include_path).is_dir():
        raise QuambaError(f"the folder of lm-eval tasks {str(include_path)!r} does not exist")
    include_path = None if include_path is None else str(Path(include_path).resolve())

    def unknown(manager: TaskManager) -> list[str]:
        return [name for name in names if name not in manager.task_index and not Path(name).is_file()]

    manager = _task_manager(include_path, include_defaults=False)
    if not unknown(manager):
        return manager
    manager = _task_manager(include_path, include_defaults=True)
    if missing := unknown(manager):
        similar = difflib.get_close_matches(missing[0], manager.all_tasks)
        hint = f" (similar: {', '.join(similar)})" if similar else ""
        raise QuambaError(
            f"unknown lm-eval task {', '.join(map(repr, missing))}{hint}: `lm-eval ls tasks` lists lm-eval's own, and "
            "stdlib_cloze is embedded"
        )
    return manager


def load_tasks(
    names: Sequence[str],
    num_fewshot: int | None = 0,
    limit: int | None = None,
    include_path: str | Path | None = None,
    tokenizer=None,
    vocab_size: int | None = None,
    seed: int = 0,
) -> None:
    """Loads tasks and their data as `run_tasks` will, and makes requests of them: what would fail there fails here.

    `tokenizer`, `vocab_size`: where the tokenizer has more tokens than the model's embedding, all requests are
    tokenised; `seed`: as in `run_tasks`, of tasks that draw their items. Raises QuambaError naming the task that cannot
    be loaded, has no items, or needs a token beyond those.
    """
    names = list(dict.fromkeys(names))
    manager = check_tasks(names, include_path)
    every = vocab_size is not None and max(tokenizer.get_vocab().values(), default=0) >= vocab_size
    with _running, _quiet(), _given_back():
        random.seed(seed)  # as `simple_evaluate` does before it loads: within a run it takes the tasks loaded here
        np.random.seed(seed)
        torch.manual_seed(seed)
        for name, task in manager.load(names)["tasks"].items():
            with foreign(f"the lm-eval task {name} makes no requests of its items", "mend its YAML file, or its data"):
                if num_fewshot is not None and task.OUTPUT_TYPE != "loglikelihood_rolling":
                    task.set_config(key="num_fewshot", value=num_fewshot)
                task.set_fewshot_seed(seed=0)
                with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
                    task.build_all_requests(limit=limit if every else 1, rank=0, world_size=1)
            if not task.instances:
                raise QuambaError(f"the lm-eval task {name} has no items")
            if every:
                _check_tokens(name, task.instances, tokenizer, vocab_size)


def _check_tokens(task: str, requests: Sequence, tokenizer, vocab_size: int) -> None:
    """Raises QuambaError where the text of a task's requests has a token beyond the vocabulary of the model."""
    for request in requests:
        for text in request.args:
            largest = max(tokenizer(text)["input_ids"], default=0) if isinstance(text, str) and text else 0
            if largest >= vocab_size:
                raise QuambaError(
                    f"the lm-eval task {task} has token {largest}, and the model's embedding {vocab_size} rows: the "
                    "tokenizer is not this model's own"
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval warns about every default it takes; its errors, and all of it at --verbose, still show."""
    lm_eval_logger = logging.getLogger("lm_eval")
    level = lm_eval_logger.level
    if not logger.isEnabledFor(logging.DEBUG):
        lm_eval_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        lm_eval_logger.setLevel(level)


def _item_values(samples: list[dict]) -> dict[str, list[float]]:
    """{"metric,filter": a number per item, in their order} of one task, of the metrics that have one."""
    values: dict[str, list[float]] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            if isinstance(sample[metric], Number):
                values.setdefault(f"{metric},{sample['filter']}", []).append(float(sample[metric]))
    return values


def _plain(metrics: dict) -> dict:
    """Return the metrics with Python numbers where lm-eval gives numpy's, so that they can be written as JSON."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}


def _torch_dtype(name: str | torch.dtype) -> torch.dtype:
    dtype = DTYPES.get(name, name)
    if dtype not in DTYPES.values():
        raise QuambaError(f"unknown dtype {name!r}: use {', '.join(DTYPES)}, or auto for the one it was saved in")
    return dtype
