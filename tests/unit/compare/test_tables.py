"""The tables of a sweep are complete and escaped."""

from small_sweep import sweep_of

from dpdmd.compare import tables
from dpdmd.compare.sweep import Measure
from dpdmd.evaluation.statistics import mean_over_seeds


def test_the_latex_table_is_complete_and_escaped():
    sweep = sweep_of({"a_b": None}, title=r"K_1 & 5% {} <>|~^ #$ " + "\\")
    row = {
        "div|dino_1": tables.Cell({0: -0.25}, mean_over_seeds([-0.25]), 0.5, None),
        "b": tables.Cell({}, None, None, None),
    }
    sweep.measures["m"] = Measure("m", ("x",), "y", {"div|dino_1": "x", "b": "b"})
    assert (
        tables.as_latex(sweep, {"a_b": row})
        == r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{K\_1 \& 5\% \{\} \textless{}\textgreater{}\textbar{}\textasciitilde{}\textasciicircum{} \#\$ \textbackslash{}.}
\label{tab:a_sweep}
\begin{tabular}{lcc}
\toprule
 & div\textbar{}dino\_1 & b \\
\midrule
a\_b & $-0.250$ (0.500) & -- \\
\bottomrule
\end{tabular}
\end{table}
"""
    )
    assert r"|  | div\|dino_1 | b |" in tables.as_markdown(sweep, {"a_b": row}, "head").splitlines()
