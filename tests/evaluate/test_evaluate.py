import json

import pytest

import quamba
from quamba.data import evaluation_windows, load_text
from quamba.evaluate import EvaluationResult, compare, perplexity


@pytest.fixture(scope="module")
def mamba_tiny():
    return quamba.load("mamba-tiny")


def test_a_result_is_plain_data_with_the_paired_values_beside_it(mamba_tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("import os\n" * 40)
    texts = ["stdlib", tmp_path / "mine.txt"]
    result = quamba.evaluate(*mamba_tiny, texts, ppl_seqlen=32, max_windows=2, progress=False)
    windows = evaluation_windows(load_text("stdlib", "test"), mamba_tiny[1], 32)
    expected = perplexity(mamba_tiny[0], windows, max_windows=2, progress=False)
    assert result["ppl"]["stdlib"] == pytest.approx(expected.ppl)
    assert json.loads(json.dumps(result)) == {
        "ppl": {"stdlib": result["ppl"]["stdlib"], str(texts[1]): result.windows[str(texts[1])].ppl},
        "lm_eval": {},
    }
    assert compare(result, result)["ppl"]["stdlib"] == (1, 1, 1)


def test_windows_have_512_tokens_on_the_embedded_text_and_2048_elsewhere(mamba_tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("import os\n" * 1200)
    result = quamba.evaluate(*mamba_tiny, ["stdlib", tmp_path / "mine.txt"], max_windows=1, progress=False)
    assert [windows.tokens + 1 for windows in result.windows.values()] == [512, 2048]


def test_the_values_per_item_are_plain_data(mamba_tiny):
    result = quamba.evaluate(*mamba_tiny, ["stdlib"], ["stdlib_cloze"], max_windows=2, limit=3, progress=False)
    values = json.loads(json.dumps(result.item_values()))
    windows = result.windows["stdlib"]
    assert values["ppl"] == {"stdlib": {"nll": list(windows.window_nll), "tokens": [511, 511]}}
    assert values["lm_eval"] == result.task_items
    assert len(values["lm_eval"]["stdlib_cloze"]["acc,none"]) == 3


def test_nothing_asked_gives_an_empty_result(mamba_tiny):
    assert quamba.evaluate(*mamba_tiny) == EvaluationResult() == {"ppl": {}, "lm_eval": {}}
