"""Commands that score archives and give their rows out: `score`, `export`, `demo`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from agewatch import api
from agewatch.cli.options import (
    ArchiveOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    TableOption,
    WorkersOption,
    answer,
    statuses_of,
)
from agewatch.errors import UsageError
from agewatch.files import shared
from agewatch.settings import Settings

app = typer.Typer()
FacesOption = Annotated[Literal["detect", "crop"], typer.Option(help="Find faces, or take each picture as one face.")]


@app.command()
def score(
    place: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="Folder of pictures, zip or tar file, or s3://, gs://, az:// URL.")
    ],
    model: ModelOption = None,
    predictions: TableOption = None,
    faces: FacesOption = "detect",
    engine: Annotated[
        Literal["auto", "openvino", "torch", "torchserve"],
        typer.Option(help="What runs the network; torchserve: the server at --url."),
    ] = "auto",
    url: Annotated[str | None, typer.Option(help="Address of an agewatch server: http://127.0.0.1:8080.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Its token; default: AGEWATCH_TOKEN, or what `serve` wrote here.")
    ] = None,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    max_refused: Annotated[float, typer.Option(min=0, max=1, help="Refused share that ends with exit 3.")] = 0.05,
    max_gone: Annotated[float, typer.Option(min=0, max=1, help="Share of files gone that ends with exit 6.")] = 0.2,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Pass over files and folders, as in .gitignore.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=1, help="Memory of all workers together, GB; default: 6, or AGEWATCH_MEMORY_GB.")
    ] = None,
    archive: ArchiveOption = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score everything again.")] = False,
    retry_refused: Annotated[bool, typer.Option("--retry-refused", help="Score the refused files again.")] = False,
    anew_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="What only an older model scored: the baseline, and the rest in so many minutes."),
    ] = None,
    runner: Annotated[
        Literal["local", "ray"], typer.Option(help="Workers of this machine, or of a Ray cluster's machines.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster's; default: one of this machine alone.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score every picture of ARCHIVE that is not scored yet: one row a face, one honest row for every file."""
    from agewatch.cli import display

    home = Settings().home
    if predictions is not None:  # else it is made with the first thing that is written into it
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with display.progress(quiet=as_json) as on_progress, shared(predictions, home):
        summary = api.score_archive(
            place, model=model, predictions=predictions, faces=faces, engine=engine, url=url,
            key_file=key_file, precision=precision, workers=workers, max_refused=max_refused, max_gone=max_gone,
            exclude=exclude or (), memory_gb=memory_gb, name=archive,
            again="all" if rescore else "refused" if retry_refused else "nothing", anew_minutes=anew_minutes,
            runner=runner, address=address, progress=on_progress,
        )  # fmt: skip
    answer(as_json, summary, display.summary, summary)
    raise typer.Exit(summary.exit_code)


@app.command()
def explain(
    picture: Annotated[Path, typer.Argument(help="A picture with a face.")],
    out: Annotated[Path, typer.Option("--out", help="FILE.png: colours over the face. FILE.json: years a cell.")],
    model: ModelOption = None,
    faces: FacesOption = "detect",
    face: Annotated[int, typer.Option(min=0, help="Which face; 0 is the largest.")] = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Show why a face has its age: how the estimate changes where a part of the face is hidden."""
    found = api.explain(picture, out, model=model, faces=faces, face=face, precision=precision)
    typer.echo(f"{found.age:.1f} years; what hiding a part of the face changes is in {out}.")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write; with xmp a folder.")],
    format: Annotated[
        Literal["csv", "parquet", "json", "megadetector", "xmp"], typer.Option(help="Form of the file.")
    ] = "csv",
    predictions: TableOption = None,
    archive: ArchiveOption = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Keep rows of this status; `refused` means all refusals.")
    ] = None,
    model: ModelOption = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Rows of all models and modes.")] = False,
    with_gone: Annotated[bool, typer.Option("--with-gone", help="Rows of files that are gone, too.")] = False,
    into_archive: Annotated[
        bool, typer.Option("--into-archive", help="With xmp: --out may lie in the archive.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write rows to a file: of one model (the current) and each archive's latest mode, so that a path stands once."""
    from agewatch.cli import display

    statuses = statuses_of(status)
    if all_models and format in ("xmp", "megadetector"):
        raise UsageError(f"--format {format} tells of each face once: name a --model, or none.")
    if format == "xmp":
        if statuses:
            raise UsageError("--format xmp is of faces: --status says nothing there.")
        with shared(out, Settings().home):
            written = api.sidecars(
                out, model=model, predictions=predictions, archive=archive, into_archive=into_archive,
                with_gone=with_gone,
            )  # fmt: skip
        answer(as_json, {**vars(written), "out": str(out.resolve())}, display.sidecars, written)
        return
    if into_archive:
        raise UsageError("--into-archive is for --format xmp.")
    with shared(out, Settings().home):
        rows = api.export(
            out, format=format, model=model, predictions=predictions, archive=archive, statuses=statuses,
            all_models=all_models, with_gone=with_gone,
        )  # fmt: skip
    left = {} if all_models else api.left_to_rescore(model=model, predictions=predictions, archive=archive)
    content = {"rows": rows, "out": str(out.resolve()), "left_to_rescore": left}
    answer(as_json, content, display.exported, rows, out, left)


@app.command()
def demo(
    archive: Annotated[
        Path | None,
        typer.Argument(metavar="[ARCHIVE]", help="Your own folder; default: a small built-in archive."),
    ] = None,
) -> None:
    """Score a small archive, or your own folder, and print the drift verdict: the whole way in one command."""
    from agewatch.cli import display

    if archive is None:
        from agewatch.scoring.demo import build_archive

        archive = build_archive(Settings().home / "demo")
        typer.echo(f"A small archive of public-domain pictures, and some damaged files: {archive}")
    with display.progress(quiet=False) as on_progress:
        summary = api.score_archive(archive, max_refused=1, progress=on_progress)
    display.summary(summary)
    if summary.found:
        from monitoring import drift

        display.drift(drift.run(summary.archive))
