"""The faces of an archive to look at: `gallery`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from agewatch import api
from agewatch.cli.options import JsonOption, ModelOption, TableOption, WorkersOption, answer, statuses_of, utf8

app = typer.Typer()


@app.command()
def gallery(
    archive: Annotated[
        str | None,
        typer.Argument(metavar="[ARCHIVE]", help="Name of the archive in the table, or its folder.", callback=utf8),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of its own; default: one in AGEWATCH_HOME."),
    ] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only this status; `refused` means all refusals.")] = None,
    sort: Annotated[
        Literal["age", "uncertainty", "size", "newest", "difference"] | None,
        typer.Option(help="Youngest, least certain, largest, newest (default), or most different (--compare) first."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Ages of a second model beside: a file, or an id in the table.")
    ] = None,
    model: ModelOption = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Rows of all models in the table.")] = False,
    predictions: TableOption = None,
    with_gone: Annotated[bool, typer.Option("--with-gone", help="Files that are gone, too.")] = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page that shows an archive's faces with their ages, files without a face, and what was refused."""
    from agewatch.cli import display

    with display.progress(quiet=as_json, doing="drawing") as on_progress:
        made = api.gallery(
            archive, out=out, model=model, predictions=predictions, statuses=statuses_of(status), sort=sort,
            compare=compare, all_models=all_models, with_gone=with_gone, workers=workers, progress=on_progress,
        )  # fmt: skip
    answer(as_json, {**vars(made), "page": str(made.page)}, display.gallery, made)
