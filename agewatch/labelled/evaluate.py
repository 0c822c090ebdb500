"""Any labelled archive, scored as archives are scored -> one row a labelled picture -> the whole evaluation."""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from agewatch.errors import LabelError
from agewatch.estimator.model import AgeModel
from agewatch.labelled import calibration, metrics
from agewatch.labelled.calibration import BandCoverage
from agewatch.labelled.dataset import drop_bad_labels, known_splits
from agewatch.labelled.extraction import modes_of
from agewatch.labelled.metrics import Metrics, Risk, Slice
from agewatch.labelled.sources import read_sources
from agewatch.scoring import pool
from agewatch.scoring.content import SharedKeys
from agewatch.scoring.predictions import Key
from agewatch.scoring.scorer import Execution, Job
from agewatch.sources import door
from agewatch.sources.source import FileRef

LEARNT = "learnt"
"""Status of a picture that the model was trained, selected or calibrated on; it is not scored."""
TRAINED_SPLITS = ("train", "validation")
"""What a model's ages are made of; its intervals come from the split `calibration`."""
LEARNT_SPLITS = (*TRAINED_SPLITS, "calibration")
_SHARD_FILES = 64
_COLUMNS = {
    "archive": "source", "path": "path", "age": "predicted", "age_low": "low", "age_high": "high", "status": "status",
    "mode": "mode", "box_h": "box_h", "sharpness": "sharpness", "content_hash": "content_hash",
}  # fmt: skip
"""Columns of the predictions table that are used, and their names here."""


@dataclass(frozen=True)
class Evaluation:
    """How a model does on labelled pictures. `statuses` counts the pictures that were not evaluated, by reason.

    `held_out` is False where pictures that the model learnt from may be among them.

    Ages and widths are in years, coverages 0..1. `decades` has the slices by true decade of every source, `thin` the
    decades whose intervals hold too little (see `agewatch.labelled.calibration.floor`).
    """

    model: str
    held_out: bool
    sources: dict[str, int]
    statuses: dict[str, int]
    overall: Metrics
    balanced_mae: float
    worst: Slice | None
    coverage: float
    width: float
    bands: list[BandCoverage]
    thin: list[Slice]
    risk_coverage: list[Risk]
    slices: list[Slice]
    decades: dict[str, list[Slice]]


def learnt_keys(model_path: Path, splits: Sequence[str] = LEARNT_SPLITS) -> set[int]:
    """The `hash_key`s of the pictures that a model was trained, selected or calibrated on; empty if it holds none."""
    return {key for key, split in known_splits(model_path).items() if split in splits}


def evaluate_archive(
    model_path: Path,
    sources: Sequence[Path],
    *,
    how: Execution,
    leave_out: set[int],
) -> pd.DataFrame:
    """Score labelled pictures; return one row each, with the estimate of its largest face.

    Columns: source, path, age (the label), sex, ethnicity, predicted, low, high (years), covered, status, mode, box_h
    (pixels), sharpness, content_hash. Status is that of the predictions table, LEARNT for pictures whose
    `hash_key` is to be left out, or why training would drop the label too (`dataset.drop_bad_labels`).
    Raises UsageError, LabelError or ModelError.
    """
    labelled = read_sources(sources)
    model = AgeModel.load(model_path)
    frame = pd.DataFrame(
        [(item.source.name, item.file.path, item.age, item.sex, item.ethnicity) for item in labelled],
        columns=["source", "path", "age", "sex", "ethnicity"],
    )
    files: dict[Path, dict[str, FileRef]] = {}
    for item in labelled:
        files.setdefault(item.source, {})[item.file.path] = item.file
    rows, counts, done, total = [], Counter[str](), 0, sum(map(len, files.values()))
    how.progress(0, total, counts)
    learnt, modes = SharedKeys(leave_out), modes_of(labelled, how.workers)
    for source, of_source in files.items():
        key = Key(source.name, model.id, modes[source])
        run_id, room = uuid.uuid4().hex, how.room()
        job = Job(
            door.at(source), key, run_id, model_path, how.cache, how.engine, how.precision, known=learnt, room=room
        )
        for scored in pool.run(job, pool.shards(list(of_source.values()), _SHARD_FILES), how.workers):
            rows += [row for row in scored.rows if row.get("face") in (0, None)]
            counts.update(row["status"] for row in scored.rows)
            done += scored.files
            how.progress(done, total, counts)
    frame = frame.merge(pd.DataFrame(rows, columns=list(_COLUMNS)).rename(columns=_COLUMNS), "left", ["source", "path"])
    frame["status"] = frame["status"].fillna(LEARNT)  # the workers' answer for such a picture has no row
    seen = frame[frame["status"] == "ok"].assign(reason=None)
    drop_bad_labels(seen)
    frame.loc[seen.index, "status"] = seen["reason"].fillna("ok")
    frame = frame.astype(dict.fromkeys(("predicted", "low", "high", "box_h", "sharpness"), "float32"))
    ages = frame["age"].to_numpy(np.float64)
    frame["covered"] = calibration.covered(frame["low"].to_numpy(), frame["high"].to_numpy(), ages, model.spec.labels)
    return frame


def summarise(frame: pd.DataFrame, model_path: Path, *, held_out: bool) -> Evaluation:
    """Everything that is said of a model, from the rows of `evaluate_archive`.

    Raises LabelError where no picture of them could be evaluated.
    """
    faces = frame[frame["status"] == "ok"].reset_index(drop=True)
    statuses = Counter(frame["status"]).most_common()
    if faces.empty:
        counts = ", ".join(f"{n} {status}" for status, n in statuses)
        raise LabelError(f"None of the {len(frame)} labelled pictures can be evaluated: {counts}.")
    model = AgeModel.load(model_path)
    parts = metrics.slices(faces)
    return Evaluation(
        model=model.id,
        held_out=held_out,
        sources=dict(Counter(faces["source"])),
        statuses={status: n for status, n in statuses if status != "ok"},
        overall=metrics.measure("all", faces["predicted"].to_numpy(), faces["age"].to_numpy()),
        balanced_mae=metrics.balanced_mae(faces),
        worst=metrics.worst_slice(faces),
        coverage=float(faces["covered"].mean()),
        width=float((faces["high"] - faces["low"]).mean()),
        bands=calibration.coverage_by_band(faces, model.spec.calibration, model.spec.labels),
        thin=calibration.too_low(parts),
        risk_coverage=metrics.risk_coverage(faces),
        slices=parts,
        decades={str(name): metrics.slices(rows, "age") for name, rows in faces.groupby("source", sort=False)},
    )
