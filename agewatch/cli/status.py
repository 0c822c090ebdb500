"""How the nights stand: `agewatch status`, and the alerts that a timer asks for."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from agewatch.cli.options import JsonOption, answer
from agewatch.settings import Settings

app = typer.Typer()


@app.command()
def status(
    alert: Annotated[
        bool, typer.Option("--alert", help="Send what is new since the last alert, as prefect.yaml says.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show each archive's last and next night, what runs, drift, the model, the disk; also while nothing runs.

    Ends with 6 where a night is missing, late, silent or under way for a day, with 4 where drift stands. `--alert`
    sends what somebody must be told, once, and ends with 1 where that was not taken: it is sent again the next time.
    """
    if alert:
        _alert(as_json)
        return
    from agewatch.cli import screen
    from agewatch.nights import status as room

    found = room.look(Settings())
    answer(as_json, found.content(), screen.status, found)
    raise typer.Exit(found.exit_code)


def _alert(as_json: bool) -> None:
    from agewatch.nights import alerts, schedule
    from agewatch.nights.ledger import Ledger

    planned, set_up = schedule.read(), alerts.channels()
    ledger = Ledger(Settings().home)
    schedule.settle(ledger, planned)
    ways: dict[str, Any] = {}
    if set_up.command is not None:
        ways["command"] = partial(alerts.by_command, set_up.command)
    if set_up.webhook is not None:
        ways["webhook"] = partial(alerts.by_webhook, set_up.webhook)
    if set_up.block is not None:
        from flows.alerts import by_block

        ways["block"] = partial(by_block, set_up.block)
    folders = [Path(one.folder) for one in planned if one.folder]
    done = alerts.send(ledger, ways or {alerts.PRINTED: partial(_print, as_json)}, folders)
    content = {way: alert.content() for way, alert in done.taken.items()}
    answer(as_json, {"sent": content, "failed": done.failed}, _told, done.taken, done.failed)
    if not ways and not as_json:
        typer.echo(
            "prefect.yaml names no way for alerts: `definitions: agewatch: alert:` takes a command, a webhook or a"
            " block of Prefect's. Until then they are printed here."
        )
    for reason in done.failed.values():
        typer.echo(f"agewatch: {reason} It is sent again the next time.", err=True)
    raise typer.Exit(1 if done.failed else 0)


def _print(as_json: bool, alert: Any) -> None:
    if not as_json:
        typer.echo(f"{alert.subject}\n\n{alert.text}\n")


def _told(taken: dict[str, Any], failed: dict[str, str]) -> None:
    if not taken and not failed:
        typer.echo("Nothing is new since the last alert.")
    for way, alert in taken.items():
        if way != "printed":
            typer.echo(f"Sent by {way}: {alert.subject}")
