"""The table of docs/speed.md, from the rows."""

import pytest

from benchmarks.speed import table


def row(system: str, scheme: str, speed: float, prompt: int = 128, shape: str = "130m", **more) -> dict:
    return {
        "system": system,
        "scheme": scheme,
        "shape": shape,
        "batch": 1,
        "prompt": prompt,
        "prefill_tok_s": speed,
        "decode_tok_s": speed / 10,
        "memory_bytes": 10**8,
    } | more


ROWS = [
    row("quamba", "w8a8", 1500.0),
    row("llama.cpp", "Q8_0", 1000.0),
    row("transformers", "float32", 100.0),
    row("floor", "w8a8", 3000.0),
]


def cells(text: str) -> list[list[str]]:
    """The cells of a Markdown table, the rule left out."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return [lines[0], *lines[2:]]


def test_speeds_stand_side_by_side_ours_first():
    header, line = cells(table.speed_table(ROWS, "prefill_tok_s"))
    assert header == ["shape, batch x prompt", "quamba w8a8", "llama.cpp Q8_0", "transformers float32"]
    assert line == ["130m, 1 x 128", "1500", "1000", "100"]


def test_ratios_are_against_the_same_number_of_bits_transformers_and_the_floor():
    header, line = cells(table.ratio_table(ROWS, "decode_tok_s"))
    assert header[1:] == ["w8a8 / llama.cpp Q8_0", "w8a8 / transformers float32", "w8a8, % of floor"]
    assert line == ["130m, 1 x 128", "1.50x", "15.00x", "50"]


def test_what_was_not_measured_is_a_dash():
    rows = [row("quamba", "w8a8", 1500.0, 2048), row("llama.cpp", "Q8_0", 1000.0, 2048), *ROWS]
    lines = cells(table.speed_table(rows, "prefill_tok_s"))
    assert lines[-1] == ["130m, 1 x 2048", "1500", "1000", "-"]
    assert cells(table.ratio_table(rows, "prefill_tok_s"))[-1][2:] == ["-", "-"]


def test_lines_go_from_small_shapes_and_prompts_to_large_ones():
    rows = [
        row(s, "w8a8", 1.0, prompt, shape)
        for prompt, shape in [(512, "1.4b"), (512, "130m"), (128, "130m")]
        for s in ("quamba",)
    ]
    rows += [{**r, "system": "llama.cpp", "scheme": "Q8_0"} for r in rows]
    first = [line[0] for line in cells(table.speed_table(rows, "prefill_tok_s"))[1:]]
    assert first == ["130m, 1 x 128", "130m, 1 x 512", "1.4b, 1 x 512"]


def test_a_prompt_that_only_growth_was_measured_at_has_no_line():
    rows = [*ROWS, row("quamba", "w8a8", 1500.0, prompt=8192)]
    assert len(cells(table.speed_table(rows, "prefill_tok_s"))) == 2


def test_one_system_alone_has_a_table_too():
    assert cells(table.speed_table(ROWS[:1], "prefill_tok_s"))[1] == ["130m, 1 x 128", "1500"]


def test_growth_of_a_constant_speed_is_a_straight_line_and_constant_steps():
    rows = [row("quamba", "w4a8", 1000.0, prompt) for prompt in (128, 512, 2048)]
    header, prefill, step, memory = cells(table.growth_table(rows))
    assert header[1:] == ["128", "512", "2048", "exponent"]
    assert prefill[-1] == "1.00"
    assert step[-1].lstrip("-") == "0.00" and memory[-1].lstrip("-") == "0.00"


def test_growth_needs_three_prompts():
    assert table.growth_table(ROWS) is None


def test_the_memory_figure_is_a_sentence():
    memory = row("memory", "w4a8", 0, peak_bytes=3 * 10**8, packed_bytes=2 * 10**8, limit_bytes=294 * 10**6)
    (line,) = table.memory_line([memory])
    assert "100 MB more" in line and "294 MB" in line


def test_the_report_fills_the_place_between_the_markers(tmp_path):
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.fill(page, table.report(ROWS))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text and "| 130m, 1 x 128 |" in text
    table.fill(page, table.report(ROWS))
    assert page.read_text() == text


def test_a_page_without_the_markers_is_refused(tmp_path):
    page = tmp_path / "speed.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="no place for the table"):
        table.fill(page, "x")
