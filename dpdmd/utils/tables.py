"""Text for LaTeX and Markdown tables: what those read as signs of their own is written so that they show it."""

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


def latex_text(text: str) -> str:
    """`text` as it is set outside of math."""
    return " ".join(text.split()).translate(_LATEX)


def markdown_cell(text: str) -> str:
    """`text` in a cell of a table, which a bar or a new line would end."""
    return " ".join(text.split()).replace("|", r"\|")
