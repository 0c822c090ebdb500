"""The model store: `agewatch models ...`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agewatch import api
from agewatch.cli.options import (
    JsonOption,
    LabelledArgument,
    PrecisionOption,
    TrustOption,
    WorkersOption,
    answer,
    trusted,
)
from agewatch.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The model store: list, compare, promote, roll back.")


@app.command("list")
def models_list(as_json: JsonOption = False) -> None:
    """List the models of the store, the current one marked, and what the gate decided about them.

    A file that can't be opened is named on stderr; the others are listed.
    """
    from agewatch.cli import display
    from agewatch.release import gate, store

    folder = Settings().model_store
    found, damaged = store.entries(folder)
    latest = {record.challenger: record for record in reversed(gate.records(folder))}
    brief = {
        model: {"promote": record.decision.promote, "reason": record.decision.reason, "over": record.champion}
        for model, record in latest.items()
    }
    listed = [
        {"file": str(entry.file), "model": entry.model, "bytes": entry.bytes, "current": entry.current}
        | {"decision": brief.get(entry.model)}
        for entry in found
    ]
    answer(as_json, {"models": listed}, display.models, found, latest)
    for file, reason in damaged.items():
        typer.echo(f"agewatch: {file.name} is left out: {reason}", err=True)


@app.command("compare")
def models_compare(
    challenger: Annotated[Path, typer.Argument(metavar="CHALLENGER", help="A .mar of the store.")],
    data: LabelledArgument,
    champion: Annotated[Path | None, typer.Option(help="Model file; default: the store's current one.")] = None,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a model with the current one on labelled pictures, and keep the decision in the store."""
    from agewatch.cli import display

    with display.progress(quiet=as_json) as on_progress:
        record = api.compare(
            challenger, data, champion=champion, precision=precision, workers=workers, progress=on_progress
        )
    answer(as_json, record, display.decision, record)


@app.command("smoke")
def models_smoke(
    file: Annotated[Path, typer.Argument(help="A .mar of the store.")],
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a model on a TorchServe of its own, and see whether it answers as it should; the store keeps what came out.

    Ends with 1 where it did not.
    """
    found = api.smoke_test(trusted(file, trust_code))
    answer(as_json, found, typer.echo, f"{found.model} {'passed' if found.passed else 'failed'}. {found.reason}")
    raise typer.Exit(0 if found.passed else 1)


@app.command("promote")
def models_promote(
    file: Annotated[Path, typer.Argument(help="A .mar of the store.")],
    force: Annotated[bool, typer.Option("--force", help="Promote without a decision, or against it.")] = False,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model the current one that passed `compare`: `score`, `serve` and the flows use it from now on."""
    pointer = api.promote(trusted(file, trust_code), force=force)
    if force:
        typer.echo("Forced: the decision about this model was not asked for.", err=as_json)
    _print_pointer(pointer, as_json)


@app.command("why")
def models_why(
    model: Annotated[str | None, typer.Argument(help="A file, version or id; default: the current one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell a model's life: what asked for it, what it learnt from, what was decided, and what it replaced."""
    from agewatch.release import why

    life = why.of(Settings().model_store, model)
    answer(as_json, life.content(), typer.echo, "\n".join([f"{life.model}", *why.told(life)]))


@app.command("rollback")
def models_rollback(as_json: JsonOption = False) -> None:
    """Make the model current again that was so before."""
    _print_pointer(api.rollback(), as_json)


def _print_pointer(pointer: Any, as_json: bool) -> None:
    content = {"file": pointer.file, "model": pointer.model, "promoted_at": pointer.promoted_at}
    answer(as_json, content, typer.echo, f"current: {pointer.model} ({pointer.file})")
