from quamba.study.markdown import markdown_table


def test_columns_line_up_with_figures_to_the_right():
    assert markdown_table([["", "ppl"], ["float", "14.9"], ["w8a8", "9"]]) == (
        "|       |  ppl |\n| :---- | ---: |\n| float | 14.9 |\n| w8a8  |    9 |\n"
    )


def test_what_would_break_a_table_is_kept_out_of_it():
    assert markdown_table([["a|b", "c\nd"]]).splitlines()[0] == "| a\\|b | c d |"
