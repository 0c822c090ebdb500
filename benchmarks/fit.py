"""What the estimated error may be believed: known faces, as they are and changed, whose true ages it does not see.

The error is estimated by the function that `agewatch drift` calls, from the reference's rows of one half of the
pictures, without the portraits: a domain that it is not to know. Windows are drawn from the other half, and of all
portraits. AGEWATCH_DATA names the pictures; NANNYML_PYTHON a Python that has NannyML, whose DLE then stands beside it.
`benchmarks/fit.py WINDOWS` draws fewer than the 50 a shift and half that RESULTS.md holds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from lives import Floats
from results import table, write_section
from scipy.stats import binomtest
from variants import scored

from agewatch import api
from monitoring import fit

FACES = 300
UNKNOWN = "archive_portraits"
WITHIN = 0.15
_FEATURES = ["age", "width", "brightness", "contrast", "sharpness", "face_score", "box_h"]


def main(windows: int = 50) -> None:
    """Draw, estimate, and write the section of RESULTS.md."""
    warnings.simplefilter("ignore")
    reference = fit.reference(api.model_file(None), "detect")
    assert reference is not None
    reference = reference.assign(half=_half(reference["archive"] + "/" + reference["path"]))
    found: dict[str, list[tuple[float, float, fit.Fit, float]]] = {}
    for half in (0, 1):
        known = reference[(reference["half"] != half) & (reference["archive"] != UNKNOWN)]
        drawn = {name: _windows(faces, windows) for name, faces in _shifts(half, known["age_true"].median()).items()}
        theirs = _dle(known, [window for some in drawn.values() for window in some])
        for name, some in drawn.items():
            true = float(some[0].attrs["all"])
            found.setdefault(name, [])
            for window in some:
                found[name].append((_mae(window), true, fit.fit(known, window), theirs.pop(0)))
    _write(found, len(reference), _seconds(reference))


def _shifts(half: int, middle: float) -> dict[str, pd.DataFrame]:
    """Faces of one half of the pictures by what is unlike the reference in them; nothing was chosen by the last two."""
    kinds = {name: scored(name) for name in ("as they are", "blurred", "dark", "half size", "JPEG 10", "bright")}
    kinds = {name: rows[_half(rows["path"]) == half] for name, rows in kinds.items()}
    plain = kinds.pop("as they are")
    every = scored("as they are")
    people = {
        "as they are": plain[plain["source"] != UNKNOWN],
        "portraits": every[every["source"] == UNKNOWN],
        "older half": plain[plain["age_true"] >= middle],
        "children under 13": plain[plain["age_true"] < 13],
        "younger half": plain[plain["age_true"] < middle],
    }
    return people | {name: rows[rows["source"] != UNKNOWN] for name, rows in kinds.items()}


def _half(paths: pd.Series) -> Floats:
    stems = paths.str.replace(r"\.[^.]*$", "", regex=True)
    halves: Floats = (pd.util.hash_array(stems.to_numpy(object)) % 2).astype(np.float64)
    return halves


def _windows(faces: pd.DataFrame, windows: int) -> list[pd.DataFrame]:
    found = [faces.sample(FACES, replace=True, random_state=seed) for seed in range(windows)]
    for window in found:
        window.attrs["all"] = _mae(faces)
    return found


def _mae(faces: pd.DataFrame) -> float:
    return float((faces["age"] - faces["age_true"]).abs().mean())


def _dle(known: pd.DataFrame, windows: list[pd.DataFrame]) -> list[float]:
    """What NannyML's DLE says of each window, years; NaN without it."""
    if "NANNYML_PYTHON" not in os.environ:
        return [float("nan")] * len(windows)
    with tempfile.TemporaryDirectory() as home:
        files = Path(home) / "reference.parquet", Path(home) / "windows.parquet"
        for file, rows in zip(files, (known, pd.concat(windows, ignore_index=True)), strict=True):
            rows = rows.assign(width=rows["age_high"] - rows["age_low"], sharpness=np.log2(rows["sharpness"]))
            rows[[*_FEATURES, "age_true"]].astype(np.float64).reset_index(drop=True).to_parquet(file)
        command = [os.environ["NANNYML_PYTHON"], str(Path(__file__).with_name("nanny.py")), *map(str, files)]
        done = subprocess.run([*command, str(FACES)], check=True, capture_output=True, text=True)
    said: list[float] = json.loads(done.stdout.splitlines()[-1])
    return said


def _seconds(reference: pd.DataFrame) -> float:
    """CPU seconds for the most faces that a report reads, against the whole reference."""
    faces = reference.sample(20_000, replace=True, random_state=0)
    began = time.process_time()
    fit.fit(reference, faces)
    return time.process_time() - began


def _row(name: str, found: list[tuple[float, float, fit.Fit, float]]) -> list[str]:
    said = [(mae, true, one.estimated_mae) for mae, true, one, _ in found if one.estimated_mae is not None]
    true, outside = np.mean([true for _, true, _, _ in found]), np.mean([one.outside for _, _, one, _ in found])
    theirs = [dle / true - 1 for _, true, _, dle in found]
    row = [name, f"{true:.2f}", f"{outside:.0%}", f"{len(found) - len(said)} of {len(found)}"]
    if said:
        off = [one.value / true - 1 for _, true, one in said]
        inside = sum(one.low <= mae <= one.high for mae, _, one in said)
        ends = binomtest(inside, len(said)).proportion_ci()
        band = f"{np.mean([one.low for *_, one in said]):.1f} to {np.mean([one.high for *_, one in said]):.1f}"
        row += [f"{np.mean([one.value for *_, one in said]):.2f}", f"{np.mean(off):+.0%}"]
        row += [f"{sum(abs(one) <= WITHIN for one in off)} of {len(said)}", band]
        row += [f"{inside} of {len(said)} ({ends.low:.0%} to {ends.high:.0%})"]
    else:
        row += ["can't say", *[""] * 4]
    return [*row, *(["not run"] * 2 if np.isnan(theirs).any() else _theirs(theirs))]


def _theirs(off: list[float]) -> list[str]:
    return [f"{np.mean(off):+.0%}", f"{sum(abs(one) <= WITHIN for one in off)} of {len(off)}"]


_TEXT = """Written by `python benchmarks/fit.py`: windows of {faces} faces, {windows} a line, seeds 0 to {last} in \
each half of the pictures; the error model learns from the other half of the {reference:,} reference rows without \
{unknown}, which it has never seen. Off: against the true mean absolute error of all faces of the shift. In its \
band: the true one of the window's own faces, with a 95 % interval that takes windows as independent, though they \
are drawn from the same faces. Nothing was chosen by the last two lines. DLE is NannyML's, with its defaults, on \
{features}.

{table}

{seconds:.1f} seconds of CPU for 20,000 faces against the whole reference.

Where it falls short: portraits, dark and bright pictures are not estimated at all, though the error of the last two \
hardly grows; the band is wide, as the estimate is off by so much on a source that was left out; children are few in \
the reference's half, and their error there is itself a matter of chance.
"""
_HEADER = (
    "faces", "true MAE", "outside", "can't say", "estimate", "off", "within 15 %", "band (95 %)", "in its band",
    "DLE, off", "within 15 %",
)  # fmt: skip


def _write(found: dict[str, list[tuple[float, float, fit.Fit, float]]], reference: int, seconds: float) -> None:
    rows = [_row(name, some) for name, some in found.items()]
    windows = len(next(iter(found.values())))
    text = _TEXT.format(
        faces=FACES, windows=windows, last=windows // 2 - 1, reference=reference, unknown=UNKNOWN,
        features=", ".join(_FEATURES), table=table(list(_HEADER), rows), seconds=seconds,
    )  # fmt: skip
    write_section("Estimated error", text)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
