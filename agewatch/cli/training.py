"""Commands that make and measure models: `train`, `package`, `evaluate`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from agewatch import api
from agewatch.cli.options import JsonOption, LabelledArgument, ModelOption, PrecisionOption, WorkersOption, answer
from agewatch.files import write_json

app = typer.Typer()


@app.command()
def train(
    data: LabelledArgument,
    recipe: Annotated[Path | None, typer.Option(help="TOML file of training settings.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Model file or safetensors to start from; default: the current model.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; one that was interrupted goes on.")
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the candidates on labelled pictures and print one comparison table on held-out ones."""
    from agewatch.labelled.tables import as_markdown, as_records

    trained = api.train(
        data, recipe=recipe, start=start, out=out, workers=workers, log=partial(typer.echo, err=as_json)
    )
    tables = {name: as_records(table) for name, table in trained.tables.items()}
    content = {"run": str(trained.run), "model": str(trained.model_folder), "served": trained.chosen, "tables": tables}
    text = [f"\nHeld-out faces: {name}\n\n{as_markdown(table)}" for name, table in trained.tables.items()]
    text.append(f"Everything about this run: {trained.run}\nNext: agewatch package {trained.model_folder}")
    answer(as_json, content, typer.echo, "\n".join(text))


@app.command()
def package(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Model folder that `train` left (RUN/model).")],
    version: Annotated[str | None, typer.Option(help="Version; default: the store's next number.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Package a trained model as a TorchServe .mar in the model store. It is not promoted."""
    from agewatch.estimator.model import AgeModel

    mar = api.package(folder, version=version)
    model_id, size = AgeModel.load(mar).id, mar.stat().st_size
    text = f"{model_id} in {mar} ({size / 1e6:.1f} MB)\nNext: agewatch models compare {mar} DATA..."
    answer(as_json, {"file": str(mar.resolve()), "model": model_id, "bytes": size}, typer.echo, text)


@app.command()
def evaluate(
    data: LabelledArgument,
    model: ModelOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also the pictures that the model learnt from.")] = False,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write everything into.")] = None,
    card: Annotated[Path | None, typer.Option(help="Folder to write MODEL_CARD.md and its figure into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on labelled pictures that it did not learn from: by age, sex, ethnicity, size and sharpness."""
    from agewatch.cli import display
    from agewatch.labelled import card as model_card

    path = api.model_file(model)
    for folder in (out and out.parent, card):  # before the work, not after it
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    with display.progress(quiet=as_json) as on_progress:
        found = api.evaluate(data, model=path, every=every, precision=precision, workers=workers, progress=on_progress)
    if out:
        write_json(out, dataclasses.asdict(found))
    if card:
        model_card.write(card, path, found)
    answer(as_json, found, display.evaluation, found)
