"""Score one archive. A plain script too: `python flows/score.py ARCHIVE`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from agewatch import api
from agewatch.errors import AgewatchError
from agewatch.estimator.spec import Mode
from agewatch.scoring.score import Summary
from agewatch.words import counted
from flows import shown
from flows.steps import failed

Share = Annotated[float, Field(ge=0, le=1)]


@flow
def score_archive(
    archive_folder: str,
    name: str | None = None,
    model: str | None = None,
    mode: Mode = "detect",
    max_refused: Share = 0.05,
    max_gone: Share = 0.2,
    exclude: list[str] | None = None,
    ray: str | None = None,
) -> State[None]:
    """Estimate the age of every face in a folder of pictures that has no rows yet.

    `name` is the archive's, by default its folder's; `model` is a model file, by default the store's current.
    A refused share (0..1) of the files found above `max_refused` fails the run, as does a share above `max_gone` of the
    files of the run before that are gone, or an archive that is gone altogether; rows are committed whatever the
    outcome. `exclude` names files and folders to pass over, as in .gitignore, `ray` the HOST:PORT of a Ray cluster that
    does the work. What `agewatch.score_archive` raises fails the run, told without paths.
    """
    try:
        summary = scored(
            archive_folder, name=name, model=model, faces=mode, max_refused=max_refused, max_gone=max_gone,
            exclude=exclude or (), ray=ray,
        )  # fmt: skip
    except AgewatchError as error:  # a finding about the archive or the request: told without a trace
        return failed(error)
    refused = sum(summary.refused.values())
    if summary.problem:
        return Failed(message=summary.problem)
    return Completed(
        message=f"{summary.scored} of {summary.found} files were scored now; in all {counted(summary.faces, 'face')},"
        f" {counted(summary.no_face, 'file')} without a face, {refused} refused."
    )


def scored(archive_folder: str, *, ray: str | None = None, **said: Any) -> Summary:
    """Score what is new, on this machine or a Ray cluster's, and show it; see `agewatch.score_archive`."""
    where: Any = {"runner": "ray", "address": ray} if ray else {}
    summary = api.score_archive(archive_folder, **said, **where, progress=shown.Progress())
    shown.scored(summary)
    return summary


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python flows/score.py ARCHIVE")
    sys.exit(0 if score_archive(sys.argv[1], return_state=True).is_completed() else 1)
