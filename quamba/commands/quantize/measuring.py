"""Measuring a model as the options of a run say, and saying so."""

import argparse

from rich.table import Table

from ...checkpoint import Checkpoint
from ...evaluation import EvaluationResult, evaluate, text_windows
from ...models.text_config import text_config
from ...text.sources import data_dir_for
from ..console import Console
from ..failures import drop_standard_output
from . import texts as run_texts

console = Console()


def say(text: str | Table = "") -> None:
    """Prints a line as it is: paths may hold brackets, which are no markup, and are copied whole.

    A run goes on where nobody reads it any more, or the disk that it is written to is full.
    """
    try:
        console.print(text, markup=False, highlight=False, soft_wrap=isinstance(text, str))
    except OSError:
        drop_standard_output()


def measure(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint, what: str) -> EvaluationResult:
    """Every evaluation that the options ask for."""
    texts, task_runs = run_texts.evaluation_plan(args, checkpoint)
    size = run_texts.batch_size(args, checkpoint)
    say(f"Measuring the {what} model")
    result = evaluate(
        model,
        tokenizer,
        texts,
        max_windows=run_texts.max_windows(args, checkpoint, texts),
        by_token=args.ppl_by_token,
        data_dir=data_dir_for(args.data_dir, *texts),
        batch_size=size,
    )
    for tasks, examples in task_runs:
        limit = run_texts.TESTING_TASK_ITEMS if args.testing else None
        run = evaluate(
            model,
            tokenizer,
            tasks=tasks,
            num_fewshot=examples,
            limit=limit,
            include_path=args.include_path,
            seed=args.seed,
            batch_size=size,
        )
        result.add(run, suffix=f"@{examples}" if examples else "")
    return result


def check_evaluation(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Raises QuambaError where an evaluation would fail for a name that does not exist: now, not after hours."""
    _, task_runs = run_texts.evaluation_plan(args, checkpoint)
    if task_runs:
        from quamba.evaluation.lm_eval import check_tasks  # seconds to import, and only tasks need it

        for tasks, _ in task_runs:
            check_tasks(tasks, args.include_path)


def read_evaluation(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Reads all that the evaluation will read. Raises QuambaError for a text or a task that cannot be measured on."""
    texts, task_runs = run_texts.evaluation_plan(args, checkpoint)
    text_windows(model, tokenizer, texts, data_dir=data_dir_for(args.data_dir, *texts))
    for tasks, examples in task_runs:
        from quamba.evaluation.lm_eval import load_tasks

        limit = run_texts.TESTING_TASK_ITEMS if args.testing else None
        load_tasks(tasks, examples, limit, args.include_path, tokenizer, text_config(model).vocab_size, args.seed)
