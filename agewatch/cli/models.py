"""The door to the model store: `agewatch models ...`. Rooms are imported inside commands, as in `cli`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agewatch.settings import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
PrecisionOption = Annotated[Literal["auto", "f32", "bf16"], typer.Option(help="Number format of the network.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Worker processes.")]
LabelledArgument = Annotated[
    list[Path], typer.Argument(metavar="DATA...", help="Labelled pictures: age folders, UTKFace names, CSV or Parquet.")
]

models_app = typer.Typer(no_args_is_help=True, help="The model store: list, compare, promote, roll back.")


@models_app.command("list")
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


@models_app.command("compare")
def models_compare(
    challenger: Annotated[Path, typer.Argument(metavar="CHALLENGER", help="A .mar of the store.")],
    data: LabelledArgument,
    champion: Annotated[Path | None, typer.Option(help="Model file; default: the store's current one.")] = None,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Compare a model with the current one on labelled pictures, and keep the decision in the store."""
    from agewatch.cli import display
    from agewatch.release import gate

    settings = Settings()
    with display.progress(quiet=as_json) as on_progress:
        record = gate.compare(
            settings.model_store, model_file(challenger), model_file(champion), data, cache=settings.cache,
            workers=workers, precision=precision, progress=on_progress,
        )  # fmt: skip
    answer(as_json, record, display.decision, record)


@models_app.command("promote")
def models_promote(
    file: Annotated[Path, typer.Argument(help="A .mar of the store.")],
    force: Annotated[bool, typer.Option("--force", help="Promote without a decision, or against it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model the current one that passed `compare`: `score`, `serve` and the flows use it from now on."""
    from agewatch.release import gate

    pointer = gate.promote(Settings().model_store, file, force=force)
    if force:
        typer.echo("Forced: the decision about this model was not asked for.", err=as_json)
    _print_pointer(pointer, as_json)


@models_app.command("rollback")
def models_rollback(as_json: JsonOption = False) -> None:
    """Make the model current again that was so before."""
    from agewatch.release import store

    _print_pointer(store.rollback(Settings().model_store), as_json)


def model_file(model: Path | None) -> Path:
    """The model file to use: see `agewatch.release.store.resolve`, of the store that the settings name."""
    from agewatch.release.store import resolve

    return resolve(model, Settings().model_store)


def answer(as_json: bool, content: Any, show: Callable[..., None], *what: Any) -> None:
    """Print the content, a dictionary or dataclass, as one JSON object, or show a person what there is."""
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, default=dataclasses.asdict))
    else:
        show(*what)


def _print_pointer(pointer: Any, as_json: bool) -> None:
    content = {"file": pointer.file, "model": pointer.model, "promoted_at": pointer.promoted_at}
    answer(as_json, content, typer.echo, f"current: {pointer.model} ({pointer.file})")
