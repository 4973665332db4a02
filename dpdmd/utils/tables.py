"""Tables in Markdown and LaTeX."""

import re
from collections.abc import Iterable, Sequence

_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table without a final newline. Bars in cells are escaped, and line breaks become spaces."""
    lines = [_markdown_row(header), "|" + "---|" * len(header), *map(_markdown_row, rows)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def read_markdown_row(line: str) -> list[str]:
    """Return the cells of a row that `markdown_table` wrote."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def latex_text(text: str) -> str:
    """Escape plain text for LaTeX's text mode."""
    return " ".join(text.split()).translate(_LATEX)


def latex_row(cells: Iterable[str]) -> str:
    """Return a row of a LaTeX table. Cells are LaTeX code: pass plain text through `latex_text` first."""
    return rf"{' & '.join(cells)} \\"


def latex_table(caption: str, label: str, header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a `table` environment for the booktabs package. Cells are LaTeX code; the first column is left-aligned."""
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}",
        r"\toprule",
        latex_row(header),
        r"\midrule",
        *map(latex_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
