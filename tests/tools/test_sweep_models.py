"""The sweep over classes of causal LM: what it says of one, and how outcomes are counted."""

import pytest

from tools import sweep_models


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("0.012 of the logits", "ok"),
        ("refused: experts are not supported", "refused"),
        ("RAW ValueError: odd", "RAW"),
        ("not built: KeyError: 'x'", "not built"),
        ("does not run: RuntimeError: shapes", "does not run"),
    ],
)
def test_outcomes_are_counted_by_their_kind(entry, kind):
    assert sweep_models.kind(entry) == kind


def test_a_model_that_is_built_and_does_not_run_is_said_to_be_one(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(sweep_models, "tiny_causal_lm", lambda _: object())
    monkeypatch.setattr(sweep_models, "logits", broken)
    assert sweep_models.row("llama") == ["does not run: RuntimeError: shapes"]
    monkeypatch.setattr(sweep_models, "tiny_causal_lm", broken)
    assert sweep_models.row("llama") == ["not built: RuntimeError: shapes"]
