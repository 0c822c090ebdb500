"""An archive's labels -> the same model with intervals that fit that archive, as a file of its own in the store."""

import dataclasses
import io
import re
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from agewatch.errors import ImageError, LabelError
from agewatch.estimator.engine import open_engine
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel, estimate, read_reference, read_splits
from agewatch.estimator.spec import Calibration, Floats, Mode
from agewatch.labelled.calibration import calibrate, coverage_by_band, covered
from agewatch.labelled.metrics import Years
from agewatch.release.package import package
from agewatch.scoring.scorer import one_pictures_misfortune
from agewatch.sources import door
from agewatch.sources.source import FileRef

LEAST_FACES = 100
"""With fewer labels a coverage of 90 % spreads by more than 3 points (Vovk, 2012), and nothing is offered."""
_BATCH = 64


@dataclass(frozen=True)
class Recalibrated:
    """The new model file and its id, of how many labelled faces; how many of these could not be read again.

    `before` and `width_before`: coverage of the old intervals on these faces (0..1) and their mean width (years);
    `width` the new ones'. The coverage of as many new faces lies between `low` and `high` in 98 of 100 cases.
    """

    file: Path
    model: str
    n: int
    lost: int
    before: float
    width_before: float
    width: float
    low: float
    high: float


def recalibrate(
    faces: pd.DataFrame, model_path: Path, root: Path | str, mode: Mode, *, name: str, store: Path, cache: Path
) -> Recalibrated:
    """Calibrate a model's intervals on labelled faces of one archive, and package it as VERSION-NAME-NUMBER.

    `faces` has columns path (in the place `root`), content_hash, face and age (true, years); none may be a face that
    the model was trained or selected on. The pictures are read again, as the table keeps no distributions. The new
    file is not made current. Raises LabelError where there are too few faces, ModelError where it can't be packaged.
    """
    _require_enough(len(faces), len(faces))
    model = AgeModel.load(model_path)
    found, ages = distributions(faces, model, root, mode, cache)
    _require_enough(len(ages), len(faces))
    modes, labels, old = [mode] * len(ages), model.spec.labels, model.spec.calibration
    new = calibrate(found, ages, modes, labels)
    before, after = (estimate(found, modes, labels, some) for some in (old, new))
    promised = coverage_by_band(pd.DataFrame({"age": ages, "mode": mode, "covered": True}), new, labels)[-1]
    told = {"archive": name, "model": model.id, "n": len(ages)}
    file = _packaged(model, new, told, model_path, store)
    return Recalibrated(
        file, AgeModel.load(file).id, len(ages), len(faces) - len(ages),
        float(covered(before.low, before.high, ages, labels).mean()), float((before.high - before.low).mean()),
        float((after.high - after.low).mean()), promised.limit_low, promised.limit_high,
    )  # fmt: skip


def distributions(
    faces: pd.DataFrame, model: AgeModel, root: Path | str, mode: Mode, cache: Path
) -> tuple[Floats, Years]:
    """The model's age distributions (n, bins) of the faces whose pictures are still there, and their true ages (n,)."""
    source, detector = door.at(root), YuNet() if mode == "detect" else None
    chips: list[RGB] = []
    ages: list[float] = []
    for path, pictured in faces.groupby("path"):
        try:
            data, _ = source.read(FileRef(str(path)))
            with one_pictures_misfortune():
                seen = look(data, detector, model.spec.cut)
        except ImageError:
            continue
        digest = blake2b(data, digest_size=32).hexdigest()
        for face, age, known in zip(pictured["face"], pictured["age"], pictured["content_hash"], strict=True):
            if known == digest and face < len(seen.chips):
                chips.append(seen.chips[face])
                ages.append(age)
    if not chips:
        return np.empty((0, len(model.spec.labels.years)), np.float32), np.empty(0)
    engine = open_engine(model, cache=cache)
    batches = (np.stack(chips[start : start + _BATCH]) for start in range(0, len(chips), _BATCH))
    return np.concatenate([engine(batch) for batch in batches]), np.array(ages, np.float64)


def _require_enough(n: int, labels: int) -> None:
    if n < LEAST_FACES:
        unread = f", {labels - n:,} of their pictures can't be read any more" if n < labels else ""
        raise LabelError(
            f"{n:,} labelled faces are too few{unread}: intervals are calibrated on at least {LEAST_FACES}."
            " `agewatch labels ask` draws faces to label."
        )


def _packaged(model: AgeModel, new: Calibration, told: dict[str, object], model_path: Path, store: Path) -> Path:
    spec = dataclasses.replace(model.spec, calibration=new, metrics=model.spec.metrics | {"recalibrated": told})
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(told["archive"])).strip("-.") or "archive"
    base = re.sub(rf"-{re.escape(name)}-\d+$", "", spec.version)
    number = next(n for n in range(1, 10_000) if not (store / f"agewatch-{base}-{name}-{n}.mar").exists())
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        AgeModel(spec, model.weights).save(made)
        (made / "reference.parquet").write_bytes(_without_intervals(read_reference(model_path)))
        if splits := read_splits(model_path):
            (made / "splits.parquet").write_bytes(splits)
        return package(made, version=f"{base}-{name}-{number}", store=store)


def _without_intervals(reference: bytes) -> bytes:
    """The reference rows, whose intervals were the old calibration's and can't be told anew from the rows."""
    rows = pq.ParquetFile(pa.BufferReader(reference)).read(use_threads=False)
    for column in {"age_low", "age_high"} & set(rows.column_names):
        place = rows.schema.get_field_index(column)
        rows = rows.set_column(place, column, pa.nulls(len(rows), rows.schema.field(place).type))
    file = io.BytesIO()
    pq.write_table(rows, file)
    return file.getvalue()
