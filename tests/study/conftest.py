"""Fixtures that the tests of the study share."""

import pytest

from quamba import observer_base


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(observer_base, "_registry", dict(observer_base._registry))
