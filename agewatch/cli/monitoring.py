"""The commands that judge what was scored: `drift` and `drift accept`."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from agewatch.cli.options import ArchiveOption, JsonOption, ModelOption, TableOption, answer
from agewatch.errors import UsageError

app = typer.Typer(invoke_without_command=True, help="Say whether what arrives has drifted from what was accepted.")
_DAYS = ["%Y-%m-%d"]


def _day(when: datetime | None) -> date | None:
    return when and when.date()


@app.callback()
def drift(
    context: typer.Context,
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    by: Annotated[
        Literal["night", "week", "month", "captured-month"], typer.Option("--by", help="What a window is.")
    ] = "night",
    since: Annotated[datetime | None, typer.Option(formats=_DAYS, help="Leave out windows before this day.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=_DAYS, help="Judge as on this day; default: today.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report and drift.json.")] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Leave the faces out of the report.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare what arrived in an archive with what was accepted before, and say whether it drifted."""
    from agewatch.cli import display
    from monitoring.drift import run

    if context.invoked_subcommand is not None:
        context.obj = (archive, predictions)
        if as_json:
            raise UsageError(f"--json stands behind `{context.invoked_subcommand}`.")
        return
    found = run(
        archive, model=model, predictions_dir=predictions, out=out, by=by, since=_day(since), until=_day(until),
        with_pictures=not no_pictures,
    )  # fmt: skip
    answer(as_json, found.content(), display.drift, found)
    raise typer.Exit(found.exit_code)


@app.command()
def accept(
    context: typer.Context,
    archive: ArchiveOption = None,
    predictions: TableOption = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=_DAYS, help="First night that is accepted.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(formats=_DAYS, help="Last night; default: the newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accept what arrived as it should be: later nights are compared with it."""
    from monitoring.drift import accept as accept_nights

    outer_archive, outer_table = context.obj
    name, said = accept_nights(
        archive or outer_archive, predictions_dir=predictions or outer_table, first=_day(first), until=_day(until)
    )
    content = {"archive": name, **said.model_dump(mode="json", by_alias=True)}
    answer(as_json, content, typer.echo, f"Accepted what arrived in {name} from {said.first} to {said.until}.")
