"""Registries: names of one kind of thing, and how what was registered is undone."""

from functools import partial

import pytest

from quamba import registry
from quamba.errors import QuambaError
from quamba.registry import Registry


@pytest.fixture(autouse=True)
def tools(monkeypatch) -> Registry:
    """A registry of functions, among no others, that knows `len` and `sum`."""
    monkeypatch.setattr(registry, "_registries", [])
    tools = Registry("tool")
    tools.add("length", len)
    tools.add("total", sum)
    return tools


def test_things_are_found_by_name_in_the_order_of_registration(tools):
    assert tools.names() == ["length", "total"]
    assert (tools.get("length"), tools.get("total")) == (len, sum)


def test_an_unknown_name_lists_the_known_ones(tools):
    with pytest.raises(QuambaError, match=r"^unknown tool 'width': choose one of length, total$"):
        tools.get("width")


def test_a_name_is_not_given_to_another_thing(tools):
    with pytest.raises(QuambaError, match=r"^the tool name 'length' is taken by builtins\.len$"):
        tools.add("length", sum)
    assert tools.get("length") is len


def test_the_same_thing_defined_again_replaces_itself_where_it_stood(tools):
    def define(result):
        def tool():
            return result

        return tool

    first, second = define(1), define(2)
    tools.add("mine", first)
    tools.add("other", len)
    tools.add("mine", second)
    assert tools.get("mine") is second
    assert tools.names() == ["length", "total", "mine", "other"]


def test_what_has_no_name_of_its_own_is_replaced_by_nothing_else(tools):
    first, second = partial(int, base=2), partial(int, base=8)
    tools.add("binary", first)
    tools.add("binary", first)
    with pytest.raises(QuambaError, match=r"'binary' is taken by functools\.partial"):
        tools.add("binary", second)


def test_a_snapshot_undoes_what_was_registered_after_it_in_every_registry(tools):
    signs = Registry("sign")
    signs.add("plus", "+".__add__)
    before = registry.snapshot()
    tools.add("largest", max)
    tools.add("length", len)
    signs.add("minus", "-".__add__)
    assert registry.added_since(before) == {"tool": ["largest"], "sign": ["minus"]}
    registry.restore(before)
    assert (tools.names(), signs.names()) == (["length", "total"], ["plus"])
    assert registry.added_since(before) == {}


def test_a_snapshot_brings_back_what_was_replaced_and_serves_twice(tools):
    def define():
        def tool():
            pass

        return tool

    first = define()
    tools.add("mine", first)
    before = registry.snapshot()
    for _ in range(2):
        tools.add("mine", define())
        tools.add("largest", max)
        registry.restore(before)
        assert tools.get("mine") is first
        assert tools.names() == ["length", "total", "mine"]
