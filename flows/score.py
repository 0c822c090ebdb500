"""Score one archive. A plain script too: `python flows/score.py ARCHIVE`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys
from collections import Counter
from time import monotonic
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from agewatch import api
from agewatch.errors import GoneError
from agewatch.estimator.spec import Mode
from agewatch.scoring.score import Summary

REPORT_SECONDS = 10.0
"""Shortest time between two reports of progress: each costs the API a few requests."""


@flow
def score_archive(
    archive_folder: str,
    name: str | None = None,
    model: str | None = None,
    mode: Mode = "detect",
    max_refused: float = 0.05,
    max_gone: float = 0.2,
    exclude: list[str] | None = None,
) -> State[None]:
    """Estimate the age of every face in a folder of pictures that has no rows yet.

    `name` is the archive's, by default its folder's; `model` is a model file, by default the store's current.
    A refused share (0..1) of the files found above `max_refused` fails the run, as does a share above `max_gone` of the
    files of the run before that are gone, or an archive that is gone altogether; rows are committed whatever the
    outcome. `exclude` names files and folders to pass over, as in .gitignore. Raises what else
    `agewatch.score_archive` raises.
    """
    try:
        summary = api.score_archive(
            archive_folder,
            model=model,
            faces=mode,
            max_refused=max_refused,
            max_gone=max_gone,
            exclude=exclude or (),
            name=name,
            progress=_Progress(),
        )
    except GoneError as gone:  # a finding about the archive, not a failure of this program: told without a trace
        return Failed(message=str(gone))
    told = f"Archive {summary.archive}"
    create_markdown_artifact(_markdown(summary), key="score-summary", description=told)
    refused = sum(summary.refused.values())
    if summary.problem:
        return Failed(message=summary.problem)
    return Completed(
        message=f"{summary.scored} of {summary.found} files were scored now; in all {summary.faces} faces,"
        f" {summary.no_face} files without a face, {refused} refused."
    )


class _Progress:
    """Shows how far a run is in its log and as a progress artifact, at most every REPORT_SECONDS."""

    def __init__(self) -> None:
        self._logger = get_run_logger()
        artifact = create_progress_artifact(0.0, key="score-progress", description="Files done of those to do")
        assert isinstance(artifact, UUID)  # a coroutine only where the caller is one
        self._artifact = artifact
        self._shown = monotonic()

    def __call__(self, done: int, total: int, counts: Counter[str]) -> None:
        if done < total and monotonic() - self._shown < REPORT_SECONDS:
            return
        self._shown = monotonic()
        told = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        self._logger.info("%d of %d files done: %s", done, total, told or "no rows")
        update_progress_artifact(self._artifact, 100.0 * done / total if total else 100.0)


def _markdown(summary: Summary) -> str:
    rows = {
        "Model": summary.model,
        "Mode": summary.mode,
        "Files found": summary.found,
        "Scored now": summary.scored,
        "Skipped, scored before": summary.skipped,
        "Faces": summary.faces,
        "Files without a face": summary.no_face,
        **{f"Refused: {code}": n for code, n in summary.refused.items()},
        "Other files, ignored": summary.ignored,
        "Disappeared since": summary.disappeared,
        "Folders that can't be listed": len(summary.unlisted),
        "Seconds": summary.seconds,
        "Table": summary.predictions,
    }
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python flows/score.py ARCHIVE")
    sys.exit(0 if score_archive(sys.argv[1], return_state=True).is_completed() else 1)
