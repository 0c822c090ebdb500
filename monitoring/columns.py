"""The columns that are judged: what each is of, what matters of it, and how far it has moved."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from monitoring import evidence, windows
from monitoring.evidence import Course, Floats, Means, Shares
from monitoring.summaries import AGE_EDGES, MEASURES
from monitoring.windows import Split

ALPHA = 0.05
"""Chance that a life of evidence.NIGHTS windows without drift ever alarms, over all columns together."""
_OF_BASELINES = 0.1
"""The part of it that goes to the true shares of a baseline lying beyond their ends, of which there are two."""
SEGMENTS_PART = 0.3
"""The part of ALPHA that belongs to segments; see `segments`."""
SEGMENTS_END_ERROR = ALPHA * _OF_BASELINES * SEGMENTS_PART
_END_ERROR = ALPHA * _OF_BASELINES * (1 - SEGMENTS_PART) / 2
BOUND = 1 / (ALPHA * (1 - _OF_BASELINES))
"""What the evidence of all columns together has to pass: one with the part w of ALPHA has to pass BOUND / w."""
AGE_PART = 0.4
"""The part of ALPHA that belongs to the mean age; the other columns share alike what segments leave."""
_PRIOR = 8.0
"""The changes that are averaged over are of this many times what matters, as a standard deviation."""
_TENTH = 0.1
_NEAR_A_TENTH = (0.03, 0.3)

MATERIAL = {
    "age": 0.5,
    "youngest_share": 0.05,
    "oldest_share": 0.05,
    "age_interval": 0.5,
    "face_score": 0.01,
    "brightness": 0.02,
    "contrast": 0.01,
    "sharpness": 0.25,
    "refused_share": 0.05,
    "no_face_share": 0.05,
}
"""The smallest change of each column that matters, in its unit. Half a year of mean age is no news; five points are
the budget of `score --max-refused`; those of picture quality are about a fifth of what faces of one archive vary by."""
SHARE_SPREAD = _PRIOR * MATERIAL["youngest_share"]
"""The standard deviation of the changes of a share of faces that are averaged over."""
UNITS = {
    "age": "years",
    "youngest_share": "share of faces",
    "oldest_share": "share of faces",
    "age_interval": "years",
    "face_score": "0 to 1",
    "brightness": "0 to 1",
    "contrast": "0 to 0.5",
    "sharpness": "doublings",
    "refused_share": "share of files",
    "no_face_share": "share of files",
}
"""Unit of each column that can be judged. Shares are fractions, 0..1; a doubling is of the Laplacian's variance."""


_LABELS = {
    "age": "mean estimated age",
    "age_interval": "width of the 90 % age interval",
    "face_score": "face detector's confidence",
    "brightness": "brightness of the faces",
    "contrast": "contrast of the faces",
    "sharpness": "sharpness of the faces",
    "refused_share": "files that could not be read",
    "no_face_share": "pictures without a face",
}


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """How far a column has moved from the baseline, signed, with its 95 % interval, all in `unit`.

    Of what arrived since the change where the column drifted, else of the last window. `threshold` is the smallest
    change that would have been said of that: never less than what matters; infinite where none would. `before` and
    `now` are what moved: a mean, or a share. `label` says what it is of.
    """

    name: str
    label: str
    effect: float
    low: float
    high: float
    unit: str
    threshold: float
    drifted: bool
    before: float
    now: float


@dataclass(frozen=True, slots=True)
class Trail:
    """How far a column's estimate of each window lies from the baseline's, and half its 95 % interval, both in `unit`.

    Both are NaN where a window has no value.
    """

    name: str
    label: str
    unit: str
    effects: tuple[float, ...]
    halves: tuple[float, ...]


@dataclass(frozen=True)
class Column:
    """A column's data and evidence, still without a word on it."""

    name: str
    label: str
    data: Means | Shares
    course: Course
    part: float

    @property
    def log_bound(self) -> float:
        """What the logarithm of its evidence has to pass."""
        return math.log(BOUND / self.part)


def effect(data: Means | Shares, since: int) -> tuple[float, float, float, float]:
    """What windows from `since` on moved by, half its 95 % interval, and the baseline's and their value."""
    if isinstance(data, Shares):
        hits, files = float(data.hits[since:].sum()), float(data.files[since:].sum())
        before, now = data.baseline_hits / data.baseline_files, hits / max(files, 1e-9)
        error = math.sqrt(_variance(hits, files) + _variance(data.baseline_hits, data.baseline_files))
        return now - before, float(norm.ppf(0.975)) * error, before, now
    weight = 1 / data.variances[since:]
    if weight.sum() <= 0:
        return 0.0, math.inf, data.baseline, data.baseline
    now = float((weight * data.windows[since:]).sum() / weight.sum())
    error = math.sqrt(1 / weight.sum() + data.baseline_variance)
    df = max(evidence.scale_df(data) + int(np.isfinite(data.variances).sum()) - 1, 1.0)
    return now - data.baseline, float(t.ppf(0.975, df)) * error, data.baseline, now


def _variance(hits: float, files: float) -> float:
    """Of a share, with half a hit and half a miss more, so that none is certain."""
    share = (hits + 0.5) / (files + 1)
    return share * (1 - share) / (files + 1)


def of_split(divided: Split) -> tuple[list[Column], list[str]]:
    """The columns that can be judged, and the names of those that can't."""
    sums = {name: divided.cells[name].to_numpy(np.float64) for name in divided.cells.columns}
    data: dict[str, tuple[str, Means | Shares | None]] = {"age": (_LABELS["age"], _mean("age", divided, sums))}
    data |= _tails(divided, sums)
    data |= {name: (_LABELS[name], _mean(name, divided, sums)) for name in MEASURES[1:]}
    for name in ("refused_share", "no_face_share"):
        data[name] = (_LABELS[name], windows.shares(divided, sums[name.removesuffix("_share")], sums["files"]))
    usable = {name: (label, some) for name, (label, some) in data.items() if some is not None}
    means = {name: some for name, (_, some) in usable.items() if isinstance(some, Means)}
    of_means = evidence.of_columns([*means.values()], [_PRIOR * MATERIAL[name] for name in means])
    courses = dict(zip(means, of_means, strict=True)) | {
        name: evidence.of_shares(some, _END_ERROR) for name, (_, some) in usable.items() if isinstance(some, Shares)
    }
    others = (1 - AGE_PART - SEGMENTS_PART) / max(len(usable) - 1, 1)
    columns = [
        Column(name, label, some, courses[name], AGE_PART if name == "age" else others)
        for name, (label, some) in usable.items()
    ]
    return columns, [name for name in data if name not in usable]


def ages(divided: Split) -> Means | None:
    """The mean ages alone."""
    sums = [divided.cells[f"age_{what}"].to_numpy(np.float64) for what in ("n", "sum", "squares")]
    return windows.means(divided, sums[0], sums[1], sums[2])


def _mean(name: str, divided: Split, sums: dict[str, Floats]) -> Means | None:
    return windows.means(divided, sums[f"{name}_n"], sums[f"{name}_sum"], sums[f"{name}_squares"])


def _tails(divided: Split, sums: dict[str, Floats]) -> dict[str, tuple[str, Means | None]]:
    """The shares of the youngest and the oldest, about a tenth of the baseline each: they show what a mean does not."""
    is_base, faces = divided.cells["window"].to_numpy() == -1, sums["age_n"]
    below = np.array([sums[f"under_{edge}"][is_base].sum() for edge in AGE_EDGES]) / max(faces[is_base].sum(), 1)
    found: dict[str, tuple[str, Means | None]] = {}
    for name, parts, word in (("youngest_share", below, "under"), ("oldest_share", 1 - below, "of at least")):
        nearest = int(np.abs(parts - _TENTH).argmin())
        part, edge = float(parts[nearest]), AGE_EDGES[nearest]
        under = sums[f"under_{edge}"]
        hits = under if name == "youngest_share" else faces - under
        skew = (1 - 2 * part) / math.sqrt(max(part * (1 - part), 1e-9))
        usable = _NEAR_A_TENTH[0] <= part <= _NEAR_A_TENTH[1]
        found[name] = (
            f"faces estimated {word} {edge} years",
            windows.means(divided, faces, hits, hits, skew) if usable else None,
        )
    return found


def drift(column: Column) -> ColumnDrift:
    """What is said of a column."""
    name, course = column.name, column.course
    last = len(course.log_e) - 1
    began = since(course)[1]
    moved, half, before, now = effect(column.data, began)
    drifted = bool(course.log_e[-1] >= column.log_bound and abs(moved) >= MATERIAL[name])
    if not drifted:
        moved, half, before, now = effect(column.data, last)
    if isinstance(column.data, Shares):
        threshold = _visible_share(column.data, column.log_bound)
    else:
        threshold = visible(name, column.data, column.part, began if drifted else last)[0]
    threshold = min(max(threshold, MATERIAL[name]), abs(moved)) if drifted else max(threshold, MATERIAL[name])
    low, high = moved - half, moved + half
    return ColumnDrift(name, column.label, moved, low, high, UNITS[name], threshold, drifted, before, now)


def trail(column: Column) -> Trail:
    """A column as its windows went by, each by itself."""
    data = column.data
    if isinstance(data, Shares):
        each = [Shares(data.baseline_hits, data.baseline_files, *parts)
                for parts in zip(data.hits[:, None], data.files[:, None], strict=True)]  # fmt: skip
        found = [effect(one, 0)[:2] for one in each]
    else:
        known = np.isfinite(data.variances)
        away = np.where(known, data.windows - data.baseline, np.nan)
        half = norm.ppf(0.975) * np.sqrt(np.where(known, data.variances, np.nan) + data.baseline_variance)
        found = list(zip(away.tolist(), half.tolist(), strict=True))
    return Trail(column.name, column.label, UNITS[column.name], *(tuple(part) for part in zip(*found, strict=True)))


def visible(name: str, means: Means, part: float, since: int = -1) -> tuple[float, float, float]:
    """The smallest changes of a column's mean that would be said: see `evidence.visible`."""
    return evidence.visible(means, _PRIOR * MATERIAL[name], math.log(BOUND / part), since)


def visible_ages(divided: Split) -> tuple[float, float, float]:
    """The smallest changes of the mean age that would be said, in years: see `evidence.visible`."""
    means = ages(divided)
    return (math.inf,) * 3 if means is None else visible("age", means, AGE_PART)


def windows_until(divided: Split, years: float) -> int | None:
    """How many more windows show a lasting change of the mean age by so much: see `evidence.windows_until`."""
    means = ages(divided)
    log_bound = math.log(BOUND / AGE_PART)
    return None if means is None else evidence.windows_until(means, _PRIOR * MATERIAL["age"], log_bound, years)


def _visible_share(shares: Shares, log_bound: float) -> float:
    """The smallest rise of a share that the last window alone would have shown; infinite where none would."""
    before, files = shares.baseline_hits / shares.baseline_files, max(float(shares.files[-1]), 1e-9)
    rises = np.linspace(0, 1 - before, 101)[1:]
    tried = Shares(shares.baseline_hits, shares.baseline_files, (before + rises) * files, np.full(100, files))
    seen = evidence.of_shares(tried, _END_ERROR).log_alone >= log_bound + math.log(evidence.NIGHTS)
    return float(rises[seen.argmax()]) if seen.any() else math.inf


def since(course: Course) -> tuple[int, int, int]:
    """The window in which a change most likely began, between those that hold its 90 % credible interval."""
    weight = np.exp(course.log_weight - course.log_weight.max())
    sums = np.cumsum(weight) / weight.sum()
    low, high = (int(np.searchsorted(sums, level)) for level in (0.05, 0.95))
    best = int(weight.argmax())
    return min(low, best), best, max(min(high, len(weight) - 1), best)
