"""The six situations of a drift report, and the page of sixty nights, drawn anew to be looked at: OUT [PICTURES].

Faces are drawn from the model's held-out rows, and come out the same each time. OUT/NAME/home/reports holds the pages,
OUT/*.png what is seen without scrolling at a desk and on a phone, in light and in dark. PICTURES is a folder with a
folder of faces for each age, for the thumbnails; without it they are of one astronaut.
"""

import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import skimage
from deltalake import write_deltalake
from people import adults

from agewatch.estimator.model import AgeModel
from agewatch.release.store import resolve
from agewatch.scoring import canaries, predictions, thumbnails
from agewatch.scoring.canaries import CanaryRun, Record
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
from agewatch.settings import Settings
from monitoring import drift

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import opened  # type: ignore[import-not-found]

FIRST = date(2026, 3, 1)
LOOKS = {
    f"{name}-{shade}": (*size, shade == "dark")
    for name, size in (("desktop", (1280, 800)), ("phone", (390, 844)))
    for shade in ("light", "dark")
}
_ALBUMS = (
    "Hochzeit Müller",
    "Schule 1998",
    "Urlaub am Meer",
    "صور العائلة",
    "Nachbarn",
    "Büro & Feste",
    "Garten",
    "Chor",
)


@dataclass(frozen=True)
class Part:
    """Faces that arrived in one night into one folder: of at least an age, so much darker, by a camera."""

    night: int
    folder: str
    n: int
    older: float = 0.0
    least: float = 0.0
    darker: float = 0.0
    camera: str = "Canon EOS 80D"
    refused: int = 0


def calm(nights: Iterable[int], n: int = 280, darker: float = 0.0, camera: str = "Canon EOS 80D") -> list[Part]:
    """Ordinary nights, each of all eight albums."""
    return [
        Part(night, f"{album}/{night:03}", n // 8, _offset(night, place), 0.0, darker, camera, int(night % 7 == place))
        for night in nights
        for place, album in enumerate(_ALBUMS)
    ]


def _offset(night: int, place: int) -> float:
    """Years by which pictures of one folder differ together from others."""
    return float(np.random.default_rng(night * 8 + place).normal(0, 1))


BASE = calm(range(16), 320)
SITUATIONS: dict[str, list[Part]] = {
    "no-drift": [*BASE, *calm(range(16, 60))],
    "too-little": [*BASE, *calm(range(16, 18), 40)],
    "people": [*BASE, *calm(range(16, 60)), *(Part(n, f"Seniorenheim/{n:03}", 120, least=58) for n in range(48, 60))],
    "camera": [*BASE, *calm(range(16, 50)), *calm(range(50, 60), 280, 0.16, "SCAN-O-MAT 3")],
    "instrument": [*BASE, *calm(range(16, 30))],
    "first-night": calm(range(1), 340),
}


def main(out: Path, pictures: Path | None) -> None:
    """Make all of it below OUT."""
    for name, parts in SITUATIONS.items():
        home = out / name / "home"
        os.environ["AGEWATCH_HOME"] = str(home)
        table = _filled(home, out / name / "Familienarchiv", parts, pictures)
        nights = sorted({part.night for part in parts})
        if name != "first-night":
            _with_canaries(table, nights[-8:], moved=name == "instrument")
        for night in nights[-60:] if name == "people" else nights[-1:]:
            drift.run(None, predictions_dir=table, until=FIRST + timedelta(days=night))
        _shoot(out, name, max((home / "reports").glob("*/*/index.html")))
    _shoot(out, "index", out / "people" / "home" / "reports" / "index.html")


def _shoot(out: Path, name: str, page: Path) -> None:
    with opened(out / f".chromium-{name}") as tab:
        seen = tab.visit(page.as_uri(), out / f"{name}.png", "true")
        for look, (width, height, dark) in LOOKS.items():
            tab.look(width, height, dark=dark)
            tab.shoot(out / f"{name}-{look}.png", beyond=False)
            tab.shoot(out / f"{name}-{look}-whole.png")
    fetched = [one for one in seen.requests if not one.startswith("data:")]
    print(f"{name}: {page.stat().st_size / 1e3:.0f} kB, {len(fetched)} requests, problems: {seen.problems or 'none'}")


def _filled(home: Path, root: Path, parts: list[Part], pictures: Path | None) -> Path:
    """A table of the parts' rows, a commit a night, and below `root` the files of the last three weeks."""
    key = Key(root.name, AgeModel.load(resolve(None, Settings().model_store)).id, "detect")
    table, last = home / "predictions", max(part.night for part in parts)
    Writer(table, key, root=root)
    for night in sorted({part.night for part in parts}):
        rows = [_rows(key, part, pictures) for part in parts if part.night == night]
        write_deltalake(table, pa.concat_tables(rows), mode="append")
        if night > last - 21:
            _write_files(root, pa.concat_tables(rows), pictures)
    return table


def _rows(key: Key, part: Part, pictures: Path | None) -> pa.Table:
    rng = np.random.default_rng([part.night, len(part.folder), part.n])
    faces, n, total = adults(), part.n, part.n + part.refused
    picked = rng.choice(np.flatnonzero(faces["age"] >= part.least), size=n)
    age = np.clip(faces["age"][picked] + part.older, 1, 100)
    half = faces["age_interval"][picked] / 2
    when = datetime.combine(FIRST + timedelta(days=part.night), time(2), UTC)
    hashes = [_hash(_shown(pictures)[min(int(years), 99)]) for years in (*age, *[0] * part.refused)]
    side = rng.normal(140, 12, total)
    lost = [None] * part.refused
    known = {
        "archive": [key.archive] * total, "model": [key.model] * total, "mode": [key.mode] * total,
        "engine": ["openvino-f32"] * total, "run_id": ["r"] * total, "scored_at": [when] * total,
        "arrived_at": [when] * total, "bytes": [1] * total, "mtime_ns": [1] * total, "content_hash": hashes,
        "path": [f"{part.folder}/IMG_{part.night:03}{i:04}.jpg" for i in range(total)],
        "face": [0] * n + lost, "status": ["ok"] * n + ["truncated"] * part.refused, "camera": [part.camera] * total,
        "age": [*age, *lost], "age_low": [*np.clip(age - half, 0, 120), *lost], "age_high": [*(age + half), *lost],
        "sharpness": [*2.0 ** (faces["sharpness"][picked] - 6 * part.darker), *lost],
        "brightness": [*np.clip(faces["brightness"][picked] - part.darker, 0, 1), *lost],
        **{name: [*faces[name][picked], *lost] for name in ("face_score", "contrast")},
        "box_x": 100 - side / 2, "box_y": 100 - side / 2, "box_w": side, "box_h": side,
    }  # fmt: skip
    columns = [pa.array(known.get(field.name, [None] * total)).cast(field.type) for field in predictions.SCHEMA]
    return pa.table(columns, schema=predictions.SCHEMA)


@cache
def _shown(pictures: Path | None) -> list[bytes]:
    """A small JPEG for each age from 0 to 99."""
    if pictures is not None:
        folders = {int(folder.name): folder for folder in pictures.iterdir() if folder.name.isdecimal()}
        near = [folders[min(folders, key=lambda age: abs(age - years))] for years in range(100)]
        return [min(folder.iterdir()).read_bytes() for folder in near]
    face = skimage.data.astronaut()[20:220, 130:330]  # type: ignore[no-untyped-call]
    return [thumbnails.jpeg((face * (1 - years / 200)).astype(np.uint8)) for years in range(100)]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _write_files(root: Path, rows: pa.Table, pictures: Path | None) -> None:
    held = {_hash(data): data for data in _shown(pictures)}
    for row in rows.select(["path", "content_hash"]).to_pylist():
        file = root / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(held[row["content_hash"]])


def _with_canaries(table: Path, nights: list[int], *, moved: bool) -> None:
    """Runs that saw the same ages, or where they moved, others from the fifth run on."""
    [name], model = predictions.archives(table), AgeModel.load(resolve(None, Settings().model_store)).id
    runs = []
    for number, night in enumerate(nights):
        by, at = moved and number >= len(nights) // 2, datetime.combine(FIRST + timedelta(days=night), time(3), UTC)
        run = CanaryRun(
            at=at, run_id=f"r{night}", model=model, mode="detect",
            engine="openvino-bf16" if by else "openvino-f32", n=200, moved_years=0.38 * by,
            spread_years=0.46 if by else 0.001, largest_years=1.9 * by, lost=0, replaced=0,
        )  # fmt: skip
        runs.append(run)
    canaries._write(table, name, Record(runs=runs))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
