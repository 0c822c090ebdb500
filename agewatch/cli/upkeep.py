"""Commands for what surrounds the nights: `backup`, `restore`, `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from agewatch.cli.options import JsonOption, answer
from agewatch.settings import Settings

app = typer.Typer()


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; one of that name is replaced.")],
    as_json: JsonOption = False,
) -> None:
    """Write one file with all that can't be made again: rows, baselines, labels, canaries, models, ledger, schedule."""
    from agewatch.nights.schedule import FILE
    from agewatch.upkeep import backup as room

    kept = room.backup(Settings(), file, FILE)
    told = (
        f"{kept.file}: {', '.join(kept.archives) or 'no archive'}; {kept.files:,} files, {kept.models} of them models,"
        f" {kept.bytes / 1e6:,.1f} MB. It holds what is known of faces: keep it as private as they are."
    )
    answer(as_json, kept, typer.echo, told)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `agewatch backup` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Make a home from a backup; one that holds a table is not touched. AGEWATCH_HOME says where."""
    from agewatch.nights.schedule import FILE
    from agewatch.upkeep import restore as room

    restored = room.restore(Settings(), file, FILE)
    told = f"{restored.home} is as it was at {restored.made_at}: {', '.join(restored.archives) or 'no archive'}."
    answer(as_json, restored, typer.echo, "\n".join([told, *restored.notes]))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Look at all that nights depend on, and say what is wrong and how to mend it. Ends with 1 where something is."""
    from agewatch.cli import display
    from agewatch.upkeep.doctor import examine

    findings = examine(Settings())
    is_wrong = any(finding.state == "wrong" for finding in findings)
    answer(as_json, {"ok": not is_wrong, "findings": findings}, display.findings, findings)
    raise typer.Exit(1 if is_wrong else 0)
