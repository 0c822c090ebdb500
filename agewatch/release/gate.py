"""The champion gate: is a challenger better than the model in use, for everybody, and what was decided about it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from agewatch.errors import HeldBackError, LabelError, ModelError, UsageError
from agewatch.estimator.engine import cpu_ms_a_face
from agewatch.estimator.model import AgeModel
from agewatch.files import now, write_json
from agewatch.labelled import metrics
from agewatch.labelled.evaluate import evaluate_archive, learnt_keys
from agewatch.release import records as records_of
from agewatch.release import smoke, store, trust
from agewatch.release.store import Pointer
from agewatch.scoring.scorer import Execution

MIN_PICTURES = 200
"""Fewer pictures in all decide nothing."""
MIN_SLICE = 200
"""A slice with so many faces may hold a challenger back."""
SLICE_YEARS = 0.25
"""A challenger whose MAE in such a slice is larger by more is held back."""
CHEAPER, CHEAPER_YEARS = 0.9, 0.1
"""A challenger that costs at most this share of the champion's CPU time may have an MAE larger by so many years."""
DECISIONS = "decisions"
_CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_RESAMPLES = 10_000


@dataclass(frozen=True, config=_CHECKED)
class Compared:
    """The MAE of both models in one slice of the same faces, years; `difference` is challenger minus champion."""

    dimension: str
    value: str
    n: int
    champion: float
    challenger: float

    @property
    def difference(self) -> float:
        """Positive where the challenger is worse."""
        return self.challenger - self.champion


@dataclass(frozen=True, config=_CHECKED)
class Decision:
    """A verdict with its figures: MAEs and the 95 % limits of their difference in years, costs in CPU ms a face."""

    promote: bool
    reason: str
    n: int
    champion: float
    challenger: float
    difference_low: float
    difference_high: float
    cost_champion: float
    cost_challenger: float
    slices: tuple[Compared, ...]


@dataclass(frozen=True, config=_CHECKED)
class Record:
    """What the store keeps of a comparison: the ids of both models, the labelled sources, the time, the decision.

    `held_out` is False where a model does not say what it learnt from, so that it may know some of the pictures.
    """

    champion: str
    challenger: str
    held_out: bool
    sources: dict[str, int]
    decided_at: str
    decision: Decision


_RECORD = TypeAdapter(Record)


def judge(
    champion: pd.DataFrame, challenger: pd.DataFrame, *, cost_champion: float, cost_challenger: float
) -> Decision:
    """Decide between two models from their rows of `evaluate_archive` on the same pictures, and costs in CPU ms.

    The limits are a percentile bootstrap over pictures of the paired difference of absolute errors. Pictures in which
    only one of the two has a face are left out. Groups are those of the champion's rows. Raises LabelError where no
    picture is left.
    """
    own = challenger.loc[challenger["status"] == "ok", ["source", "path", "age", "predicted"]].drop_duplicates()
    both = champion[champion["status"] == "ok"].merge(own, on=["source", "path", "age"], suffixes=("", "_challenger"))
    if both.empty:
        raise LabelError("No labelled picture can be used: each has no face, or one of the models has learnt from it.")
    difference = metrics.absolute_errors(both, "predicted_challenger") - metrics.absolute_errors(both)
    low, high = map(float, np.quantile(metrics.bootstrap_means(difference, _RESAMPLES), [0.025, 0.975]))
    whole = _compared("all", "", both)
    parts = tuple(_compared(*group) for group in metrics.members(both))
    passed, reason = _verdict(whole, low, high, cost_challenger / cost_champion, parts)
    maes = (whole.champion, whole.challenger)
    return Decision(passed, reason, whole.n, *maes, low, high, cost_champion, cost_challenger, parts)


def compare(
    folder: Path,
    challenger: Path,
    champion: Path,
    sources: Sequence[Path],
    how: Execution,
) -> Record:
    """Score labelled pictures that neither model learnt from with both, decide, and keep the record in the store.

    Raises UsageError where both are the same model or the challenger does not say which pictures it learnt from, and
    what `evaluate_archive` raises.
    """
    models = [AgeModel.load(path) for path in (champion, challenger)]
    if models[0].id == models[1].id:
        raise UsageError(f"{challenger} is the model it would be compared with: {models[0].id}.")
    known = [learnt_keys(path) for path in (champion, challenger)]
    if not known[1]:
        raise UsageError(f"{challenger} does not say which pictures it learnt from, so no comparison would be fair.")
    theirs, own = (
        evaluate_archive(path, sources, how=how, leave_out=known[0] | known[1]) for path in (champion, challenger)
    )
    costs = cpu_ms_a_face(models, cache=how.cache)
    record = Record(
        champion=models[0].id,
        challenger=models[1].id,
        held_out=all(known),
        sources=dict(Counter(theirs["source"][theirs["status"] == "ok"])),
        decided_at=now(),
        decision=judge(theirs, own, cost_champion=costs[0], cost_challenger=costs[1]),
    )
    file = record_file(folder, models[1], models[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(record))
    return record


def promote(folder: Path, file: Path, *, force: bool, by: str | None = None) -> Pointer:
    """Promote a model of the store that passed against the current one; any where there is none, or with `force`.

    One that failed its smoke test, or that a retraining left without one, is not promoted either. `by` says who does
    it, by default the user of this process. Raises UsageError where the file is not in the store, was never compared
    with the current model or not tested, HeldBackError where it did not pass, ModelError where a model or a record is
    damaged, or its code may not run (`trust`).
    """
    store.require_inside(folder, file)
    trust.require(folder, file)
    current = store.read_pointer(folder)
    challenger = AgeModel.load(file).id
    if not force:
        _require_smoke(folder, challenger, file)
    if not force and current is not None and current.model != challenger:
        record = next((r for r in records(folder) if (r.challenger, r.champion) == (challenger, current.model)), None)
        if record is None:
            raise UsageError(
                f"{challenger} was not compared with the current model {current.model} yet: run"
                f" `agewatch models compare {file} DATA...` on labelled pictures first, or add --force."
            )
        if not record.decision.promote:
            raise HeldBackError(f"{challenger} is held back. {record.decision.reason} Only --force promotes it.")
    return store.promote(folder, file, by=by, forced=force)


def _require_smoke(folder: Path, model: str, file: Path) -> None:
    tested = smoke.of(folder, model)
    if tested is not None and not tested.passed:
        raise HeldBackError(f"{model} failed its smoke test. {tested.reason} Only --force promotes it.")
    if tested is None and records_of.training(folder, model) is not None:
        raise UsageError(f"{model} was not tested on a server yet: run `agewatch models smoke {file}`, or add --force.")


def records(folder: Path) -> list[Record]:
    """The decisions that the store keeps, the latest first. Raises ModelError where one is damaged."""
    found = map(_read, sorted((folder / DECISIONS).glob("*.json")))
    return sorted(found, key=lambda record: record.decided_at, reverse=True)


def record_file(folder: Path, challenger: AgeModel, champion: AgeModel) -> Path:
    """Where the store keeps the decision between two models."""
    return folder / DECISIONS / f"{challenger.spec.version}-over-{champion.spec.version}.json"


def _compared(dimension: str, value: str, both: pd.DataFrame) -> Compared:
    maes = (float(metrics.absolute_errors(both, of).mean()) for of in ("predicted", "predicted_challenger"))
    return Compared(dimension, value, len(both), *maes)


def _verdict(whole: Compared, low: float, high: float, cost: float, parts: Sequence[Compared]) -> tuple[bool, str]:
    """The rule, and the sentence that says how it came out."""
    if whole.n < MIN_PICTURES:
        return False, f"{whole.n} pictures with a face in both are too few to decide; {MIN_PICTURES} are needed."
    change = f"MAE {whole.challenger:.2f} years against {whole.champion:.2f} on {whole.n} pictures"
    between = f"the difference is between {low:+.2f} and {high:+.2f}"
    worse = [part for part in parts if part.n >= MIN_SLICE and part.difference > SLICE_YEARS]
    if worse:
        most = max(worse, key=lambda part: part.difference)
        overall = "Better" if whole.difference < 0 else "Not better"
        return False, (
            f"{overall} overall ({change}), but worse for {most.dimension} {most.value}:"
            f" MAE {most.challenger:.2f} years against {most.champion:.2f} on {most.n} faces,"
            f" where {SLICE_YEARS} years more are allowed."
        )
    if high < 0:
        return True, f"Better beyond noise: {change}, {between}."
    if cost <= CHEAPER and high <= CHEAPER_YEARS:
        cheaper = f"Cheaper ({cost:.0%} of the CPU time) and at most {CHEAPER_YEARS} year worse"
        return True, f"{cheaper}: {change}, {between}."
    return False, f"Not better beyond noise: {change}, {between}, at {cost:.0%} of the CPU time."


def _read(file: Path) -> Record:
    try:
        return _RECORD.validate_json(file.read_bytes())
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        raise ModelError(f"The decision {file} can't be read: {error!r}.") from error
