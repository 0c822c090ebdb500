"""Damaged copies by the hundred, and by the hundred thousand in `make soak`: none crashes, none touches its neighbours.

Fourteen kinds of damage by twelve formats; every file gets its row, and the table of statuses is printed.
AGEWATCH_SOAK_COPIES names another number of copies.
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import FORMATS, KINDS, of_every_format
from pictures import seven_faces
from PIL import Image

from agewatch.errors import REFUSAL_CODES
from agewatch.scoring import predictions
from agewatch.scoring.score import Limits, Summary, score_archive
from agewatch.scoring.scorer import Execution

EACH = list(product(FORMATS, KINDS))
COPIES = int(os.environ.get("AGEWATCH_SOAK_COPIES", 100_000 if "AGEWATCH_SOAK" in os.environ else 2 * len(EACH)))
READ = ("ok", "no_face")
HARMLESS = ("garbage appended", "damaged metadata", "wrong suffix")
"""Every pixel is there."""
FATAL = ("cut", "header only", "zeroed tail", "empty")
"""Pixels are missing, and that must be noticed; but zeros are black where nothing is compressed."""
BLACK = {("TIFF, uncompressed", "zeroed tail"), ("BMP", "zeroed tail")}


def write_damaged(folder: Path, picture: Image.Image) -> dict[str, tuple[str, str]]:
    """Write so many damaged copies, as many of each kind and format; returns what each path is."""
    random = np.random.default_rng(7)
    whole, written = of_every_format(picture), {}
    suffixes = sorted({suffix for suffix, _ in FORMATS.values()})
    for number in range(COPIES):
        form, kind = EACH[number % len(EACH)]
        suffix = FORMATS[form][0]
        if kind == "wrong suffix":
            suffix = str(random.choice([other for other in suffixes if other != suffix]))
        path = f"{number // 1000:03}/{number:06}.{suffix}"
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(KINDS[kind](whole[form], random))
        written[path] = (form, kind)
    return written


def markdown(statuses: Mapping[tuple[str, str], Counter[str]]) -> str:
    """Formats by kinds of damage: how many copies got each status."""
    lines = [["damage", *FORMATS], ["---"] * (len(FORMATS) + 1)]
    for kind in KINDS:
        cells = (statuses[form, kind].most_common() for form in FORMATS)
        lines.append([kind, *(", ".join(f"{count} {status}" for status, count in cell) for cell in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def same_answer(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two rows say the same of a face."""
    numbers = ("age", "age_low", "age_high", "box_x", "face_score", "brightness")
    exact = ("status", "content_hash", "face")
    return all(row[name] == pytest.approx(other[name], abs=0.01) for name in numbers) and all(
        row[name] == other[name] for name in exact
    )


def test_damaged_copies_beside_good_files(tmp_path: Path, model_folder: Path, cache: Path) -> None:
    good, mixed = tmp_path / "good", tmp_path / "mixed"
    good.mkdir()
    mixed.mkdir()
    for name, data in seven_faces().items():
        (good / name).write_bytes(data)
    face = Image.fromarray(np.asarray(Image.open(good / "small.jpg").convert("RGB")))
    written = write_damaged(mixed, face)
    for number, path in enumerate(sorted(good.iterdir())):  # among the damaged, not after them
        shutil.copy(path, mixed / f"{number * (COPIES // 1000) // 7:03}")

    def score(folder: Path) -> tuple[Summary, list[dict[str, Any]]]:
        table = tmp_path / f"{folder.name}-table"
        how = Execution(cache)
        summary = score_archive(folder, model_path=model_folder, table=table, how=how, limits=Limits(1))
        return summary, predictions.read(table).to_pylist()

    summary, rows = score(mixed)
    _, alone = score(good)
    found = {(row["path"], row["status"]) for row in rows}  # once a file: swapped blocks may double a face
    status_of = dict(found)
    assert summary.found == len(found) == len(status_of) == COPIES + len(alone)
    statuses: dict[tuple[str, str], Counter[str]] = {each: Counter() for each in EACH}
    for path, each in written.items():
        statuses[each][status_of[path]] += 1
    print(f"\n{COPIES:,} copies in {summary.seconds:.0f} s, no lost row\n\n{markdown(statuses)}")
    assert {status for counts in statuses.values() for status in counts} <= {*READ, *REFUSAL_CODES} - {"decoder_failed"}
    for (form, kind), counts in statuses.items():
        if kind in HARMLESS:
            assert counts.keys() == {"ok"}, (form, kind, counts)
        if kind in FATAL and (form, kind) not in BLACK:
            assert not counts.keys() & set(READ), (form, kind, counts)
    assert sum(summary.refused.values()) > COPIES / 4
    kept = {Path(row["path"]).name: row for row in rows if row["path"] not in written}
    assert kept.keys() == {row["path"] for row in alone}
    assert all(same_answer(kept[row["path"]], row) for row in alone)
    shutil.rmtree(mixed)  # gigabytes, in a soak
