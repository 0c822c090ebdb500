"""Train and package the next model. A plain script too: `python flows/retrain.py SOURCE...`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from agewatch.errors import LabelError
from agewatch.estimator.model import AgeModel
from agewatch.labelled.tables import as_markdown
from agewatch.release import gate, store
from agewatch.release.package import package
from agewatch.scoring.scorer import Execution
from agewatch.settings import Settings
from agewatch.training import train
from agewatch.training.recipe import TrainConfig
from agewatch.training.train import Trained


@flow
def retrain(
    sources: list[str], start: str | None = None, recipe: str | None = None, version: str | None = None
) -> State[None]:
    """Train candidates, put the best into the model store, and record how it does against the current model.

    Nothing is promoted: `agewatch models promote` does that, for a model that passed.

    `sources` are labelled pictures in any form that `agewatch train` reads, `start` a model or weights file to start
    from (by default the store's current model), `recipe` a TOML file; a model's architecture wins over the recipe's.
    `version` is by default the store's next whole number. Raises UsageError, LabelError or ModelError.
    """
    settings, labelled = Settings(), [Path(source) for source in sources]
    trained = train_candidates(
        labelled,
        start=store.resolve(Path(start) if start else None, settings.model_store),
        config=TrainConfig.from_toml(Path(recipe)) if recipe else TrainConfig(),
        # A retried run has its id again, so it continues after its last whole epoch.
        run=settings.home / "train" / flow_run.id,
        cache=settings.cache,
    )
    file = package_model(trained.model_folder, version, settings.model_store)
    model = AgeModel.load(file).id
    decision = judge(file, labelled, settings)
    report = _markdown(model, trained, decision)
    create_markdown_artifact(report, key="retrain-comparison", description=f"Model {model}")
    served = next(row for row in trained.tables[train.ALL] if row.name == trained.chosen)
    return Completed(
        message=f"{model} is in the store as {file.name}, not promoted: mean error {served.mae:.2f} years on"
        f" {served.n} held-out faces. {decision}"
    )


@task
def train_candidates(sources: list[Path], *, start: Path, config: TrainConfig, run: Path, cache: Path) -> Trained:
    """Train; see `agewatch.training.train.train`."""
    return train.train(sources, run=run, config=config, cache=cache, start=start, log=get_run_logger().info)


@task
def package_model(model_folder: Path, version: str | None, model_store: Path) -> Path:
    """Package; see `agewatch.release.package.package`. `version` None is the store's next."""
    return package(model_folder, version=version or store.next_version(model_store), store=model_store)


@task
def judge(file: Path, sources: list[Path], settings: Settings) -> str:
    """Compare the new model with the current one and keep the decision; returns it as a sentence."""
    current = store.current(settings.model_store)
    if current is None:
        return "There is no current model to compare it with."
    try:
        record = gate.compare(settings.model_store, file, current, sources, Execution(settings.cache))
    except LabelError as error:  # a small retrain has nothing held out: said, not failed
        return str(error)
    return f"{'Passed' if record.decision.promote else 'Held back'}: {record.decision.reason}"


def _markdown(model: str, trained: Trained, decision: str) -> str:
    parts = [f"## Held-out faces: {name}\n\n{as_markdown(table)}" for name, table in trained.tables.items()]
    head = f"# {model}\n\n{decision}\n\nServed: {trained.chosen}. Ages in years. Run folder: {trained.run.resolve()}\n"
    return "\n".join([head, *parts])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python flows/retrain.py SOURCE...")
    sys.exit(0 if retrain(sys.argv[1:], return_state=True).is_completed() else 1)
