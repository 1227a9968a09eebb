"""lm-eval tasks are loaded, with their data and requests, before a run's work; what fails there is told by name."""

import json

import pytest
import yaml

from quamba.errors import QuambaError
from quamba.evaluation import evaluate, text_windows
from quamba.evaluation.lm_eval import _task_manager, load_tasks
from quamba.text.data import load_text

TASK = {
    "task": "mine",
    "dataset_path": "json",
    "output_type": "loglikelihood",
    "test_split": "test",
    "doc_to_text": "text",
    "doc_to_target": "target",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def write_task(tmp_path):
    """A function that writes a task of one row, its YAML changed as asked, and returns its folder."""

    def write(changes: dict, text: str | None = None, row: dict | None = None):
        data = tmp_path / "rows.jsonl"
        data.write_text(json.dumps(row or {"text": "w1 w2", "target": " w3"}) + "\n")
        task = TASK | {"dataset_kwargs": {"data_files": {"test": str(data)}}} | changes
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task) if text is None else text)
        return tmp_path

    return write


def test_a_task_that_can_be_measured_passes(write_task):
    load_tasks(["mine"], include_path=write_task({}))
    load_tasks(["stdlib_cloze"], 2, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_kwargs": {"data_files": {"test": "no-such-file.jsonl"}}},
            "cannot load the lm-eval tasks mine: .*no-such",
        ),
        ({"dataset_path": "no-such-kind/of-data"}, "cannot load the data of the lm-eval tasks mine"),
        ({"test_split": "train"}, "the lm-eval task.* mine"),
        ({"doc_to_text": "{{ text | no_such_filter }}"}, "cannot load the lm-eval tasks mine: .*no_such_filter"),
        ({"metric_list": [{"metric": "no_such_metric"}]}, "lm-eval task.* mine"),
        ({"output_type": "dance"}, "lm-eval task.* mine"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_task_that_cannot_be_is_named_before_the_work(write_task, changes, message):
    with pytest.raises(QuambaError, match=message):
        load_tasks(["mine"], include_path=write_task(changes))


def test_a_python_file_of_a_task_that_lacks_a_package_is_told(write_task):
    folder = write_task({}, text=yaml.safe_dump(TASK) + "process_docs: !function mine_utils.docs\n")
    (folder / "mine_utils.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(QuambaError, match="no_such_package_at_all"):
        load_tasks(["mine"], include_path=folder)


def test_tokens_beyond_the_embedding_are_told_before_the_work(write_task, tiny_mamba, tiny_tokenizer, tmp_path):
    folder = write_task({})
    load_tasks(["mine"], include_path=folder, tokenizer=tiny_tokenizer, vocab_size=60)
    with pytest.raises(QuambaError, match=r"the lm-eval task mine has token .*, and the model's embedding 2 rows"):
        load_tasks(["mine"], include_path=folder, tokenizer=tiny_tokenizer, vocab_size=2)
    (tmp_path / "text.txt").write_text("w1 w2 w40 w3")
    model = tiny_mamba(vocab_size=30)
    largest = max(tiny_tokenizer(load_text(tmp_path / "text.txt"))["input_ids"][0])
    for measure in (text_windows, evaluate):
        with pytest.raises(QuambaError, match=f"text.txt has token {largest}, and the model's embedding 30 rows"):
            measure(model, tiny_tokenizer, [tmp_path / "text.txt"])


def test_task_files_that_were_edited_are_read_again(tmp_path):
    (tmp_path / "one.yaml").write_text("task: one\ndataset_path: json\n")
    assert "one" in _task_manager(tmp_path, include_defaults=False).task_index
    (tmp_path / "one.yaml").write_text("task: another\ndataset_path: json\n")
    assert "another" in _task_manager(tmp_path, include_defaults=False).task_index
    assert _task_manager(tmp_path, include_defaults=False) is _task_manager(tmp_path, include_defaults=False)
