"""What a run shows on Prefect's page. All of it is best effort: a server that is away costs no row and no run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.settings import PREFECT_API_URL

from agewatch.nights.status import shown_at
from agewatch.scoring.score import Summary
from agewatch.settings import Settings

if TYPE_CHECKING:  # seconds to import, for nights whose archive is gone
    from monitoring.record import DriftRun

REPORT_SECONDS = 10.0
"""Shortest time between two reports of progress: each costs the API a few requests."""
_ASK_SECONDS = 5.0


class Progress:
    """Shows how far a run is in its log and as a progress artifact, at most every REPORT_SECONDS."""

    def __init__(self) -> None:
        self._logger = get_run_logger()
        self._artifact = best_effort(
            create_progress_artifact, 0.0, key="score-progress", description="Files done of those to do"
        )
        self._shown = monotonic()

    def __call__(self, done: int, total: int, counts: Counter[str]) -> None:
        """Show it, unless it was shown just now; see `agewatch.progress`."""
        if done < total and monotonic() - self._shown < REPORT_SECONDS:
            return
        self._shown = monotonic()
        told = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        self._logger.info("%d of %d files done: %s", done, total, told or "no rows")
        if isinstance(self._artifact, UUID):
            best_effort(update_progress_artifact, self._artifact, 100.0 * done / total if total else 100.0)


def best_effort(show: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call what needs Prefect's server; None, and a line in the log, where it is away."""
    try:
        require_server()
        return show(*arguments, **named)
    except Exception as error:  # of a client, a server or a network: nothing that a night may end by
        get_run_logger().warning("Prefect's server did not take what was to be shown (%s).", type(error).__name__)
        return None


def require_server() -> None:
    """Raise httpx.HTTPError where Prefect's server does not answer.

    Prefect's client tries a server that is away again for a minute, in which a night would stand still.
    """
    if api := PREFECT_API_URL.value():
        httpx.get(f"{api}/health", timeout=_ASK_SECONDS, trust_env=False).raise_for_status()


def scored(summary: Summary) -> None:
    """Show what a scoring run found, in counts."""
    rows = {
        "Model": summary.model,
        "Mode": summary.mode,
        "Files found": summary.found,
        "Scored now": summary.scored,
        "Refused of these": summary.refused_now,
        "Skipped, scored before": summary.skipped,
        "Faces": summary.faces,
        "Files without a face": summary.no_face,
        **{f"Refused: {code}": n for code, n in summary.refused.items()},
        "Other files, ignored": summary.ignored,
        "Disappeared since": summary.disappeared,
        "Folders that can't be listed": len(summary.unlisted),
        "Seconds": summary.seconds,
    }
    table = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    told = f"Archive {summary.archive}"
    best_effort(create_markdown_artifact, table, key="score-summary", description=told)


def judged(done: "DriftRun") -> None:
    """Show a verdict, and the way to its report."""
    told = f"Archive {done.key.archive}, model {done.key.model}, mode {done.key.mode}"
    best_effort(create_markdown_artifact, _verdict(done), key="drift-verdict", description=told)


def report_link(html: Path) -> str | None:
    """The address of a report on `agewatch up`'s pages; None while it does not run, or shows other reports.

    A browser refuses `file://` links on Prefect's page, and they would tell where things lie.
    """
    settings = Settings()
    pages, reports = shown_at(settings.home, "url"), settings.reports.resolve()
    if pages is None or not html.resolve().is_relative_to(reports):
        return None
    return f"{pages}/{quote(html.resolve().relative_to(reports).as_posix())}"


def _verdict(done: "DriftRun") -> str:
    from monitoring import first_screen

    lines = first_screen.of_run(done).lines(with_names=False)
    told = "".join(f"- **{label}**: {line}\n" for label, line in lines)
    link = report_link(done.html)
    return told if link is None else f"{told}\n[The report of {done.key.archive}]({link})\n"
