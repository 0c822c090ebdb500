"""The drift run: current rows of one archive against the reference rows that travel inside the model."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agewatch import api
from agewatch.errors import ModelError, TableError, UsageError
from agewatch.estimator.model import AgeModel, read_reference
from agewatch.estimator.spec import Mode
from agewatch.files import write_json
from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key
from agewatch.settings import Settings
from monitoring import report
from monitoring.verdict import Verdict, judge

EXIT_CODES = {"no_drift": 0, "drift": 4, "too_little_data": 5}
_READ = (
    "archive", "path", "status", "mode",
    "age", "age_low", "age_high", "face_score", "brightness", "contrast", "sharpness",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DriftRun:
    """Which rows were compared, the answer, and the files that show it, by their absolute paths."""

    key: Key
    verdict: Verdict
    html: Path
    json: Path

    @property
    def exit_code(self) -> int:
        """What `agewatch drift` ends with."""
        return EXIT_CODES[self.verdict.verdict]

    def content(self) -> dict[str, object]:
        """What `drift.json` holds."""
        files = {"report": str(self.html), "json": str(self.json)}
        return asdict(self.key) | asdict(self.verdict) | files | {"exit_code": self.exit_code}


def run(
    archive: str | None = None,
    *,
    model: api.ModelPath = None,
    predictions_dir: Path | None = None,
    out: Path | None = None,
    mode: Mode | None = None,
) -> DriftRun:
    """Judge the current rows of one archive and write the report into a folder.

    By default: the only archive of the table, the current model, the table of the settings, a new folder below their
    reports, the mode that was scored last. Raises UsageError where the archive is not in the table, or several are and
    none was named; TableError where there is no table or no row of this model and mode; ModelError where the model
    can't be read; OSError where the report can't be written.
    """
    settings = Settings()
    table = predictions_dir or settings.predictions
    archive, model_path = _archive(archive, table), api.model_file(model)
    reference = _reference(model_path)
    key = _key(archive, AgeModel.load(model_path).id, mode, table)
    current = predictions.read(table, key.where, _READ)
    if not len(current):
        raise TableError(f"The archive '{key.archive}' has no rows of the model {key.model} in mode {key.mode} yet.")
    same_mode = reference.filter(pc.equal(reference["mode"], key.mode))
    return report_on(
        key, same_mode if len(same_mode) else reference, current, out or run_dir(settings.reports, key.archive)
    )


def report_on(key: Key, reference: pa.Table, current: pa.Table, out: Path) -> DriftRun:
    """Judge two tables and write `index.html` and `drift.json` into a folder, each replaced at once, the latter last.

    Both have the columns of the predictions table. Raises OSError where the folder is not writable.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found = DriftRun(key, judge(reference, current), out / "index.html", out / "drift.json")
    report.write(found.html, found.verdict, reference, current, key)
    write_json(found.json, found.content())
    return found


def run_dir(reports_dir: Path, archive: str) -> Path:
    """A new folder's path for one report: ARCHIVE/RUN under `reports_dir`. RUN is the time in UTC."""
    return archive_dir(reports_dir, archive) / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def archive_dir(reports_dir: Path, archive: str) -> Path:
    """The folder of an archive's reports."""
    name = quote(archive, safe=" ")
    return reports_dir / (name.replace(".", "%2E") if set(name) == {"."} else name)  # "." and ".." would leave it


def _archive(archive: str | None, table: Path) -> str:
    """The archive meant: the one named, or the only one in the table."""
    names = sorted(predictions.archives(table))
    archive = archive and predictions.known_name(table, archive)
    if archive in names:
        return archive
    if not names:
        raise TableError(f"The predictions table at {table} has no archive yet: run `agewatch score` first.")
    if archive is not None:
        raise UsageError(f"There is no archive '{archive}' in the predictions table; it holds {', '.join(names)}.")
    if len(names) > 1:
        raise UsageError(f"The predictions table holds {', '.join(names)}: name one with --archive.")
    return names[0]


def _key(archive: str, model: str, mode: Mode | None, table: Path) -> Key:
    """The rows meant: those of the mode named, or of the one scored last."""
    mode = mode or predictions.latest_mode(table, archive=archive, model=model)
    if mode is None:
        raise TableError(f"The archive '{archive}' has no rows of the model {model} yet: run `agewatch score` first.")
    return Key(archive, model, mode)


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
