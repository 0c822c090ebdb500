"""What judging drift costs in archives of a million faces and of ten, and whether 300 new faces are found."""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake
from people import adults
from results import table, write_section

from agewatch.estimator.model import AgeModel
from agewatch.release.store import resolve
from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
from agewatch.settings import Settings

SIZES = tuple(map(int, sys.argv[1:])) or (1_000_000, 10_000_000)
NEW, OLDER = 300, 10.0
CHUNK = 500_000
FOLDER = 20
_RUN = """
import json, resource, sys, time
from datetime import date
from pathlib import Path
from monitoring import drift, report
write, spent = report.write, []
def timed(*args):
    started = time.process_time()
    write(*args)
    spent.append(time.process_time() - started)
report.write = timed
started = time.process_time()
done = drift.run(None, predictions_dir=Path(sys.argv[1]), out=Path(sys.argv[1]).parent / "report")
cpu = time.process_time() - started - sum(spent)
print(json.dumps({"cpu": cpu, "report": sum(spent), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                  "verdict": done.verdict.answer, "since": str(done.verdict.since)}))
"""


def main() -> None:
    """Measure and write the section of RESULTS.md."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            predictions_dir = Path(folder) / "predictions"
            _fill(predictions_dir, size)
            for which in ("first", "second"):
                said = json.loads(
                    subprocess.run(
                        [sys.executable, "-c", _RUN, predictions_dir], check=True, capture_output=True
                    ).stdout
                )
                figures = [
                    f"{said['cpu']:.1f}",
                    f"{said['report']:.1f}",
                    f"{said['peak']:.2f}",
                    said["verdict"],
                    said["since"],
                ]
                rows.append([f"{size:,}, {which} run", *figures])
    head = ["old faces", "CPU s", "report CPU s", "peak GB", "verdict", "since"]
    write_section(
        "Cost of judging drift",
        f'Written by `make bench`: rows drawn as in "Drift", in folders of {FOLDER}, {NEW} new faces that are {OLDER:g}'
        " years older on 2026-06-02; CPU beyond start-up, and beside it that of the page, with the import of Evidently"
        " and its drawings. The first run sums up every night, the second finds the sums."
        f"\n\n{table(head, rows)}",
    )


def _fill(folder: Path, size: int) -> None:
    key = Key("big", AgeModel.load(resolve(None, Settings().model_store)).id, "detect")
    Writer(folder, key, root=folder.parent / "archive")
    rng = np.random.default_rng(0)
    for start in range(0, size, CHUNK):
        write_deltalake(folder, _rows(rng, key, start, CHUNK, datetime(2026, 6, 1, 2, tzinfo=UTC), 0.0), mode="append")
    write_deltalake(folder, _rows(rng, key, size, NEW, datetime(2026, 6, 2, 2, tzinfo=UTC), OLDER), mode="append")


def _rows(rng: np.random.Generator, key: Key, start: int, n: int, when: datetime, older: float) -> pa.Table:
    faces = adults()
    picked = rng.integers(len(faces["age"]), size=n)
    age = np.clip(faces["age"][picked] + older, 0, 100)
    half, sharpness = faces["age_interval"][picked] / 2, 2.0 ** faces["sharpness"][picked]
    hashes = rng.bytes(32 * n).hex()
    known = {
        "archive": [key.archive] * n, "model": [key.model] * n, "mode": [key.mode] * n, "engine": ["openvino-f32"] * n,
        "path": [f"album-{number // FOLDER:07}/IMG_{number:08}.jpg" for number in range(start, start + n)],
        "face": np.zeros(n, np.int32), "status": ["ok"] * n, "run_id": ["r"] * n,
        "scored_at": [when] * n, "arrived_at": [when] * n,
        "bytes": np.ones(n, np.int64), "mtime_ns": np.ones(n, np.int64),
        "content_hash": [hashes[64 * i : 64 * i + 64] for i in range(n)],
        "age": age, "age_low": age - half, "age_high": age + half, "sharpness": sharpness,
        **{name: faces[name][picked] for name in ("face_score", "brightness", "contrast")},
    }  # fmt: skip
    columns = [pa.array(known.get(field.name, [None] * n)).cast(field.type) for field in predictions.SCHEMA]
    return pa.table(columns, schema=predictions.SCHEMA)


if __name__ == "__main__":
    main()
