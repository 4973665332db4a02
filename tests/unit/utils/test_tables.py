"""Markdown and LaTeX tables."""

from dpdmd.utils.tables import latex_row, latex_table, latex_text, markdown_table


def test_markdown_escapes_bars_and_joins_lines():
    assert markdown_table(["", "a|b"], [["x\ny", ""], ["c", "d"]]) == "|  | a\\|b |\n|---|---|\n| x y |  |\n| c | d |"


def test_latex_text_shows_every_special_character():
    assert latex_text("a_b & 5% of #1 {x}") == r"a\_b \& 5\% of \#1 \{x\}"
    assert latex_text("~^\\<>|$") == (
        r"\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textgreater{}\textbar{}\$"
    )


def test_latex_table_has_a_column_for_each_cell():
    lines = latex_table("Caption.", "name", ["", "a", "b"], [["row", "1", "2"]]).splitlines()
    assert r"\begin{tabular}{lcc}" in lines
    assert lines.index(r"\midrule") + 1 == lines.index(latex_row(["row", "1", "2"]))
