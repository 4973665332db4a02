"""Styles: each run has one colour, marker and dash pattern in all plots and in the legend; the teacher is grey.

The colours are those of Okabe and Ito, which people with any kind of colour vision can distinguish, without black
(text) and yellow (too pale on white).
"""

from dataclasses import dataclass

INK, SOFT, FAINT = "#1b1f24", "#5b6470", "#dfe3e8"
TEACHER_COLOUR = "#6e7781"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
# The same markers as SVG paths in a box of 16 x 16, for the legend of the page.
_OUTLINES = {
    "o": "M8 3a5 5 0 1 1-.01 0z",
    "s": "M3.5 3.5h9v9h-9z",
    "^": "M8 2.5 13.5 12.5h-11z",
    "D": "M8 2 14 8 8 14 2 8z",
    "v": "M8 13.5 2.5 3.5h11z",
    "P": "M6 2.5h4V6h3.5v4H10v3.5H6V10H2.5V6H6z",
    "*": "M8 1.5 9.9 6l4.8.4-3.7 3.1 1.2 4.7L8 11.7l-4.2 2.5L5 9.5 1.3 6.4 6.1 6z",
}
PLOT_SETTINGS = {  # of matplotlib
    "text.parse_math": False,  # a prompt with two dollar signs is no formula
    "svg.fonttype": "none",  # text stays text: it has the page's font and can be searched and read aloud
    "svg.hashsalt": "dpdmd",  # the same plot gives the same bytes
    "font.size": 8,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 8,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
    "grid.color": "#eef0f3",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Style:
    """A colour, and matplotlib's marker and dash pattern."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]

    @property
    def outline(self) -> str:
        """The marker as an SVG path in 16 x 16."""
        return _OUTLINES[self.marker]


EMA_DASH = (0, (2, 1.5))
TEACHER_STYLE = Style(TEACHER_COLOUR, "*", (0, (4, 2)))


def run_style(index: int, member: int = 0) -> Style:
    """Return the style of run number `index`. From the seventh run on, colours repeat with other dashes and markers.

    Args:
        member: number of the run among runs of one colour, as the seeds of a configuration are.
    """
    place = index // len(_COLOURS) + member
    return Style(
        _COLOURS[index % len(_COLOURS)], _MARKERS[(index + place) % len(_MARKERS)], _DASHES[place % len(_DASHES)]
    )
