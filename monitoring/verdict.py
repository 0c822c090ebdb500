"""Two sets of rows -> drift, no drift, or too little data to tell.

Every measure of a face is compared by the 1-Wasserstein distance, in the measure's own unit. Its threshold
is the larger of two: what two draws of these sizes from the reference alone differ by (so the number of faces
does not decide), and the smallest shift that matters (so a million faces do not alarm about nothing).
Refused files and files without a face have no measures, so their shares are tested on their own. The chance
that any column alarms without drift is about ALPHA a run: each of k columns gets ALPHA / k (Bonferroni).
Simulated without drift, reference 1,000, 200 runs each: 1, 3 and 4 alarms at 50, 200 and 1,000 faces.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binom, binomtest, wasserstein_distance

Floats = npt.NDArray[np.float64]

UNITS = {
    "age": "years",
    "age_interval": "years",
    "face_score": "0 to 1",
    "brightness": "0 to 1",
    "contrast": "0 to 1",
    "sharpness": "Laplacian variance",
    "refused_share": "share of files",
}
"""Unit of each column that can be judged. The share is a fraction, 0..1."""

ALPHA = 0.01
"""Chance that a run without drift alarms: about one false alarm in 100 nights."""
MATERIAL_YEARS = 0.5
"""Smallest shift of a column in years that matters; a shift of half a year is no news, however many faces show it."""
MATERIAL_DEVIATIONS = 0.1
"""Smallest shift of any other measure that matters, in standard deviations of the reference."""
MATERIAL_SHARE = 0.05
"""Smallest change of a share that matters: the failure budget of `score --max-refused`."""
MIN_FACES = 30
"""With fewer faces on either side no measure is judged."""
VISIBLE_YEARS = 3.0
""""No drift" is only said where the threshold of the ages is no wider than this."""

_DRAWS = 4000  # leaves 5 draws beyond the quantile 1 - ALPHA / 8
_LEVELS = 2000  # a larger reference is thinned to this many evenly spaced quantiles


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """How far one column moved: distances >= 0, in `unit`; drifted = distance > threshold."""

    name: str
    distance: float
    unit: str
    threshold: float
    drifted: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. `n_reference` and `n_current` count faces; `reason` also names what was not judged."""

    verdict: Literal["drift", "no_drift", "too_little_data"]
    n_reference: int
    n_current: int
    columns: tuple[ColumnDrift, ...]
    reason: str


def measures(table: pa.Table) -> dict[str, Floats]:
    """The measures of the faces (rows with status `ok`) in a predictions table, by the names in UNITS.

    Each array has one number a face, NaN where the row has none. A measure that no row has is left out.
    """
    faces = table.filter(pc.equal(table["status"], "ok"))
    found = {name: faces[name].cast(pa.float64()).to_numpy() for name in UNITS if name in faces.column_names}
    interval = pc.subtract(faces["age_high"].cast(pa.float64()), faces["age_low"].cast(pa.float64()))
    found["age_interval"] = interval.to_numpy()
    return {name: found[name] for name in UNITS if name in found and np.isfinite(found[name]).any()}


def judge(reference: pa.Table, current: pa.Table, *, seed: int = 0) -> Verdict:
    """Compare current rows of the predictions table with the model's reference rows.

    Both tables have the columns of the predictions table; current holds one archive. `seed` makes the drawn
    thresholds repeatable. A measure that fewer than MIN_FACES faces have on either side is not judged, but named
    in the reason. Files without a face are no measure: the reference was chosen for its faces.
    """
    before, now = measures(reference), measures(current)
    n_reference, n_current = _faces(reference), _faces(current)
    names = [name for name in before if _enough(before[name]) and _enough(now.get(name))]
    alpha = ALPHA / (len(names) + 1)
    noise = _Noise(alpha, seed)
    columns = [_measure_drift(name, before[name], now[name], noise) for name in names]
    if len(reference) and len(current):
        columns.append(_share_drift(refused(reference), refused(current), alpha))

    if any(column.drifted for column in columns):
        answer: Literal["drift", "no_drift", "too_little_data"] = "drift"
        reason = _drift_sentence(columns)
    else:
        visible = columns[0].threshold if names[:1] == ["age"] else math.inf
        answer = "no_drift" if visible <= VISIBLE_YEARS else "too_little_data"
        reason = (
            f"None of {len(columns)} columns moved by more than its threshold; "
            f"the ages would have had to move by {visible:.1f} years."
            if answer == "no_drift"
            else _too_little_sentence(before.get("age"), n_reference, n_current, noise)
        )
    left_out = [name for name in UNITS if name not in [*names, "refused_share"]]
    if left_out:
        reason += f" Not judged, for want of values to compare: {', '.join(left_out)}."
    return Verdict(answer, n_reference, n_current, tuple(columns), reason)


class _Noise:
    """How far two draws from one and the same reference lie apart: the quantile 1 - alpha of their distance.

    A draw of n faces from m sorted values is a multinomial count, so its cost does not depend on n, and the
    distribution functions of the draws serve every column that has the same sizes; only the gaps between
    the column's values differ.
    """

    def __init__(self, alpha: float, seed: int) -> None:
        self._alpha = alpha
        self._seed = seed
        self._apart: dict[tuple[int, int, int], npt.NDArray[np.float32]] = {}

    def threshold(self, reference: Floats, n_current: int) -> float:
        """The distance, in the values' unit, that draws without drift exceed with probability alpha."""
        levels = _sorted_levels(reference)
        key = (len(levels), len(reference), n_current)
        if key not in self._apart:
            self._apart[key] = self._draw(*key)
        distances = self._apart[key] @ np.diff(levels)
        return float(np.quantile(distances, 1 - self._alpha, method="higher"))

    def _draw(self, levels: int, n_reference: int, n_current: int) -> npt.NDArray[np.float32]:
        """|F - G| below each gap for pairs of drawn distribution functions, shape (_DRAWS, levels - 1)."""
        rng = np.random.default_rng(self._seed)
        even = np.full(levels, 1 / levels)
        apart = np.empty((_DRAWS, levels - 1), dtype=np.float32)
        for row in apart:
            first = rng.multinomial(n_reference, even) / n_reference
            second = rng.multinomial(n_current, even) / n_current
            row[:] = np.abs(np.cumsum(first - second)[:-1])
        return apart


def _sorted_levels(values: Floats) -> Floats:
    if len(values) <= _LEVELS:
        return np.sort(values)
    return np.quantile(values, (np.arange(_LEVELS) + 0.5) / _LEVELS)


def _faces(table: pa.Table) -> int:
    return int(pc.sum(pc.equal(table["status"], "ok")).as_py() or 0)


def _enough(values: Floats | None) -> bool:
    return values is not None and int(np.isfinite(values).sum()) >= MIN_FACES


def _measure_drift(name: str, before: Floats, now: Floats, noise: _Noise) -> ColumnDrift:
    before, now = before[np.isfinite(before)], now[np.isfinite(now)]
    unit = UNITS[name]
    material = MATERIAL_YEARS if unit == "years" else MATERIAL_DEVIATIONS * float(before.std())
    threshold = max(material, noise.threshold(before, len(now)))
    distance = float(wasserstein_distance(before, now))
    return ColumnDrift(name, distance, unit, threshold, distance > threshold)


def refused(table: pa.Table) -> tuple[int, int]:
    """(files refused, files in all); each file counts once."""
    rows = table.select(["archive", "path", "status"])
    status = rows.group_by(["archive", "path"]).aggregate([("status", "min")])["status_min"]
    no_face = int(pc.sum(pc.equal(status, "no_face")).as_py() or 0)
    ok = int(pc.sum(pc.equal(status, "ok")).as_py() or 0)
    return len(status) - ok - no_face, len(status)


def _share_drift(before: tuple[int, int], now: tuple[int, int], alpha: float) -> ColumnDrift:
    """Exact one-sided binomial tests, alpha / 2 each way.

    Against the far end of the reference share's Clopper-Pearson interval, moved by MATERIAL_SHARE, so a few
    refusals among a few files stay below the threshold.
    """
    (hits_before, n_before), (hits, n) = before, now
    before_share, now_share = hits_before / n_before, hits / n
    known = binomtest(hits_before, n_before).proportion_ci(1 - alpha)
    if now_share >= before_share:
        critical = binom.isf(alpha / 2, n, min(1.0, known.high + MATERIAL_SHARE))
    else:
        critical = binom.ppf(alpha / 2, n, max(0.0, known.low - MATERIAL_SHARE))
    threshold = abs(int(critical) / n - before_share)
    distance = abs(now_share - before_share)
    return ColumnDrift("refused_share", distance, UNITS["refused_share"], threshold, distance > threshold)


def amount(value: float, unit: str) -> str:
    """A distance or threshold for a person: `4.2 years`, `30.0 percentage points`, `0.031`."""
    if unit.startswith("share"):
        return f"{100 * value:.1f} percentage points"
    return f"{value:.1f} {unit}" if unit == "years" else f"{value:.2g}"


def _drift_sentence(columns: list[ColumnDrift]) -> str:
    drifted = [column for column in columns if column.drifted]
    worst = max(drifted, key=lambda column: column.distance / max(column.threshold, 1e-12))
    return (
        f"{worst.name} moved by {amount(worst.distance, worst.unit)}, "
        f"threshold {amount(worst.threshold, worst.unit)}; {len(drifted)} of {len(columns)} columns drifted."
    )


def _too_little_sentence(ages: Floats | None, n_reference: int, n_current: int, noise: _Noise) -> str:
    had = f"{n_current} faces against {n_reference} of the reference are too few to see an age shift of"
    if ages is None or n_reference < MIN_FACES:
        return f"{had} {VISIBLE_YEARS:.0f} years; the reference needs at least {MIN_FACES} faces with an age."
    drawn = max(n_current, MIN_FACES)
    seen = noise.threshold(ages[np.isfinite(ages)], drawn)
    # The noise goes with sqrt(1/n_reference + 1/n_current).
    room = (VISIBLE_YEARS / seen) ** 2 * (1 / n_reference + 1 / drawn) - 1 / n_reference
    if room <= 0:
        return f"{had} {VISIBLE_YEARS:.0f} years; no number of faces helps, the reference is too small."
    needed = max(MIN_FACES, math.ceil(1 / room))
    magnitude = 10 ** max(0, len(str(needed)) - 2)
    rounded = math.ceil(needed / magnitude) * magnitude
    return f"{had} {VISIBLE_YEARS:.0f} years; about {rounded} faces would do."
