"""The files of the predictions table: `agewatch table ...`."""

from datetime import UTC, datetime

import typer

from agewatch.cli.options import JsonOption, TableOption, answer
from agewatch.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The files of the predictions table: tidy.")


@app.callback()
def table() -> None:
    """The files of the predictions table."""


@app.command()
def tidy(predictions: TableOption = None, as_json: JsonOption = False) -> None:
    """Merge the table's small files, and delete those that no version of the last 30 days had. Runs may go on."""
    from agewatch.upkeep import table as room

    done = room.tidy(predictions or Settings().predictions, datetime.now(UTC))
    told = f"Files with rows: {done.files_before:,} before, {done.files:,} now, of {done.bytes / 1e6:,.1f} MB."
    gone = (
        f"Deleted, as no version of the last 30 days had them: {done.deleted:,}, of {done.deleted_bytes / 1e6:,.1f} MB."
    )
    kept = "In object storage nothing is deleted: older versions stay."
    answer(as_json, done, typer.echo, f"{told} {kept if done.is_kept else gone}")
