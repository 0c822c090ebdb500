"""True ages that come late: `agewatch labels ...`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from agewatch.cli.options import ArchiveOption, JsonOption, ModelOption, TableOption, answer
from agewatch.errors import UsageError
from agewatch.settings import Settings
from agewatch.words import counted

app = typer.Typer(invoke_without_command=True, help="True ages that come late: what they say, add, ask, recalibrate.")


@app.callback()
def labels(
    context: typer.Context,
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the labels of an archive tell of the model's error: how large it is, where, and whether it rose."""
    from agewatch.cli import display
    from agewatch.scoring.baseline import accepted
    from monitoring import error
    from monitoring.record import measured_mae

    if context.invoked_subcommand is not None:
        if as_json or archive or model or predictions:
            raise UsageError(f"Options stand behind `{context.invoked_subcommand}`.")
        return
    table, (key, model_path) = _meant(archive, model, predictions)
    told = accepted(table, key.archive)
    found = error.measure(table, key, model_path, datetime.now(UTC).date(), told[-1] if told else None)
    measured = found and measured_mae(found)
    content = {"archive": key.archive, "model": key.model, "mode": key.mode, "measured_mae": measured}
    answer(as_json, content | {"slices": found.slices if found else []}, display.labels, key.archive, found)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet: path, age (or birth_date), face.")],
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join true ages to faces that have rows. A birth date becomes the age at capture and is not kept."""
    from agewatch.labelled import late

    table, (key, _) = _meant(archive, model, predictions)
    added = late.add(table, key, file)
    said = f"{counted(added.added, 'label')} added, {added.unchanged:,} known already"
    answer(
        as_json,
        added,
        typer.echo,
        "\n".join([*added.told, f"{said}; of {added.archive} {counted(added.labels, 'face')} with a label now."]),
    )
    raise typer.Exit(0 if added.added or added.unchanged else 1)


@app.command()
def ask(
    out: Annotated[Path, typer.Option("--out", help="Folder for the page; its pictures are in it.")],
    n: Annotated[int, typer.Option("-n", min=1, help="So many faces.")] = 20,
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw faces of the newest nights and write one offline page that asks for their ages."""
    from monitoring.asking import ask as draw

    table, (key, _) = _meant(archive, model, predictions)
    asked = draw(table, key, n, out)
    lost = f" {asked.lost} others could not be shown." if asked.lost else ""
    content = {**vars(asked), "page": str(asked.page)}
    answer(as_json, content, typer.echo, f"{asked.n} of {asked.of:,} faces without a label: {asked.page}{lost}")


@app.command()
def recalibrate(
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Offer the model with intervals that fit this archive, as a file of its own that is not made current."""
    from agewatch.labelled.evaluate import TRAINED_SPLITS
    from agewatch.release.recalibrate import recalibrate as calibrate
    from agewatch.scoring.predictions import archives
    from monitoring.error import labelled

    table, (key, model_path) = _meant(archive, model, predictions)
    faces = labelled(table, key, model_path, datetime.now(UTC).date(), TRAINED_SPLITS)
    settings = Settings()
    found = calibrate(
        faces, model_path, archives(table)[key.archive], key.mode, name=key.archive, store=settings.model_store,
        cache=settings.cache,
    )  # fmt: skip
    said = (
        f"{found.model} is calibrated on {found.n:,} labelled faces of {key.archive} ({found.lost:,} can't be read).\n"
        f"The old intervals hold {found.before:.1%} of them and are {found.width_before:.1f} years wide on average; the"
        f" new are {found.width:.1f}, and hold {found.low:.1%} to {found.high:.1%} of as many faces like these.\n"
        f"It is used only where told: `--model {found.file}`, or `agewatch models promote {found.file} --force`."
    )
    answer(as_json, {**vars(found), "file": str(found.file)}, typer.echo, said)


def _meant(archive: str | None, model: Path | None, predictions: Path | None) -> tuple[Path, Any]:
    """The table, and of what a person named the key of rows and the model's file."""
    from monitoring.drift import key_of

    table = predictions or Settings().predictions
    return table, key_of(archive, model, table)
