"""README.md and docs/: the size of the one, what both link to, and the examples that the others work through."""

import re
from pathlib import Path

import pytest
import torch

import main
from quamba.plugins import load_plugin
from quamba.weights.rounding import DEFAULT_OPTIONS, RoundingState, apply_rounding
from tests.test_main import place, process_state, read_log  # noqa: F401 (fixtures)

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTENDING = ("observer", "rounding", "architecture", "scheme", "op", "option")
NAMED = re.compile(r"`((?:quamba|csrc|tests|tools|examples|benchmarks|docs)/[\w./-]*\w/?)`")


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def anchors(page: Path) -> set[str]:
    """The headings of a page as the site makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_and_names_is_there(page):
    text = page.read_text("utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if (
            target.startswith("https://") or Path(target).name == "commands.md"
        ):  # from the parsers, when the site is built
            continue
        assert (page.parent / target).exists(), target
        assert not anchor or anchor in anchors((page.parent / target) if target else page), f"{target}#{anchor}"
    for path in NAMED.findall(text):
        assert path == "docs/commands.md" or (ROOT / path).exists(), path


@pytest.mark.parametrize("name", EXTENDING)
def test_a_page_says_how_to_add_each_thing_and_which_test_fails(name):
    assert "`tests/" in (ROOT / "docs" / "extending" / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["observer", "rounding"])
def test_the_page_shows_the_example(name):
    text = (ROOT / "docs" / "extending" / f"{name}.md").read_text("utf-8")
    assert f'--8<-- "examples/my_{name}.py"' in text


def test_the_observer_of_the_example_quantizes_a_model():
    example = ["--plugin", str(ROOT / "examples" / "my_observer.py"), "--observer", "mine"]
    assert main.main(["mamba-tiny", "--quantize", "--testing", "--skip_float", *example]) == 0
    assert read_log("mamba-tiny_w8a8")["calibration"]["observer"]["x"] == "mine"


def test_the_rule_of_the_example_lessens_the_mean_error_of_the_rows_that_it_touches():
    load_plugin(ROOT / "examples" / "my_rounding.py")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 32, generator=generator)
    scale, zero = torch.full((8, 1), 0.25), torch.zeros(8, 1)
    integers = (weight / 0.25).round().clamp(-8, 7)
    state = RoundingState(weight, integers, scale, zero, group_size=32, low=-8, high=7)
    moments = type("Moments", (), {"mean": torch.rand(32, generator=generator) + 0.5, "second": None})()
    rounded, flips = apply_rounding("one_flip", state, moments, DEFAULT_OPTIONS)
    touched = (rounded.integers != integers).any(dim=1)
    assert touched.any() and flips.flips == int(touched.sum())
    before, after = ((one.error() @ moments.mean).abs() for one in (state, rounded))
    assert (after[touched] < before[touched]).all()
