"""The drift run: current rows of one archive against the reference rows that travel inside the model."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agewatch.errors import ModelError, TableError, UsageError
from agewatch.estimator.model import AgeModel, read_reference
from agewatch.scoring import predictions
from monitoring import report
from monitoring.verdict import Verdict, judge

_READ = (
    "archive", "path", "status", "mode",
    "age", "age_low", "age_high", "face_score", "brightness", "contrast", "sharpness",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DriftRun:
    """What was compared, the answer, and the files that show it."""

    archive: str
    model: str
    mode: str
    verdict: Verdict
    report: report.Report


def run(
    archive: str | None, *, model_path: Path, predictions_dir: Path, out_dir: Path, mode: str | None = None
) -> DriftRun:
    """Judge the current rows of one archive and write the report into `out_dir`.

    `archive` None means the only one in the table; `mode` None means the mode that was scored last.
    Raises UsageError where the archive is not in the table, or several are and none was named; TableError
    where there is no table or no row of this model and mode; ModelError where the model can't be read;
    OSError where the report can't be written.
    """
    reference = _reference(model_path)
    model = AgeModel.load(model_path).id
    archive = find_archive(archive, predictions_dir)
    mode = mode or predictions.latest_mode(predictions_dir, archive=archive, model=model)
    current = predictions.read(predictions_dir, archive=archive, model=model, mode=mode, columns=_READ)
    if not len(current):
        raise TableError(f"The archive '{archive}' has no rows of the model {model} in mode {mode} yet.")
    same_mode = reference.filter(pc.equal(reference["mode"], mode))
    if len(same_mode):
        reference = same_mode
    verdict = judge(reference, current)
    written = report.write(verdict, reference, current, out_dir, archive=archive, model=model, mode=mode)
    return DriftRun(archive, model, mode, verdict, written)


def find_archive(archive: str | None, predictions_dir: Path) -> str:
    """The archive meant: the one named, or the only one in the table. Raises as `run` does."""
    names = sorted(predictions.archives(predictions_dir))
    if archive in names:
        return archive
    if not names:
        raise TableError(f"The predictions table at {predictions_dir} has no archive yet: run `agewatch score` first.")
    if archive is not None:
        raise UsageError(f"There is no archive '{archive}' in the predictions table; it holds {', '.join(names)}.")
    if len(names) > 1:
        raise UsageError(f"The predictions table holds {', '.join(names)}: name one with --archive.")
    return names[0]


def run_dir(reports_dir: Path, archive: str) -> Path:
    """A new folder's path for one report: ARCHIVE/RUN under `reports_dir`. RUN is the time in UTC."""
    name = quote(archive, safe=" ")
    name = name.replace(".", "%2E") if set(name) == {"."} else name  # "." and ".." would leave the folder
    return reports_dir / name / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def _reference(model_path: Path) -> pa.Table:
    try:
        # Without threads: Arrow's may still call Python while the interpreter ends, which aborts some exits.
        reference = pq.ParquetFile(pa.BufferReader(read_reference(model_path))).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ModelError(f"The reference rows of {model_path} are damaged: {error}.") from error
    missing = [name for name in _READ if name not in reference.column_names]
    if missing:
        raise ModelError(f"The reference rows of {model_path} lack {', '.join(missing)}.")
    return reference
