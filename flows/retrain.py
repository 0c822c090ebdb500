"""Train, compare, package and test the next model. A plain script too: `python flows/retrain.py SOURCE...`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from agewatch import api
from agewatch.errors import AgewatchError, LabelError
from agewatch.estimator.model import AgeModel
from agewatch.files import now
from agewatch.labelled.tables import as_markdown
from agewatch.nights.ledger import Ledger
from agewatch.nights.night import NotNowError, held
from agewatch.nights.schedule import RETRAIN
from agewatch.release import gate, records, smoke, store
from agewatch.release.package import package
from agewatch.release.records import Training
from agewatch.scoring.scorer import Execution
from agewatch.settings import Settings, without_paths
from agewatch.training import train
from agewatch.training.recipe import TrainConfig
from agewatch.training.train import Trained
from flows.steps import failed, step

SMOKE_SECONDS = 600.0
"""So long a server and its answers may take; the server alone has two minutes."""


@dataclass(frozen=True)
class Judged:
    """Whether a new model passed the gate, and the sentence that says so or why it was not asked."""

    passed: bool
    told: str


@flow
def retrain(
    sources: list[str],
    start: str | None = None,
    recipe: str | None = None,
    version: str | None = None,
    promote: Literal["held", "passed"] = "held",
    because: str | None = None,
) -> State[None]:
    """Train candidates, package the best, compare it with the current model, and test it on a server of its own.

    By default it is then held for approval. One retraining runs at a time: another is skipped, and says so. What fails
    is told in the run's message without paths of this machine, and in full on standard error.

    Args:
        sources: Labelled pictures: folders or tables in any form that `agewatch train` reads, or `labels:ARCHIVE` for
            the labels that were added to an archive.
        start: Model or weights file to start from; by default the store's current model.
        recipe: TOML file of a training recipe; a model's architecture wins over it. By default the built-in recipe.
        version: The new model's version; by default the store's next whole number.
        promote: `held`: the new model waits until someone runs `agewatch models promote`. `passed`: it becomes current
            by itself where it is better than the current model and passed its smoke test.
        because: Id of the alarm on record that asked for this retraining.
    """
    settings = Settings()
    due = flow_run.scheduled_start_time or datetime.now(UTC)
    try:
        with held(Ledger(settings.home), "", RETRAIN, due, flow_run.id) as row:
            told = _retrained([Path(source) for source in sources], start, recipe, version, promote, because, settings)
            row.figures["told"] = told
            return Completed(message=told)
    except NotNowError as not_now:
        return Completed(
            name=not_now.outcome.capitalize(), message=f"{not_now.outcome}: another retraining is running."
        )
    except (AgewatchError, OSError) as error:  # a finding about the data, the model or the disk: told without a trace
        return failed(error)


def _retrained(
    sources: list[Path],
    start: str | None,
    recipe: str | None,
    version: str | None,
    promote: str,
    because: str | None,
    settings: Settings,
) -> str:
    """The steps in their order, and what became of it in words. Raises UsageError, LabelError or ModelError."""
    begin = store.resolve(Path(start) if start else None, settings.model_store)
    trained = train_candidates(
        sources,
        start=begin,
        config=TrainConfig.from_toml(Path(recipe)) if recipe else TrainConfig(),
        # A retried run has its id again, so it continues after its last whole epoch.
        run=settings.home / "train" / flow_run.id,
        cache=settings.cache,
    )
    file = package_model(trained.model_folder, version, settings.model_store)
    model = AgeModel.load(file).id
    started_from = begin.name if begin.suffix == ".safetensors" else AgeModel.load(begin).id
    records.keep(
        settings.model_store, Training(model, file.name, started_from, trained.run.name, because or None, now())
    )
    judged = judge(file, sources, settings)
    tested = smoke_test(file, settings)
    became = _became(file, promote, judged, tested, settings)
    served = next(row for row in trained.tables[train.ALL] if row.name == trained.chosen)
    told = f"{judged.told} Smoke test {'passed' if tested.passed else 'failed'}: {without_paths(tested.reason)}"
    create_markdown_artifact(
        _markdown(model, trained, f"{told} {became}"), key="retrain-comparison", description=f"Model {model}"
    )
    return (
        f"{model} is in the store as {file.name}, {became} Mean error {served.mae:.2f} years on {served.n} held-out"
        f" faces. {told}"
    )


@step()
def train_candidates(sources: list[Path], *, start: Path, config: TrainConfig, run: Path, cache: Path) -> Trained:
    """Train; see `agewatch.training.train.train`."""
    log = get_run_logger().info
    return train.train(
        sources, run=run, config=config, cache=cache, start=start, log=lambda line: log(without_paths(line))
    )


@step()
def package_model(model_folder: Path, version: str | None, model_store: Path) -> Path:
    """Package; see `agewatch.release.package.package`. `version` None is the store's next."""
    return package(model_folder, version=version or store.next_version(model_store), store=model_store)


@step()
def judge(file: Path, sources: list[Path], settings: Settings) -> Judged:
    """Compare the new model with the current one and keep the decision."""
    current = store.current(settings.model_store)
    if current is None:
        return Judged(False, "There is no current model to compare it with.")
    try:
        record = gate.compare(settings.model_store, file, current, sources, Execution(settings.cache))
    except LabelError as error:  # a small retrain has nothing held out: said, not failed
        return Judged(False, without_paths(str(error)))
    passed = record.decision.promote
    return Judged(passed, f"{'Passed' if passed else 'Held back'}: {record.decision.reason}")


@step(timeout_seconds=SMOKE_SECONDS)
def _serve_and_ask(file: Path) -> smoke.Smoke:
    return api.smoke_test(file)


def smoke_test(file: Path, settings: Settings) -> smoke.Smoke:
    """Serve the packaged model and hold its answers to its own; a server that never answers is a failed test."""
    try:
        return _serve_and_ask(file)
    except TimeoutError:
        found = smoke.failed(file, f"The server had not answered after {SMOKE_SECONDS:.0f} seconds.")
        smoke.keep(settings.model_store, found)
        return found


def _became(file: Path, promote: str, judged: Judged, tested: smoke.Smoke, settings: Settings) -> str:
    """Promote the model where it was asked for and earned; says what became of it."""
    if not (judged.passed and tested.passed):
        return "not promoted."
    if promote == "held":
        return f"not promoted: it waits for `agewatch models promote {file.name}`."
    gate.promote(settings.model_store, file, force=False, by="the retraining, as its parameter promote says")
    return "promoted: it is the current model now."


def _markdown(model: str, trained: Trained, told: str) -> str:
    parts = [f"## Held-out faces: {name}\n\n{as_markdown(table)}" for name, table in trained.tables.items()]
    head = f"# {model}\n\n{told}\n\nServed: {trained.chosen}. Ages in years. Training run: {trained.run.name}\n"
    return "\n".join([head, *parts])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python flows/retrain.py SOURCE...")
    sys.exit(0 if retrain(sys.argv[1:], return_state=True).is_completed() else 1)
