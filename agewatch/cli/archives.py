"""The archives of the predictions table: `agewatch archives ...`."""

from typing import Annotated

import typer

from agewatch.cli.options import JsonOption, TableOption, answer, utf8
from agewatch.errors import UsageError
from agewatch.settings import Settings
from agewatch.words import counted

app = typer.Typer(invoke_without_command=True, help="The archives of the table: list, move, remove.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the archive in the table.", callback=utf8)]


@app.callback()
def archives(context: typer.Context, predictions: TableOption = None, as_json: JsonOption = False) -> None:
    """List the archives of the table, or move or remove one."""
    from agewatch.cli import display
    from agewatch.scoring import archives as room

    context.obj = predictions or Settings().predictions
    if as_json and context.invoked_subcommand is not None:
        raise UsageError(f"--json stands behind `{context.invoked_subcommand}`.")
    if context.invoked_subcommand is None:
        found = room.entries(context.obj)
        answer(as_json, {"archives": [vars(entry) for entry in found]}, display.archives, found)


@app.command()
def move(
    context: typer.Context,
    name: NameArgument,
    place: Annotated[str, typer.Argument(metavar="FOLDER", help="Where it lies now.")],
    as_json: JsonOption = False,
) -> None:
    """Bind an archive to the folder that it was moved to; its rows stay."""
    from agewatch.scoring import archives as room

    moved = room.move(context.obj, name, place)
    answer(as_json, moved, typer.echo, f"{moved.name} is now {moved.root}; {counted(moved.files, 'file')} with rows.")


@app.command()
def remove(context: typer.Context, name: NameArgument, as_json: JsonOption = False) -> None:
    """Erase an archive: its rows, the table's history, its reports and its gallery. Its pictures are not touched."""
    from agewatch.gallery.page import default_folder
    from agewatch.scoring import archives as room
    from agewatch.scoring.predictions import known_name
    from monitoring import index
    from monitoring.drift import archive_dir, project_dir

    settings, known = Settings(), known_name(context.obj, name)
    reports, project = archive_dir(settings.reports, known), project_dir(settings.evidently, known)
    erased = room.remove(context.obj, name, reports, project, default_folder(known))
    index.write(settings.reports)
    told = f"{erased.name} is erased: the rows of {counted(erased.files, 'file')}, its reports and its gallery."
    answer(as_json, erased, typer.echo, told)
