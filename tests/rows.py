"""Rows of the predictions table, and what writes them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer


def row(path: str, *, face: int | None = 0, age: float | None = 30.1, **changed: Any) -> dict[str, Any]:
    return {
        "archive": "a", "path": path, "face": face, "status": "ok" if face is not None else "no_face",
        "content_hash": "0" * 64, "bytes": 10, "mtime_ns": 5, "age": age, "model": "m-1@0", "mode": "detect",
        "engine": "openvino-f32", "run_id": "r", "scored_at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    } | changed  # fmt: skip


def writer(folder: Path, root: Path, archive: str = "a", model: str = "m-1@0") -> Writer:
    return Writer(folder / "table", Key(archive, model, "detect"), root=root)
