"""Evidently's part of a report: how each measure is distributed in the baseline and now.

Evidently takes a test as a function of two columns and has no place for a verdict that was reached elsewhere, while it
draws from a sample and would judge by that. So this one file hands the verdict to a registered test through a context
variable, which is set only while Evidently runs.
"""

import math
import os
from contextvars import ContextVar
from pathlib import Path
from uuid import UUID

import pandas as pd

os.environ["DO_NOT_TRACK"] = os.environ["ITERATIVE_DO_NOT_TRACK"] = "1"  # before evidently is imported

import evidently
from evidently.core.report import Snapshot
from evidently.legacy.calculations.stattests import StatTest, register_stattest
from evidently.legacy.core import ColumnType
from evidently.metrics import MedianValue, ValueDrift
from evidently.sdk.models import ProjectModel
from evidently.ui.workspace import Workspace

from monitoring.columns import ColumnDrift
from monitoring.evidence import Floats
from monitoring.verdict import Verdict

MAX_DRAWN = 20_000
"""Faces drawn a side; a million take 10 s and more and look the same. The verdict is over all of them."""
MIN_DRAWN = 1_000
"""Above this the larger side is drawn with as many faces as the smaller, so that bars can be compared."""


_judged: ContextVar[dict[str, ColumnDrift]] = ContextVar("_judged")


def _as_judged(_: pd.Series, current: pd.Series, __: ColumnType, ___: float) -> tuple[float, bool]:
    column = _judged.get()[str(current.name)]
    return abs(column.effect), column.drifted


_METHOD = "agewatch_change"
register_stattest(StatTest(_METHOD, "change of the mean", [ColumnType.Numerical]), _as_judged)


def draw(verdict: Verdict, before: dict[str, Floats], now: dict[str, Floats]) -> Snapshot:
    """Draw the measures that both sides have as Evidently does, with the verdict's own word on each."""
    names = [name for name in before if name in now]
    can_tell = verdict.answer != "too_little_data"  # else Evidently would say "drift not detected"
    judged = {
        column.name: column
        for column in verdict.columns
        if column.name in names and can_tell and math.isfinite(column.threshold)
    }
    metrics = [
        ValueDrift(column=name, method=_METHOD, threshold=judged[name].threshold)
        if name in judged
        else MedianValue(column=name)
        for name in names
    ]
    definition = evidently.DataDefinition(numerical_columns=names)
    sides = [pd.DataFrame({name: side[name] for name in names}) for side in (before, now)]
    drawn = min(MAX_DRAWN, max(MIN_DRAWN, min(len(side) for side in sides)))
    sides = [side.sample(drawn, random_state=0) if len(side) > drawn else side for side in sides]
    reference, current = (evidently.Dataset.from_pandas(side, data_definition=definition) for side in sides)
    token = _judged.set(judged)
    try:
        snapshot = evidently.Report(metrics, include_tests=True).run(current_data=current, reference_data=reference)
    finally:
        _judged.reset(token)
    for result in snapshot.metric_results.values():
        for widget in result.widget or []:
            widget.tabs.reverse()  # the histogram says more than the values in the order of the rows
    return snapshot


def page(drawn: Snapshot) -> str:
    """What was drawn as one HTML page that needs no network."""
    return str(drawn.get_html_str(as_iframe=False))


def keep(drawn: Snapshot, project: Path, archive: str) -> None:
    """Add what was drawn to an archive's project in a workspace of Evidently's, for `evidently ui`; no rows are in it.

    `project` is a folder in the workspace, named by the project's id. Raises OSError where it can't be written.
    """
    project.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    held, id_ = Workspace.create(str(project.parent)), UUID(project.name)
    if not (project / "metadata.json").is_file():
        held.add_project(ProjectModel(id=id_, name=archive))
    held.add_run(id_, drawn, include_data=False)
