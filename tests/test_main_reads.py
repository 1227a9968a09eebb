"""A run opens and tokenizes every text once and loads every task once, however many of its steps take it."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from lm_eval.api.task import ConfigurableTask

import main
from quamba.evaluation.lm_eval import load_tasks, run_tasks
from quamba.text import files, reading, token_cache
from tests.evaluation.test_load_tasks import TASK
from tests.test_main import QUANTIZE, VOCABULARY, place, process_state, tiny  # noqa: F401 (fixtures)

TASKS = ["--eval_ppl", "--eval_zero_shot", "--eval_few_shot", "--fewshot", "1", "--task_list", "mine"]
TASKS += ["--include_path", "tasks"]


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often each file was opened, each list of documents tokenized, and each task's data loaded."""
    counts = Counter()

    def count(owner, name: str, key) -> None:
        original = getattr(owner, name)

        def counted(*args, **options):
            counts[name, key(*args)] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(files, "_open_text", lambda path: path.name)
    count(token_cache, "_tokenize", lambda documents, _: hash(tuple(documents)))
    count(ConfigurableTask, "download", lambda task, *_: task.config.task)
    return counts


def write_task(folder: Path) -> None:
    """A task `mine` of six rows, which are its few-shot examples too."""
    folder.mkdir()
    rows = [{"text": f"w{row} w{row + 1}", "target": f" w{row + 2}"} for row in range(1, 7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}, "fewshot_split": "test"}
    data["metric_list"] = [{"metric": "acc"}, {"metric": "perplexity"}]
    (folder / "mine.yaml").write_text(yaml.safe_dump(TASK | data))


@pytest.mark.parametrize(
    "options",
    [
        [],
        [*QUANTIZE],
        [*QUANTIZE, "--w_bits", "4"],  # its weights are rounded on slices of the same text
        [*QUANTIZE, "--hybrid_search", "6", "--hybrid_blocks_config", "schemes.json"],  # a second model and tokenizer
        [*QUANTIZE, *TASKS],
    ],
    ids=["float", "w8a8", "w4a8", "search", "tasks"],
)
def test_a_run_reads_everything_once(tiny, reads, options):  # noqa: F811
    write_task(Path("tasks").resolve())
    assert main.main([*tiny, *options]) == 0
    assert reads["_open_text", "text.txt"] == 1
    assert set(reads.values()) == {1}
    kinds = Counter(kind for kind, _ in reads)
    assert kinds == {"_open_text": 1, "_tokenize": 1} | ({"download": 1} if "--task_list" in options else {})


def test_the_next_run_reads_anew(tiny, reads):  # noqa: F811
    for times in (1, 2):
        assert main.main(tiny) == 0
        assert reads["_open_text", "text.txt"] == times


def test_tasks_that_are_loaded_once_give_what_tasks_loaded_anew_give(tmp_path, tiny_mamba, tiny_tokenizer):
    write_task(tmp_path / "tasks")
    model = tiny_mamba(vocab_size=VOCABULARY)

    def results(examples: int | None):
        return run_tasks(model, tiny_tokenizer, ["mine"], examples, include_path=tmp_path / "tasks", seed=3)

    shots = (0, 2, None, 2, 0)
    anew = [results(examples) for examples in shots]
    with reading.reading_once():
        load_tasks(["mine"], 1, None, tmp_path / "tasks", seed=3)
        assert [results(examples) for examples in shots] == anew
    assert anew[0] != anew[1]


def test_what_failed_is_made_again_and_nothing_outlives_the_block():
    made = []
    with reading.reading_once():
        with pytest.raises(ZeroDivisionError):
            reading.once("key", lambda: 1 / 0)
        for _ in range(2):
            assert reading.once("key", lambda: made.append(1) or len(made)) == 1
    assert reading.once("key", lambda: made.append(1) or len(made)) == 2
