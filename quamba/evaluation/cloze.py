"""The items of the embedded lm-eval task `stdlib_cloze`."""

from ..text.data import read_asset_rows


def load_items(**_):
    """A datasets.DatasetDict, in memory: test items and few-shot examples, {"id", "context", "target"} each.

    The task's YAML names this function: unlike a path in the YAML it works wherever the package is installed, needs no
    cache folder, and checks that the items are the published ones.
    """
    from datasets import Dataset, DatasetDict

    splits = ("test", "fewshot")
    return DatasetDict(
        {split: Dataset.from_list(read_asset_rows(f"tasks/stdlib_cloze/{split}.jsonl")) for split in splits}
    )
