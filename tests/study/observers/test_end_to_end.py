"""Observers end to end: every one in a quantized model of its own, measured in pairs with the baseline's."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quamba.calibration.run import CalibrationText
from quamba.checkpoint import load_checkpoint, resolve_checkpoint
from quamba.errors import QuambaError
from quamba.evaluation import EvaluationResult, PerplexityResult, compare, evaluate
from quamba.pipeline.quantize import quantize
from quamba.study.observers.end_to_end import Evaluation, end_to_end, measure_observers, observers_of
from quamba.study.observers.specs import parse_spec, parse_specs
from quamba.text.data import EMBEDDED_MODELS


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_mamba, tiny_tokenizer):
    """A folder with a tiny float model, `tiny`, and a text, `text.txt`."""
    monkeypatch.chdir(tmp_path)
    tiny_mamba(vocab_size=50).save_pretrained("tiny")
    tiny_tokenizer.save_pretrained("tiny")
    (tmp_path / "text.txt").write_text(" ".join(f"w{1 + number * number % 49}" for number in range(3000)))


TEXT = CalibrationText("text.txt", data_num=4, seqlen=16)
TWO_WINDOWS = Evaluation("text.txt", windows=2)


# --- what is measured ---


def test_an_embedded_model_is_measured_as_main_does():
    tiny = EMBEDDED_MODELS["mamba-tiny"]
    assert Evaluation.of(tiny) == Evaluation("stdlib", tiny.ppl_windows, ("stdlib_cloze",), tiny.batch_size)


def test_an_evaluation_reads_its_windows_only(place):
    model, tokenizer = load_checkpoint(resolve_checkpoint("tiny"))
    result = TWO_WINDOWS.run(model, tokenizer, progress=False)
    assert set(result["ppl"]) == {"text.txt"}
    assert len(result.windows["text.txt"].window_nll) == 2
    assert result["lm_eval"] == {}


def test_an_evaluation_of_a_text_that_does_not_exist_is_refused(place):
    TWO_WINDOWS.check()
    with pytest.raises(QuambaError, match="unknown text 'best'"):
        Evaluation("best").check()


def test_an_evaluation_of_a_task_that_does_not_exist_is_refused(place, monkeypatch):
    """By lm-eval's own index, which takes seconds to read: it stands aside here."""

    def check_tasks(names):
        if "best" in names:
            raise QuambaError("unknown lm-eval task 'best'")

    monkeypatch.setitem(sys.modules, "quamba.evaluation.lm_eval", SimpleNamespace(check_tasks=check_tasks))
    Evaluation("stdlib", tasks=("stdlib_cloze",)).check()
    with pytest.raises(QuambaError, match="unknown lm-eval task 'best'"):
        Evaluation("stdlib", tasks=("stdlib_cloze", "best")).check()


# --- which observer is where ---


def test_an_observer_stands_at_the_named_taps_and_minmax_at_the_others():
    mse = parse_spec("mse:clip_ratio=0.9")
    assert observers_of(mse, None) == {"all": "mse"}
    assert observers_of(mse, ["x", "out"]) == {"all": "minmax", "x": "mse", "out": "mse"}
    assert observers_of(parse_spec("minmax:clip_ratio=0.9"), None) == {"all": "minmax"}


@pytest.mark.parametrize(
    ("observer", "taps", "message"),
    [
        ("mse", ["y"], "unknown tap 'y'"),
        ("mse", ["x", "head_in"], "tap head_in is not quantized end to end: name other taps"),
        ("minmax:clip_ratio=0.9", ["x"], "'minmax:clip_ratio=0.9' would be every tap's, end to end: name no taps"),
    ],
)
def test_taps_that_an_observer_cannot_stand_at_are_refused(observer, taps, message):
    with pytest.raises(QuambaError, match=message):
        observers_of(parse_spec(observer), taps)


# --- measurements ---


@pytest.mark.parametrize(("taps", "rotate"), [(None, False), (["x", "out"], True)])
def test_every_observer_is_compared_with_the_baseline_in_pairs(place, taps, rotate):
    """Each figure is that of models which are quantized and compared by hand."""
    checkpoint = resolve_checkpoint("tiny")
    observers = parse_specs(["mse", "outlier_aware:normal_ratio=0.9"], "minmax", 8)
    measured = measure_observers(checkpoint, observers, taps, TEXT, TWO_WINDOWS, rotate, progress=False)
    assert list(measured) == ["mse", "outlier_aware:normal_ratio=0.9"]

    def by_hand(observer: str, options: dict | None = None) -> EvaluationResult:
        model, tokenizer = load_checkpoint(checkpoint)
        names = {"all": observer} if taps is None else {"all": "minmax"} | dict.fromkeys(taps, observer)
        arguments = {"observer_options": options, "rotate_residual": rotate, "progress": False}
        quantize(model, tokenizer, observer=names, calibration=TEXT, **arguments)
        return evaluate(model, tokenizer, ["text.txt"], max_windows=2, progress=False)

    baseline = by_hand("minmax")
    for label, run in [
        ("mse", by_hand("mse")),
        ("outlier_aware:normal_ratio=0.9", by_hand("outlier_aware", {"outlier_aware": {"normal_ratio": 0.9}})),
    ]:
        assert measured[label].accuracy_gain is None
        assert measured[label].ppl_ratio == pytest.approx(compare(baseline, run)["ppl"]["text.txt"], rel=1e-9)
        assert measured[label].ppl_ratio.estimate != 1


def test_a_mistake_is_told_before_a_model_is_loaded(place, monkeypatch):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("quamba.study.observers.end_to_end.load_checkpoint", load)
    observers = parse_specs(["minmax:clip_ratio=0.9"], "minmax", 8)
    with pytest.raises(QuambaError, match="would be every tap's"):
        measure_observers(resolve_checkpoint("tiny"), observers, ["x"], TEXT, TWO_WINDOWS, progress=False)


def test_measuring_leaves_the_checkpoint_as_it_is(place, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    observers = parse_specs(["mse"], "minmax", 8)
    measure_observers(resolve_checkpoint("tiny"), observers, ["x"], TEXT, TWO_WINDOWS, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "tiny").iterdir()} == before


# --- two results as the rule takes them ---


def result_of(nll: list[float], **tasks: dict[str, list[float]]) -> EvaluationResult:
    result = EvaluationResult()
    tokens = np.full(len(nll), 10)
    result.windows["text"] = PerplexityResult(float(np.exp(np.mean(nll))), int(tokens.sum()), np.array(nll), tokens)
    result["ppl"]["text"] = result.windows["text"].ppl
    result.task_items = tasks
    return result


def test_a_gain_is_in_points_of_a_hundred():
    base = result_of([2.0, 3.0], cloze={"acc,none": [0, 1] * 50})
    other = result_of([2.1, 3.1], cloze={"acc,none": [1, 1, 0, 1] + [0, 1] * 48})
    found = end_to_end(base, other, Evaluation("text", tasks=("cloze",)))
    assert found.ppl_ratio.estimate == pytest.approx(np.exp(0.1))
    assert found.accuracy_gain.estimate == pytest.approx(1.0)
    assert found.accuracy_gain.low <= 1.0 <= found.accuracy_gain.high <= 5.0


def test_the_first_task_that_has_an_accuracy_decides():
    base = result_of([2.0], cloze={"perplexity,none": [1, 2]}, first={"acc,none": [0, 0]}, second={"acc,none": [1, 1]})
    other = result_of([2.0], cloze={"perplexity,none": [1, 1]}, first={"acc,none": [1, 1]}, second={"acc,none": [0, 0]})
    found = end_to_end(base, other, Evaluation("text", tasks=("cloze", "first", "second")))
    assert found.accuracy_gain == (100, 100, 100)
    assert found.ppl_ratio == (1, 1, 1)


def test_without_an_accuracy_there_is_no_gain():
    base = result_of([2.0], cloze={"perplexity,none": [1, 2]})
    assert end_to_end(base, base, Evaluation("text", tasks=("cloze",))).accuracy_gain is None
    assert end_to_end(result_of([2.0]), result_of([2.0]), Evaluation("text")).accuracy_gain is None


def test_random_numbers_play_no_part(place):
    observers, measured = parse_specs(["mse"], "minmax", 8), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        measured.append(
            measure_observers(resolve_checkpoint("tiny"), observers, ["x"], TEXT, TWO_WINDOWS, progress=False)
        )
    assert measured[0] == measured[1]
