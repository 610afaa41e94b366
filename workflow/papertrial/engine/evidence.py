"""How a paper's evidence.py registers its claims and figures, and the table it reads.

@claim("c1")
def iterations_saved(results: Evidence) -> list[Criterion]: ...

@figure("Convergence", caption="...", alt="...")
def convergence(results: Evidence, ax) -> None: ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from papertrial.engine.verdicts import Criterion


@dataclass(frozen=True)
class Evidence:
    """A paper's results, all units together.

    rows     columns problem, method, seed, the cells' and the metrics' (missing where a method has none);
             ``shared`` is True for rows of base models named under ``compares_with``.
    traces, timings   likewise.
    state    {(problem, method): {name: array}}.
    trials   every setting that was tried in tuning.
    """

    rows: pd.DataFrame
    traces: pd.DataFrame = field(default_factory=pd.DataFrame)
    timings: pd.DataFrame = field(default_factory=pd.DataFrame)
    state: Mapping[tuple[str, str], Mapping[str, np.ndarray]] = field(default_factory=dict)
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)

    def of(self, problem: str, method: str | None = None) -> pd.DataFrame:
        """The rows of a problem (and a method); an empty choice is an error, so no claim is judged on nothing."""
        rows = self.rows[self.rows["problem"] == problem]
        if method is not None:
            rows = rows[rows["method"] == method]
        if rows.empty:
            raise LookupError(f"no results of {method or 'any method'} on {problem}")
        return rows.dropna(axis=1, how="all")

    def paired(self, problem: str, metric: str, *by: str) -> pd.DataFrame:
        """One column a method, one row a (cell, seed): the metric, for paired differences."""
        rows = self.of(problem)
        return rows.pivot(index=[*by, "seed"], columns="method", values=metric)

    def standing_in(self, control: str, method: str) -> "Evidence":
        """The same results with the control's rows in place of the method's."""

        def swap(table: pd.DataFrame) -> pd.DataFrame:
            if table.empty or "method" not in table:
                return table
            kept = table[table["method"] != method]
            return kept.assign(method=kept["method"].replace(control, method))

        state = {k: v for k, v in self.state.items() if k[1] != method}
        state = {(p, method if m == control else m): v for (p, m), v in state.items()}
        return replace(self, rows=swap(self.rows), traces=swap(self.traces), timings=swap(self.timings), state=state)


@dataclass(frozen=True)
class Figure:
    name: str
    draw: Callable
    title: str
    caption: str
    alt: str
    panels: int
    size: tuple[float, float]


def claim(claim_id: str) -> Callable:
    """Register the function that turns results into the criteria of one claim."""

    def register(judge: Callable[[Evidence], list[Criterion]]) -> Callable:
        judge.claim_id = claim_id
        return judge

    return register


def figure(title: str, *, caption: str, alt: str, panels: int = 1, size: tuple[float, float] = (6.0, 3.6)) -> Callable:
    """Register a figure: a function of the results and an Axes (a list of them for several panels).

    Args:
        caption: what to look for.
        alt: what is to be seen, for those who can't.
        size: of one panel, in inches.
    """

    def register(draw: Callable) -> Callable:
        draw.figure = Figure(draw.__name__.replace("_", "-"), draw, title, caption, alt, panels, size)
        return draw

    return register


def claims_of(module: object) -> dict[str, Callable]:
    """{claim id: judging function} of an evidence module."""
    found = [f for f in vars(module).values() if hasattr(f, "claim_id")]
    return {f.claim_id: f for f in found}


def figures_of(module: object) -> list[Figure]:
    return [f.figure for f in vars(module).values() if hasattr(f, "figure") and isinstance(f.figure, Figure)]
