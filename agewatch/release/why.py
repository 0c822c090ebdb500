"""Why a model is what it is: its life told from the records that link, from the alarm to what it replaced."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agewatch.errors import UsageError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Spec
from agewatch.labelled.tables import as_markdown, from_records
from agewatch.release import gate, records, smoke, store
from agewatch.release.gate import Record
from agewatch.release.records import Alarm, Training
from agewatch.release.smoke import Smoke
from agewatch.release.store import Pointer

_ALL = "all"  # the candidates' table over all sources, as training names it


@dataclass(frozen=True)
class Life:
    """What is on record of a model, by its id; None, or nothing, where a link is missing.

    `spec` is its file's own, with the training in its metrics. `promotion` is the last one to this model, `left` the
    roll back from it.
    """

    model: str
    spec: Spec | None
    training: Training | None
    alarm: Alarm | None
    decisions: tuple[Record, ...]
    smoke: Smoke | None
    promotion: Pointer | None
    left: Pointer | None
    is_current: bool

    @property
    def replaced(self) -> str | None:
        """The model that was current before this one; None where none was, or it is not known."""
        before = self.promotion.previous if self.promotion else None
        return before.model if before else None

    def content(self) -> dict[str, Any]:
        """The records as JSON holds them, and the story in words."""
        metrics = self.spec.metrics if self.spec else {}
        promotion = self.promotion and asdict(self.promotion)
        return {
            "model": self.model,
            "current": self.is_current,
            "alarm": self.alarm and asdict(self.alarm),
            "training": self.training and asdict(self.training),
            "data_hash": self.spec.data_hash if self.spec else None,
            "git_commit": self.spec.git_commit if self.spec else None,
            "recipe": metrics.get("training", {}).get("recipe"),
            "pictures": metrics.get("training", {}).get("sources"),
            "candidates": metrics.get("held_out", {}).get(_ALL),
            "served": metrics.get("served"),
            "decisions": [asdict(record) for record in self.decisions],
            "smoke": self.smoke and asdict(self.smoke),
            "promotion": promotion and {key: promotion[key] for key in ("promoted_at", "by", "forced")},
            "replaced": self.replaced,
            "story": told(self),
        }


def of(folder: Path, model: str | None = None) -> Life:
    """Read a model's life from a store: the current one's, or of a file, an id, or a version.

    Raises UsageError where the store knows no such model, ModelError where a record is damaged.
    """
    history = _history(folder)
    files = {entry.model: entry.file for entry in store.entries(folder)[0]}
    made = {training.model: training for training in records.trainings(folder)}
    decisions = gate.records(folder)
    known = [*files, *made, *(r.challenger for r in decisions), *(pointer.model for pointer in history)]
    found = _meant(folder, model, known, history)
    spec = AgeModel.load(files[found]).spec if found in files else None
    training = made.get(found)
    because = training.because if training else None
    return Life(
        model=found,
        spec=spec,
        training=training,
        alarm=next((alarm for alarm in records.alarms(folder) if alarm.id == because), None),
        decisions=tuple(record for record in reversed(decisions) if record.challenger == found),
        smoke=smoke.of(folder, found),
        promotion=next((pointer for pointer in history if pointer.model == found), None),
        left=next((pointer for pointer in history if pointer.rolled_back == found), None),
        is_current=bool(history) and history[0].model == found,
    )


def told(life: Life) -> list[str]:
    """A model's life in sentences, in the order of time; a link that is missing is said."""
    return [
        _alarm(life),
        _training(life),
        *_data(life.spec),
        *_candidates(life.spec),
        *_decisions(life),
        _smoke(life.smoke),
        _promotion(life),
    ]


def _history(folder: Path) -> list[Pointer]:
    """The pointers of a store, the current first."""
    found, pointer = [], store.read_pointer(folder)
    while pointer is not None:
        found.append(pointer)
        pointer = pointer.previous
    return found


def _meant(folder: Path, model: str | None, known: list[str], history: list[Pointer]) -> str:
    if model is None:
        if not history:
            raise UsageError(f"The model store {folder} has no current model: name one.")
        return history[0].model
    for name in (model, f"agewatch-{model}"):
        if (found := next((one for one in known if name in (one, one.partition("@")[0])), None)) is not None:
            return found
    for file in (Path(model), folder / model):
        if file.is_file():
            return AgeModel.load(file).id
    raise UsageError(f"The model store {folder} knows no model {model}.")


def _alarm(life: Life) -> str:
    alarm = life.alarm
    if alarm is not None:
        value = f"{alarm.value:,.0f}" if alarm.value is not None and alarm.value < 1e6 else "over a million"
        value = "none" if alarm.value is None else value
        cause = f", cause {alarm.cause}" if alarm.cause else ""
        return (
            f"Asked for on {_day(alarm.asked_at)}, as drift stood in {alarm.archive}{cause} (evidence {value}, bound"
            f' {alarm.bound:,.0f}): "{alarm.headline}" {alarm.new_labels:,} labels had come that {alarm.model} had not'
            f" seen (report {alarm.report})."
        )
    if life.training is None:
        return "No retraining is on record for it, so no alarm either: it was trained by hand, or before records began."
    if life.training.because is None:
        return "No alarm asked for it: it was retrained by schedule, or by a person."
    return f"It was retrained because of the alarm {life.training.because}, which is not on record."


def _training(life: Life) -> str:
    made = life.training
    if made is None:
        return "Which run trained it is not on record."
    return f"Retrained from {made.start} in the run {made.run}; {made.file} was left on {_day(made.ended_at)}."


def _data(spec: Spec | None) -> list[str]:
    if spec is None:
        return ["Its file is not in the store: what it was trained on, and the candidates, are not known any more."]
    sources = spec.metrics.get("training", {}).get("sources") or {}
    pictures = ", ".join(f"{n:,} of {source}" for source, n in sources.items())
    recipe = spec.metrics.get("training", {}).get("recipe") or {}
    how = ", ".join(f"{name} {recipe[name]}" for name in ("epochs", "learning_rate", "seed") if name in recipe)
    return [
        f"Data: {f'{sum(sources.values()):,} pictures ({pictures})' if sources else 'its pictures are not counted'};"
        f" hash {spec.data_hash or 'unknown'}. Recipe: {how or 'unknown'}. Code: {spec.git_commit or 'unknown'}."
    ]


def _candidates(spec: Spec | None) -> list[str]:
    if spec is None:
        return []
    table = spec.metrics.get("held_out", {}).get(_ALL)
    if not table:
        return ["The candidates' table is not in its file."]
    chosen = f"Candidates on held-out faces, of which {spec.metrics.get('served')} was chosen:"
    return [chosen, as_markdown(from_records(table)).rstrip()]


def _decisions(life: Life) -> list[str]:
    if not life.decisions:
        return ["It was never compared with another model."]
    return [
        f"Gate on {_day(record.decided_at)}, against {record.champion}:"
        f" {'passed' if record.decision.promote else 'held back'}. {record.decision.reason}"
        for record in life.decisions
    ]


def _smoke(tested: Smoke | None) -> str:
    if tested is None:
        return "No smoke test is on record."
    apart = "" if tested.largest_years is None else f" Ages at most {tested.largest_years:.3f} years off."
    return f"Smoke test on {_day(tested.tested_at)}: {'passed' if tested.passed else 'failed'}. {tested.reason}{apart}"


def _promotion(life: Life) -> str:
    if life.promotion is None:
        if life.left is not None:
            until = f"{_day(life.left.promoted_at)}, when {_by(life.left)} rolled back to {life.left.model}"
            return f"It was current until {until}."
        return "It was never promoted, as far as the store knows."
    pointer = life.promotion
    forced = ", by force, against or without the gate" if pointer.forced else ""
    what = f"Rolled back to from {pointer.rolled_back}" if pointer.rolled_back else "Promoted"
    before = f"; it replaced {life.replaced}" if life.replaced else "; no model was current before it"
    rest = f"{forced}{'' if pointer.rolled_back else before}.{' It is the current model.' if life.is_current else ''}"
    return f"{what} on {_day(pointer.promoted_at)} by {_by(pointer)}{rest}"


def _by(pointer: Pointer) -> str:
    return pointer.by or "someone who is not on record"


def _day(iso: str) -> str:
    return iso[:10]
