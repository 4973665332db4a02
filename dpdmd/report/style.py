"""How runs look: one colour, mark and dash each, the same in every figure and in the legend; the teacher is grey.

Okabe and Ito's colours, which stay apart for every kind of colour vision, less black (text) and yellow (pale on white).
"""

from dataclasses import dataclass

INK, SOFT, FAINT = "#1b1f24", "#5b6470", "#dfe3e8"
TEACHER_COLOUR = "#6e7781"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00")
_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
# The marks once more, in a box of 16 x 16, for the page's own legend.
_OUTLINES = {
    "o": "M8 3a5 5 0 1 1-.01 0z",
    "s": "M3.5 3.5h9v9h-9z",
    "^": "M8 2.5 13.5 12.5h-11z",
    "D": "M8 2 14 8 8 14 2 8z",
    "v": "M8 13.5 2.5 3.5h11z",
    "P": "M6 2.5h4V6h3.5v4H10v3.5H6V10H2.5V6H6z",
    "*": "M8 1.5 9.9 6l4.8.4-3.7 3.1 1.2 4.7L8 11.7l-4.2 2.5L5 9.5 1.3 6.4 6.1 6z",
}


@dataclass(frozen=True)
class Style:
    """Colour, matplotlib's marker and dashes, and the marker as an SVG path in 16 x 16."""

    colour: str
    mark: str
    dash: str | tuple[int, tuple[float, ...]]

    @property
    def outline(self) -> str:
        return _OUTLINES[self.mark]


AVERAGE_DASH = (0, (2, 1.5))
TEACHER_STYLE = Style(TEACHER_COLOUR, "*", (0, (4, 2)))


def style(index: int) -> Style:
    """Look of the run that stands at `index`; from the seventh on colours come again, with other dashes and marks."""
    round_ = index // len(_COLOURS)
    return Style(
        _COLOURS[index % len(_COLOURS)], _MARKS[(index + round_) % len(_MARKS)], _DASHES[round_ % len(_DASHES)]
    )
