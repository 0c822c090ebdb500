"""The door: `agewatch ...`. Rooms are imported inside commands, so that --help and errors are instant."""

import dataclasses
import json
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from agewatch import __version__
from agewatch.cli import models
from agewatch.cli.models import JsonOption, LabelledArgument, PrecisionOption, WorkersOption, answer, model_file
from agewatch.errors import AgewatchError, UsageError
from agewatch.files import now, stamp
from agewatch.settings import Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Estimate the age of every face in folders of pictures, and say when the estimates drift.",
)  # fmt: skip
app.add_typer(models.models_app, name="models")

INTERRUPTED = 130
_UNHEARD = 128 + signal.SIGPIPE  # what a shell says of a program whose reader went away

Mode = Literal["detect", "crop"]
ModelOption = Annotated[Path | None, typer.Option("--model", help="Model file; default: the store's current one.")]
TableOption = Annotated[Path | None, typer.Option("--predictions", help="Folder of the predictions table.")]


def _utf8(name: str | None) -> str | None:
    """A name as UTF-8, in which the table holds it, whatever the terminal's encoding."""
    return name and os.fsencode(name).decode(errors="backslashreplace")


ArchiveOption = Annotated[
    str | None, typer.Option("--archive", help="Name of the archive in the table.", callback=_utf8)
]


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Folder of pictures, searched recursively.")],
    model: ModelOption = None,
    predictions: TableOption = None,
    faces: Annotated[Mode, typer.Option(help="Find faces, or take each picture as one face.")] = "detect",
    engine: Annotated[Literal["auto", "openvino", "torch"], typer.Option(help="What runs the network.")] = "auto",
    precision: PrecisionOption = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a core.")] = None,
    max_refused: Annotated[float, typer.Option(min=0, max=1, help="Refused share that ends with exit 3.")] = 0.05,
    archive: ArchiveOption = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score everything again.")] = False,
    retry_refused: Annotated[bool, typer.Option("--retry-refused", help="Score the refused files again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score every picture of ARCHIVE that is not scored yet: one row a face, one honest row for every file."""
    from agewatch.cli import display
    from agewatch.scoring.score import score_archive

    settings = Settings()
    with display.progress(quiet=as_json) as on_progress:
        summary = score_archive(
            folder, model_path=model_file(model), table=predictions or settings.predictions, cache=settings.cache,
            mode=faces, engine=engine, precision=precision, workers=workers, max_refused=max_refused, name=archive,
            again="all" if rescore else "refused" if retry_refused else "nothing", progress=on_progress,
        )  # fmt: skip
    answer(as_json, summary, display.summary, summary, max_refused)
    raise typer.Exit(summary.exit_code)


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    format: Annotated[Literal["csv", "parquet", "json"], typer.Option(help="Form of the file.")] = "csv",
    predictions: TableOption = None,
    archive: ArchiveOption = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Keep rows of this status; `refused` means all refusals.")
    ] = None,
    model: ModelOption = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Rows of all models and modes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write rows to a file: of one model (the current) and each archive's latest mode, so that a path stands once."""
    from agewatch.errors import REFUSAL_CODES
    from agewatch.estimator.model import AgeModel
    from agewatch.scoring.export import export as write

    model_id = None if all_models else AgeModel.load(model_file(model)).id
    known = ("ok", "no_face", *REFUSAL_CODES)
    if unknown := set(status or ()) - {*known, "refused"}:
        raise UsageError(f"There is no status {', '.join(sorted(unknown))}; there are {', '.join(known)} and refused.")
    statuses = [code for name in status or () for code in (REFUSAL_CODES if name == "refused" else [name])]
    table = predictions or Settings().predictions
    rows = write(table, out, format=format, model=model_id, archive=archive, statuses=statuses)
    answer(as_json, {"rows": rows, "out": str(out.resolve())}, typer.echo, f"{rows} rows in {out}")


@app.command()
def drift(
    archive: ArchiveOption = None,
    model: ModelOption = None,
    predictions: TableOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for index.html and drift.json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a scored archive with the model's reference and say whether its predictions drifted."""
    from agewatch.cli import display

    content = _judge(archive, model, predictions or Settings().predictions, out)
    answer(as_json, content, display.drift, content)
    raise typer.Exit(content["exit_code"])


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
    workers: Annotated[int, typer.Option(min=1, help="Processes that read pictures.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train the candidates on labelled pictures and print one comparison table on held-out ones."""
    from agewatch.labelled.metrics import as_markdown, as_records
    from agewatch.training.recipe import TrainConfig
    from agewatch.training.train import train as run_training

    settings = Settings()
    config = TrainConfig.from_toml(recipe) if recipe else TrainConfig()
    run = out or settings.home / "train" / stamp()
    start = model_file(start) if start or not config.pretrained else None
    trained = run_training(
        data, run=run, config=config, cache=settings.cache, start=start, workers=workers,
        log=partial(typer.echo, err=as_json),
    )  # fmt: skip
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
    from agewatch.release import store
    from agewatch.release.package import package as make

    folder_of_store = Settings().model_store
    mar = make(model_file(folder), version=version or store.next_version(folder_of_store), store=folder_of_store)
    model_id, size = AgeModel.load(mar).id, mar.stat().st_size
    text = f"{model_id} in {mar} ({size / 1e6:.1f} MB)\nNext: agewatch models compare {mar} DATA..."
    answer(as_json, {"file": str(mar.resolve()), "model": model_id, "bytes": size}, typer.echo, text)


@app.command()
def evaluate(
    data: LabelledArgument,
    model: ModelOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also the pictures that the model learnt from.")] = False,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = 2,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write everything into.")] = None,
    card: Annotated[Path | None, typer.Option(help="Folder to write MODEL_CARD.md and its figure into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on labelled pictures that it did not learn from: by age, sex, ethnicity, size and sharpness."""
    from agewatch.cli import display
    from agewatch.files import write_json
    from agewatch.labelled import card as model_card
    from agewatch.labelled import evaluate

    path = model_file(model)
    learnt = set() if every else evaluate.learnt_keys(path)
    for folder in (out and out.parent, card):  # before the work, not after it
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    with display.progress(quiet=as_json) as on_progress:
        frame = evaluate.evaluate_archive(
            path, data, cache=Settings().cache, workers=workers, precision=precision,
            leave_out=learnt, progress=on_progress,
        )  # fmt: skip
    found = evaluate.summarise(frame, path, held_out=bool(learnt))
    if out:
        write_json(out, dataclasses.asdict(found))
    if card:
        model_card.write(card, path, found)
    answer(as_json, found, display.evaluation, found)


@app.command()
def serve(
    model: ModelOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the REST interface, on 127.0.0.1.")] = 8080,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a core.")] = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Serve the model over REST with TorchServe, on this machine only and with a token, until Ctrl-C."""
    from agewatch.serving.torchserve import curl_line, running

    mar = model_file(model)
    typer.echo(f"Starting TorchServe with {mar} ...")
    with running(mar, home=Settings().home, port=port, workers=workers, precision=precision) as served:
        typer.echo(
            f"inference   {served.inference_url}\nmanagement  {served.management_url}\n"
            f"metrics     {served.metrics_url}\ngRPC        {served.grpc_inference}, {served.grpc_management}\n"
            f"tokens      {served.key_file}\nlogs        {served.log_folder}\n\n{curl_line(served)}\n\nready"
        )
        served.wait()


@app.command()
def demo(
    archive: Annotated[
        Path | None,
        typer.Argument(metavar="[ARCHIVE]", help="Your own folder; default: a small built-in archive."),
    ] = None,
) -> None:
    """Score a small archive, or your own folder, and print the drift verdict: the whole way in one command."""
    from agewatch.cli import display
    from agewatch.scoring.score import score_archive

    settings = Settings()
    if archive is None:
        from agewatch.scoring.demo import build_archive

        archive = build_archive(settings.home / "demo")
        typer.echo(f"A small archive of public-domain pictures, and some damaged files: {archive}")
    with display.progress(quiet=False) as on_progress:
        summary = score_archive(
            archive, model_path=model_file(None), table=settings.predictions, cache=settings.cache, max_refused=1,
            progress=on_progress,
        )  # fmt: skip
    display.summary(summary, 1)
    if summary.found:
        display.drift(_judge(summary.archive, None, settings.predictions, None))


def _judge(archive: str | None, model: Path | None, table: Path, out: Path | None) -> dict[str, Any]:
    """Judge an archive's drift, write the report, by default below the home folder, and return its drift.json."""
    from monitoring import drift as monitor

    name = monitor.find_archive(archive, table)
    folder = out or monitor.run_dir(Settings().reports, name)
    found = monitor.run(name, model_path=model_file(model), predictions_dir=table, out_dir=folder)
    content: dict[str, Any] = json.loads(found.report.json.read_text())
    return content


def main() -> NoReturn:
    """Run the command line: sentences and exit codes, never a traceback. SIGTERM ends a command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # it is None where it was closed
            # JSON is UTF-8 (RFC 8259, section 8.1), whatever the terminal; text that a stream can't hold is escaped.
            stream.reconfigure(encoding="utf-8" if "--json" in sys.argv else None, errors="backslashreplace")
    try:
        code = _run()
        print(end="", flush=True)
    except BrokenPipeError:
        code = _without_output(_UNHEARD)
    except OSError as error:  # of stdout or stderr: `_run` says all others
        with suppress(OSError):
            print(f"agewatch: The output can't be written: {error.strerror}.", file=sys.stderr, flush=True)
        code = _without_output(1)
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # rich's answer to a closed pipe
            raise
        code = _without_output(_UNHEARD)
    sys.exit(code)


def _run() -> int:
    """Run one command and return its exit code. Raises OSError where stdout or stderr can't be written."""
    try:
        if any(re.fullmatch("(--[a-z-]+=)?", argument) for argument in sys.argv[1:]):
            raise UsageError("An argument is empty: leave it out, or say what is meant ('.' is the folder here).")
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
            _fail("interrupted", "Interrupted. What was finished is kept.", INTERRUPTED)
    except AgewatchError as error:
        code = _fail(error.code, str(error), error.exit_code)
    except typer.TyperException as error:
        code = _fail("usage", error.format_message(), error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:  # a file that can't be read or written, wherever that is met
        what = f"{error.filename or 'A file, or the output, failed'}: {error.strerror or error}"
        code = _fail("failed", f"{what}. {_keep_traceback()}", 1)
    except Exception as error:  # a bug of ours, or of a library: said in a sentence, kept in a file
        code = _fail("unexpected", f"Something unexpected went wrong: {error!r}. {_keep_traceback()}", 1)
    return code or 0


def _without_output(code: int) -> int:
    """Drop what stdout and stderr still hold, which Python would write at its end and complain; return the code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    return code


def _fail(code: str, message: str, exit_code: int) -> int:
    told = f"agewatch: {message}" if message else ""  # a bare `agewatch` has shown its help
    content = {"error": {"code": code, "message": message}}
    answer("--json" in sys.argv, content, partial(typer.echo, err=True), told)
    return exit_code


def _keep_traceback() -> str:
    log = Settings().home / "error.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"\n{now()} agewatch {__version__} {sys.argv[1:]}\n{traceback.format_exc()}")
    except OSError:
        return "The details could not be kept."
    return f"The details are in {log}."
