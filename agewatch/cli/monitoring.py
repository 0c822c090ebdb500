"""The command that judges what was scored: `drift`."""

from pathlib import Path
from typing import Annotated

import typer

from agewatch.cli.options import ArchiveOption, JsonOption, ModelOption, TableOption, answer

app = typer.Typer()


@app.command()
def drift(
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for index.html and drift.json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a scored archive with the model's reference and say whether its predictions drifted."""
    from agewatch.cli import display
    from monitoring.drift import run

    found = run(archive, model=model, predictions_dir=predictions, out=out)
    answer(as_json, found.content(), display.drift, found)
    raise typer.Exit(found.exit_code)
