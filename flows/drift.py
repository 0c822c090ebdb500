"""Report drift of one archive's predictions. A plain script too: `python flows/drift.py [ARCHIVE_NAME]`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from agewatch.estimator.spec import Mode
from monitoring import drift
from monitoring.story import amount, signed
from monitoring.verdict import Verdict


@flow
def drift_report(archive: str | None = None, model: str | None = None, mode: Mode | None = None) -> State[None]:
    """Compare what arrived in an archive with what was accepted before, and write the report.

    `archive` is a name in the table, by default the only one; `model` is a model file, by default the store's
    current; `mode` is by default the latest. Drift, or too little data, completes the run: its message
    starts with the verdict. Raises what `monitoring.drift.run` raises.
    """
    done = drift.run(archive, model=model, mode=mode)
    create_link_artifact(
        done.html.as_uri(),
        link_text=str(done.html),
        key="drift-report",
        description=f"Drift report of archive {done.key.archive}, model {done.key.model}, mode {done.key.mode}",
    )
    told = f"Archive {done.key.archive}"
    create_markdown_artifact(_markdown(done.verdict), key="drift-verdict", description=told)
    return Completed(message=f"{done.verdict.answer}: {done.verdict.headline}")


def _markdown(verdict: Verdict) -> str:
    head = "| column | moved by | would be said from | drifted |\n|---|---|---|---|\n"
    return f"**{verdict.answer}**: {verdict.headline}\n\n{verdict.advice}\n\n{head}" + "".join(
        f"| {column.name} | {signed(column.effect, column.unit)} | {amount(column.threshold, column.unit)}"
        f" | {'yes' if column.drifted else 'no'} |\n"
        for column in verdict.columns
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("usage: python flows/drift.py [ARCHIVE_NAME]")
    sys.exit(0 if drift_report(*sys.argv[1:], return_state=True).is_completed() else 1)
