"""Report drift of one archive's predictions. A plain script too: `python flows/drift.py [ARCHIVE_NAME]`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from agewatch.errors import AgewatchError
from agewatch.estimator.spec import Mode
from flows import shown
from flows.steps import failed
from monitoring import drift


@flow
def drift_report(
    archive: str | None = None, model: str | None = None, mode: Mode | None = None, pictures: bool = True
) -> State[None]:
    """Compare what arrived in an archive with what was accepted before, and write the report.

    `archive` is a name in the table, by default the only one; `model` is a model file, by default the store's
    current; `mode` is by default the latest; with
    `pictures` the report holds faces. Drift, or too little data, completes the run: its message
    starts with the verdict. What `monitoring.drift.run` raises fails it, told without paths.
    """
    try:
        done = drift.run(archive, model=model, mode=mode, with_pictures=pictures)
    except AgewatchError as error:  # told without a trace
        return failed(error)
    shown.judged(done)
    return Completed(message=f"{done.verdict.answer}: {done.verdict.headline}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("usage: python flows/drift.py [ARCHIVE_NAME]")
    sys.exit(0 if drift_report(*sys.argv[1:], return_state=True).is_completed() else 1)
