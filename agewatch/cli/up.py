"""The commands of the nights: `init` says which archives are scored when, `up` does it."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from agewatch.cli.options import JsonOption, answer
from agewatch.errors import UsageError
from agewatch.files import shared
from agewatch.settings import Settings

app = typer.Typer()
_AT = datetime(1900, 1, 1, 1)  # typer knows no time of day


@app.command()
def init(
    archives: Annotated[list[Path], typer.Argument(metavar="ARCHIVE...", help="Folders of pictures, or NAME=FOLDER.")],
    labelled: Annotated[
        list[Path] | None, typer.Option("--labelled", metavar="DATA", help="Labelled pictures to train on.")
    ] = None,
    at: Annotated[
        datetime,
        typer.Option(
            "--at", formats=["%H:%M"], metavar="HH:MM", show_default=False, help="When a night begins; default: 01:00."
        ),
    ] = datetime(1900, 1, 1, 1),
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Such as Europe/Berlin; default: this machine's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a `prefect.yaml` that says which archives are scored every night, for `agewatch up`."""
    from agewatch.nights import init as room
    from agewatch.nights.schedule import FILE

    with shared(FILE, Settings().home):
        named = room.write(archives, labelled=labelled or [], at=at.time(), timezone=timezone)
    zone = timezone or room.local_timezone()
    told = "".join(f"{name:<15} {folder}\n" for name, folder in named.items())
    content = {"file": str(FILE), "archives": {name: str(folder) for name, folder in named.items()}, "timezone": zone}
    answer(as_json, content, typer.echo, f"{told}{FILE} is written: every night at {at:%H:%M} {zone}. Now: agewatch up")


@app.command()
def up(
    serve: Annotated[bool, typer.Option("--serve", help="Serve the current model over REST too.")] = False,
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Use the Prefect server that PREFECT_API_URL names.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server, on 127.0.0.1.")] = 4200,
    print_systemd: Annotated[
        bool, typer.Option("--print-systemd", help="Print units that keep this running, and alerts apart from it.")
    ] = False,
) -> None:
    """Run what `prefect.yaml` says, every night, until Ctrl-C: Prefect's server, its deployments, and a worker."""
    if no_server and print_systemd:
        raise UsageError("--print-systemd is for a server of this machine's own; leave --no-server out.")
    if print_systemd:
        from agewatch.nights.systemd import units

        typer.echo(units(serve=serve, port=port), nl=False)
        return
    from flows.up import Wanted, run

    typer.echo("Starting ...")
    run(Wanted(serve=serve, server=not no_server, port=port), typer.echo)
