"""Rows of the predictions table that arrived on chosen nights, without pictures behind them."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer

MODEL = "agewatch-1@0123456789ab"
FIRST = date(2026, 1, 1)


def day(number: int) -> date:
    """The night so many days after the first."""
    return FIRST + timedelta(days=number)


def night(
    number: int,
    n: int,
    *,
    older: float = 0,
    refused: int = 0,
    no_face: int = 0,
    folders: int | None = None,
    folder: str | None = None,
    model: str = MODEL,
    captured: date | None = None,
    seed: int | None = None,
) -> pa.Table:
    """What arrived in one night: files with one face each, of one population of ages, then others.

    They lie in so many folders of the night's own, by default of 20 files each, or all in one.
    """
    folders = folders or max(1, n // 20)
    rng = np.random.default_rng(number if seed is None else seed)
    age, half = np.clip(rng.gamma(4, 9, n) + older, 0, 100), rng.normal(10, 1.5, n)
    drawn = {
        "age": age, "age_low": age - half, "age_high": age + half, "face_score": rng.beta(90, 10, n),
        "brightness": rng.beta(5, 5, n), "contrast": rng.beta(5, 15, n), "sharpness": rng.gamma(1, 0.02, n) + 1e-3,
    }  # fmt: skip
    status = ["ok"] * n + ["unreadable"] * refused + ["no_face"] * no_face
    total, rest = len(status), [None] * (refused + no_face)
    hashes = rng.bytes(32 * total).hex()
    arrived = datetime.combine(day(number), time(3), UTC)
    known = {
        "archive": ["town"] * total,
        "path": [f"{folder or f'{number}-{i % folders}'}/{number}-{i}.jpg" for i in range(total)],
        "status": status, "face": [0] * n + rest, "model": [model] * total, "mode": ["detect"] * total,
        "engine": ["torch-f32"] * total, "run_id": [f"r{number}"] * total, "scored_at": [arrived] * total,
        "arrived_at": [arrived] * total, "bytes": [1] * total, "mtime_ns": [1] * total,
        "content_hash": [hashes[64 * i : 64 * i + 64] for i in range(total)],
        "captured_at": [captured and datetime.combine(captured, time(12), UTC)] * total,
    }  # fmt: skip
    known |= {name: [*values, *rest] for name, values in drawn.items()}
    columns = [pa.array(known.get(field.name, [None] * total), field.type) for field in predictions.SCHEMA]
    return pa.table(columns, schema=predictions.SCHEMA)


def store(table: Path, *nights: pa.Table, archive: str = "town", root: Path | None = None) -> Path:
    """Write nights to a predictions table, each in a commit of its own; they keep their arrivals. Returns the table."""
    for rows in nights:
        Writer(table, Key(archive, rows["model"][0].as_py(), "detect"), root=root or table.parent / archive)
        names = pa.array([archive] * len(rows), pa.string())
        write_deltalake(table, rows.set_column(0, predictions.SCHEMA.field("archive"), names), mode="append")
    return table
