import json

import pytest

import quamba
from quamba import QuambaError
from quamba.evaluation import EvaluationResult, compare, perplexity
from quamba.text.data import evaluation_windows, load_text, text_sha256


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


# --- a folder in place of the hub ---


@pytest.fixture
def wikitext(tmp_path):
    """A folder with the test part of a small WikiText."""
    (tmp_path / "test.txt").write_text(" \n = Lobster = \n \n A lobster is blue , and moults often . \n")
    return tmp_path


def test_a_folder_stands_in_for_the_texts_that_it_can(mamba_tiny, wikitext):
    (wikitext / "mine.txt").write_text("import os\n" * 40)
    texts = ["wikitext2", "stdlib", wikitext / "mine.txt"]
    result = quamba.evaluate(*mamba_tiny, texts, ppl_seqlen=8, max_windows=1, data_dir=wikitext, progress=False)
    assert list(result["ppl"]) == [str(text) for text in texts]
    read = [load_text("wikitext2", "test", wikitext), load_text("stdlib", "test"), load_text(texts[2])]
    assert list(result.text_sha256.values()) == [text_sha256(documents) for documents in read]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ppl_datasets": ["stdlib", "stdlib"]}, "only, not for the text 'stdlib': drop it, or name one of those"),
        ({"tasks": ["stdlib_cloze"]}, "does nothing in a run that reads no text: drop it"),
        ({"ppl_datasets": ["stdlib", "c4"]}, "has no test split of c4"),
    ],
    ids=str,
)
def test_a_folder_that_stands_in_for_nothing_is_an_error_before_anything_is_measured(wikitext, options, message):
    with pytest.raises(QuambaError, match=f"^--data_dir .* {message}"):
        quamba.evaluate(None, None, **options, data_dir=wikitext)
