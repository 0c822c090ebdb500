"""From Python: functions that equal the commands.

A model, table or folder that is not given is the one that the settings name; see `agewatch.settings`. Heavy rooms are
imported inside the functions.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agewatch.errors import UsageError
from agewatch.files import stamp
from agewatch.progress import Progress, unwatched
from agewatch.settings import Settings

if TYPE_CHECKING:
    from agewatch.estimator.engine import EngineName, Precision
    from agewatch.estimator.explain import Explanation
    from agewatch.estimator.spec import Mode
    from agewatch.exports.export import ExportFormat
    from agewatch.exports.sidecars import Written
    from agewatch.gallery.choose import Sort
    from agewatch.gallery.page import Gallery
    from agewatch.labelled.evaluate import Evaluation
    from agewatch.release.gate import Record
    from agewatch.release.smoke import Smoke
    from agewatch.release.store import Pointer
    from agewatch.remote import Server
    from agewatch.scoring.pending import Again
    from agewatch.scoring.score import Summary
    from agewatch.scoring.scorer import Execution
    from agewatch.serving.server import Served, Wanted
    from agewatch.training.train import Trained

Runner = Literal["local", "ray"]
"""Where the workers are: processes of this machine, or of a Ray cluster's machines."""
ModelPath = Path | str | None
"""A model file; None is the store's current one, or the starter."""


def score_archive(
    archive: Path | str,
    *,
    model: ModelPath = None,
    predictions: Path | str | None = None,
    faces: "Mode" = "detect",
    engine: "EngineName | Literal['torchserve']" = "auto",
    url: str | None = None,
    key_file: Path | str | None = None,
    precision: "Precision" = "auto",
    workers: int | None = None,
    max_refused: float = 0.05,
    max_gone: float = 0.2,
    exclude: Sequence[str] = (),
    memory_gb: float | None = None,
    name: str | None = None,
    again: "Again" = "nothing",
    anew_minutes: float | None = None,
    runner: "Runner" = "local",
    address: str | None = None,
    progress: Progress = unwatched,
) -> "Summary":
    """Score every picture of an archive that the table does not hold yet; see `agewatch.scoring.score`.

    With the engine `torchserve` the server at `url` looks at them, by a token as `server` finds it. With the runner
    `ray` the workers are those of the Ray cluster at `address`, or of one that is started for this run.
    """
    from agewatch.scoring import on_ray, score

    if address is not None and runner != "ray":
        raise UsageError("An address is of a Ray cluster: it goes with the runner ray.")
    if runner == "ray" and engine == "torchserve":
        raise UsageError("A server does its own work: --engine torchserve and --runner ray don't go together.")
    if engine != "torchserve" and url is None:
        how = _execution(engine, precision, workers, progress, memory_gb)
    elif engine == "torchserve" and url is not None and precision == "auto":
        how = replace(_execution("auto", "auto", workers, progress, memory_gb), server=server(url, key_file))
    else:
        raise UsageError("--engine torchserve and --url go together, and --precision is the server's.")
    path = None if how.server and model is None else model_file(model)
    with ExitStack() as undo:
        if runner == "ray":
            cluster = undo.enter_context(on_ray.connected(address, memory_gb=how.memory_gb, workers=workers))
            how = replace(how, workers=cluster.workers, run=cluster.run)
        return score.score_archive(
            archive, model_path=path, table=Path(predictions or Settings().predictions), how=how,
            mode=faces, limits=score.Limits(max_refused, max_gone), name=name, again=again, exclude=exclude,
            anew_minutes=anew_minutes,
        )  # fmt: skip


def explain(
    picture: Path | str,
    out: Path | str,
    *,
    model: ModelPath = None,
    faces: "Mode" = "detect",
    face: int = 0,
    precision: "Precision" = "auto",
) -> "Explanation":
    """Write why a face of a picture has its age: a PNG over the face, or JSON with years a cell.

    Raises ImageError where the picture can't be read, AgewatchError where it has no face, UsageError where there is no
    face of this number or `out` is neither .png nor .json; see `agewatch.scoring.why`.
    """
    from agewatch.scoring import why

    return why.write(
        Path(picture), Path(out), model_path=model_file(model), how=_execution("auto", precision, 1, unwatched),
        mode=faces, face=face,
    )  # fmt: skip


def export(
    out: Path | str,
    *,
    format: "ExportFormat" = "csv",
    model: ModelPath = None,
    predictions: Path | str | None = None,
    archive: str | None = None,
    statuses: Sequence[str] = (),
    all_models: bool = False,
    with_gone: bool = False,
) -> int:
    """Write rows to a file and return how many; see `agewatch.exports.export`."""
    from agewatch.estimator.model import AgeModel
    from agewatch.exports.export import export as write

    model_id = None if all_models else AgeModel.load(model_file(model)).id
    table = Path(predictions or Settings().predictions)
    return write(
        table, Path(out), format=format, model=model_id, archive=archive, statuses=statuses, with_gone=with_gone
    )


def sidecars(
    out: Path | str,
    *,
    model: ModelPath = None,
    predictions: Path | str | None = None,
    archive: str | None = None,
    into_archive: bool = False,
    with_gone: bool = False,
) -> "Written":
    """Write an XMP sidecar for each picture with a face; see `agewatch.exports.sidecars`."""
    from agewatch.estimator.model import AgeModel
    from agewatch.exports import sidecars

    return sidecars.write(
        Path(predictions or Settings().predictions), Path(out), model=AgeModel.load(model_file(model)).id,
        archive=archive, into_archive=into_archive, with_gone=with_gone,
    )  # fmt: skip


def gallery(
    archive: str | None = None,
    *,
    out: Path | str | None = None,
    model: ModelPath = None,
    predictions: Path | str | None = None,
    statuses: Sequence[str] = (),
    sort: "Sort | None" = None,
    compare: str | None = None,
    all_models: bool = False,
    with_gone: bool = False,
    workers: int | None = None,
    progress: Progress = unwatched,
) -> "Gallery":
    """Write a page that shows an archive's faces, by default below the home; see `agewatch.gallery.page`.

    `compare` is a second model's file, or its id in the table: then the faces stand first on which both differ most.
    """
    from agewatch.estimator.model import AgeModel
    from agewatch.gallery import choose, page

    if compare is None and sort == "difference":
        raise UsageError("Only two models differ: name the second with --compare.")
    if compare is not None and (all_models or statuses):
        raise UsageError("--compare is of faces and two models: --all-models and --status say nothing there.")
    if compare is not None and Path(compare).exists():
        compare = AgeModel.load(model_file(compare)).id
    table = Path(predictions or Settings().predictions)
    model_id = None if all_models else AgeModel.load(model_file(model)).id
    keys = choose.keys_of(table, archive, model_id, compare)
    return page.make(
        table, keys, Path(out) if out else page.default_folder(keys[0].archive),
        _execution("auto", "auto", workers, progress), statuses=statuses, with_gone=with_gone,
        sort=sort or ("newest" if compare is None else "difference"), compare=compare is not None,
    )  # fmt: skip


def left_to_rescore(
    *, model: ModelPath = None, predictions: Path | str | None = None, archive: str | None = None
) -> dict[str, int]:
    """How many files of each archive have rows of older models only; archives without such files are left out."""
    from agewatch.estimator.model import AgeModel
    from agewatch.scoring import anew
    from agewatch.scoring.predictions import known_name

    table = Path(predictions or Settings().predictions)
    names = None if archive is None else [known_name(table, archive)]
    found = anew.standing(table, AgeModel.load(model_file(model)).id, names)
    return {name: still.files for name, still in found.items()}


def train(
    data: Sequence[Path],
    *,
    recipe: Path | None = None,
    start: Path | None = None,
    out: Path | None = None,
    workers: int | None = None,
    log: Callable[[str], None] = print,
) -> "Trained":
    """Train the candidates on labelled pictures; see `agewatch.training.train`.

    They start from `start`, by default from the current model, unless the recipe says `pretrained`. The run's folder
    is `out`, by default a new one below the home.
    """
    from agewatch.training.recipe import TrainConfig
    from agewatch.training.train import train as run_training

    settings = Settings()
    config = TrainConfig.from_toml(recipe) if recipe else TrainConfig()
    return run_training(
        data, run=out or settings.home / "train" / stamp(), config=config, cache=settings.cache,
        start=model_file(start) if start or not config.pretrained else None, workers=workers, log=log,
    )  # fmt: skip


def package(folder: Path, *, version: str | None = None) -> Path:
    """Package the model folder that `train` left as a `.mar` in the store, by default as its next version."""
    from agewatch.release import store
    from agewatch.release.package import package as make

    target = Settings().model_store
    return make(model_file(folder), version=version or store.next_version(target), store=target)


def evaluate(
    data: Sequence[Path],
    *,
    model: ModelPath = None,
    every: bool = False,
    precision: "Precision" = "auto",
    workers: int | None = None,
    progress: Progress = unwatched,
) -> "Evaluation":
    """Measure a model on labelled pictures, those that it learnt from only with `every`."""
    from agewatch.labelled import evaluate as evaluation

    path = model_file(model)
    learnt = set() if every else evaluation.learnt_keys(path)
    how = _execution("auto", precision, workers, progress)
    frame = evaluation.evaluate_archive(path, data, how=how, leave_out=learnt)
    return evaluation.summarise(frame, path, held_out=bool(learnt))


def compare(
    challenger: Path,
    data: Sequence[Path],
    *,
    champion: ModelPath = None,
    precision: "Precision" = "auto",
    workers: int | None = None,
    progress: Progress = unwatched,
) -> "Record":
    """Compare a model with the current one on labelled pictures, and keep the decision in the store."""
    from agewatch.release import gate

    how = _execution("auto", precision, workers, progress)
    return gate.compare(Settings().model_store, model_file(challenger), model_file(champion), data, how)


def smoke_test(file: Path) -> "Smoke":
    """Serve a model of the store on a TorchServe of its own, send it the pictures in its file, and keep what came out.

    It is served in f32, as the file's own answers are: in bf16 drawn faces, which no model learnt, may lie years off.
    What the server wrote is left in `$AGEWATCH_HOME/smoke/VERSION`. Raises UsageError where the file is not in the
    store, ModelError where it holds no model, no pictures, or code that may not run, OSError where the server broke
    off.
    """
    from agewatch.errors import ServeError
    from agewatch.processes import free_ports
    from agewatch.release import gate, smoke, store
    from agewatch.serving.server import Wanted, running
    from agewatch.serving.torchserve import How

    settings = Settings()
    store.require_inside(settings.model_store, file)
    home = settings.home.resolve() / "smoke" / file.stem
    shutil.rmtree(home, ignore_errors=True)
    wanted = Wanted(How(home, 1, "f32"), settings.model_store, file, free_ports(1)[0], is_proven=False)
    try:
        with running(wanted) as served:
            found = smoke.check(file, served.ask)
    except ServeError as error:
        found = smoke.failed(file, str(error))
    champions = (r.champion for r in gate.records(settings.model_store) if r.challenger == found.model)
    found = replace(found, champion=next(champions, None))
    smoke.keep(settings.model_store, found)
    return found


def promote(file: Path, *, force: bool = False) -> "Pointer":
    """Make a model current that passed `compare`, or with `force` any of the store."""
    from agewatch.release import gate

    return gate.promote(Settings().model_store, file, force=force)


def rollback() -> "Pointer":
    """Make the model current again that was so before."""
    from agewatch.release import store

    return store.rollback(Settings().model_store)


def serve(
    *,
    model: ModelPath = None,
    port: int = 8080,
    workers: int | None = None,
    precision: "Precision" = "auto",
    **more: Any,
) -> "AbstractContextManager[Served]":
    """Serve a model over REST for the length of a `with` block; see `agewatch.serving.server`.

    Without a file it is the store's current model, whichever that is by and by. `more` are fields of
    `agewatch.serving.server.Wanted`. Raises ModelError where there is no model, or its code may not run
    (`agewatch.release.trust`).
    """
    from agewatch.serving.server import running

    return running(serving(model=model, port=port, workers=workers, precision=precision, **more))


def serving(
    *,
    model: ModelPath = None,
    port: int = 8080,
    workers: int | None = None,
    precision: "Precision" = "auto",
    **more: Any,
) -> "Wanted":
    """What `serve` would serve."""
    from agewatch.scoring.scorer import cores
    from agewatch.serving.server import Wanted
    from agewatch.serving.torchserve import How

    settings = Settings()
    if "memory_gb" in settings.model_fields_set:
        more = {"memory_gb": settings.memory_gb} | more
    how = How(settings.home.resolve(), workers or cores(), precision)
    named = None if model is None else model_file(model)
    return Wanted(how, settings.model_store, named, port, **more)


def server(url: str, key_file: Path | str | None = None) -> "Server":
    """A server to ask, for `agewatch.remote.Client`: with a key file, else AGEWATCH_TOKEN, else what `serve` wrote.

    Raises UsageError where the address is none, or a picture would go to another machine in the clear.
    """
    from agewatch.remote import Server

    settings, found = Settings(), Server(url, None if key_file is None else Path(key_file))
    if key_file is None and settings.token is None:
        return replace(found, key_file=settings.home / "serve" / str(found.port) / "key_file.json")
    return found


def trust_code(file: Path) -> str:
    """Put a model file on record as one whose code may run; returns a sentence that says how it differs from ours."""
    from agewatch.release import trust

    return trust.trust(Settings().model_store, file)


def model_file(model: ModelPath) -> Path:
    """The model file to use: see `agewatch.release.store.resolve`, of the store that the settings name."""
    from agewatch.release.store import resolve

    return resolve(None if model is None else Path(model), Settings().model_store)


def _execution(
    engine: "EngineName",
    precision: "Precision",
    workers: int | None,
    progress: Progress,
    memory_gb: float | None = None,
) -> "Execution":
    from agewatch.scoring.scorer import Execution, cores

    settings = Settings() if memory_gb is None else Settings(memory_gb=memory_gb)
    return Execution(settings.cache, workers or cores(), engine, precision, progress, settings.memory_gb)
