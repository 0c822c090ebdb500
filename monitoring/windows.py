"""Sums of nights -> the baseline's groups and the windows, and of each a column's estimates."""

import math
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from agewatch.scoring.baseline import Baseline
from monitoring.evidence import Floats, Means, Shares
from monitoring.summaries import CELL

TRACED = ("age", "brightness", "contrast", "sharpness")
"""Measures of which it is told from which folder a change comes."""
By = Literal["night", "week", "month"]
"""What a window is: what arrived in one night, week or month."""
_PERIODS = {"night": "D", "week": "W", "month": "M"}
Alike = Literal["folder", "capture day", "picture"]
"""What pictures of a group have in common; a picture may be a group by itself."""
LEAST_FACES = 30
"""A window with fewer is carried into the next."""
_LEAST_GROUPS = 20
"""Below so many groups of a baseline the shape of their noise can't be told."""


@dataclass(frozen=True, slots=True)
class Window:
    """What arrived from one night to another, both included."""

    first: date
    until: date
    n_files: int
    n_faces: int


@dataclass(frozen=True)
class Split:
    """An archive's sums by window and group.

    `cells` has one row of each, in the order of both, with `window` (-1 is the baseline), `group` (an integer) and the
    counts and sums of `summaries.read`. `waiting` is the last window while it has fewer than LEAST_FACES.

    `alike` says what a group is: pictures of a folder, of a capture day, or each picture by itself. `parts` are the
    same sums before they were put together: by window, group, and the CELL columns.
    """

    cells: pd.DataFrame
    parts: pd.DataFrame
    baseline: Window | None
    windows: tuple[Window, ...]
    waiting: Window | None
    alike: Alike

    @property
    def groups(self) -> int:
        """How many groups the baseline has; pictures by themselves count as faces."""
        accepted = self.cells[self.cells["window"] == -1]
        return int(accepted["faces"].sum()) if self.alike == "picture" else len(accepted)


def split(cells: pd.DataFrame, baseline: Baseline, by: By = "night", since: date | None = None) -> Split:
    """Divide an archive's sums into the baseline and the windows after it, or from `since` on."""
    is_base = within(cells["night"], baseline)
    nights = cells["night"]
    after = (nights > pd.Timestamp(baseline.until)) if since is None else (nights >= pd.Timestamp(since)) & ~is_base
    key = nights.dt.to_period(_PERIODS[by]).dt.start_time
    later = cells.loc[after, ["night", "files", "faces"]].assign(key=key[after])
    windows, waiting, number = _carried(later, "night")
    window = np.where(is_base, -1, key.map(number).fillna(-2).where(after, -2)).astype(np.int64)
    both = cells[window > -2].assign(window=window[window > -2]).reset_index(drop=True)
    alike, both["group"] = groups(both)
    parts = both[
        [
            "window",
            "group",
            *CELL,
            *(f"{measure}_{what}" for measure in TRACED for what in ("n", "sum")),
            *(name for name in both.columns.astype(str) if name.startswith("size_")),
        ]
    ]
    by_group = both.groupby(["window", "group"])  # column by column, as a copy of all would take as much memory again
    names = [name for name in both.columns.astype(str) if name not in (*CELL, "window", "group")]
    sums = pd.DataFrame({name: by_group[name].sum() for name in names}, copy=False)
    sums.reset_index(inplace=True)
    base = _window(both[both["window"] == -1]) if is_base.any() else None
    return Split(sums, parts, base, windows, waiting, alike)


def within(nights: "pd.Series[pd.Timestamp]", baseline: Baseline) -> "pd.Series[bool]":
    """Which of some nights are the baseline's."""
    return (nights >= pd.Timestamp(baseline.first)) & (nights <= pd.Timestamp(baseline.until))


def captured_months(cells: pd.DataFrame, baseline: Baseline) -> list[tuple[Window, float]]:
    """Windows of all pictures by the month of their capture, and how far each one's mean age lies from the baseline's.

    In years; plain means over faces.
    """
    base = cells[within(cells["night"], baseline)]
    dated = cells[cells["day"].notna()]
    dated = dated.assign(key=dated["day"].dt.to_period("M").dt.start_time)
    windows, _, number = _carried(dated, "day")
    sums = dated.groupby(dated["key"].map(number))[["age_sum", "age_n"]].sum()
    apart = sums["age_sum"] / sums["age_n"] - base["age_sum"].sum() / base["age_n"].sum()
    return list(zip(windows, apart.to_list(), strict=True))


def _carried(
    cells: pd.DataFrame, day: Literal["night", "day"]
) -> tuple[tuple[Window, ...], Window | None, dict[pd.Timestamp, int]]:
    """The windows by the column `key`, what waits for more faces, and each key's window; `day` is what they go by."""
    sums = cells.groupby("key").agg(
        first=(day, "min"), until=(day, "max"), files=("files", "sum"), faces=("faces", "sum")
    )
    windows: list[Window] = []
    number: dict[pd.Timestamp, int] = {}
    waiting: Window | None = None
    for key, first, until, files, faces in sums.itertuples():
        new = Window(first.date(), until.date(), int(files), int(faces))
        waiting = _joined(waiting, new)
        number[key] = len(windows)
        if waiting.n_faces >= LEAST_FACES:
            windows.append(waiting)
            waiting = None
    return tuple(windows), waiting, {key: place for key, place in number.items() if place < len(windows)}


def _joined(one: Window | None, other: Window) -> Window:
    if one is None:
        return other
    return Window(
        min(one.first, other.first),
        max(one.until, other.until),
        one.n_files + other.n_files,
        one.n_faces + other.n_faces,
    )


def _window(cells: pd.DataFrame) -> Window:
    nights = cells["night"]
    return Window(nights.min().date(), nights.max().date(), int(cells["files"].sum()), int(cells["faces"].sum()))


def groups(cells: pd.DataFrame) -> tuple[Alike, npt.NDArray[Any]]:
    """What pictures are alike in, and the number of each cell's group.

    The folder; where one folder holds over half of the baseline, the capture day; where that is unknown, and what came
    later came into that folder too, each picture stands by itself.
    """
    base = cells[cells["window"] == -1]
    folders = base.groupby("folder")["faces"].sum()
    names = cells["folder"].astype(str)
    if len(folders) and folders.max() > base["faces"].sum() / 2:
        main = folders.idxmax()
        dated = base[base["day"].notna()]
        if dated["faces"].sum() > base["faces"].sum() / 2 and dated["day"].nunique() > 1:
            day = cells["day"].dt.strftime("%Y-%m-%d").fillna("")
            return "capture day", pd.factorize(day.where(day != "", names))[0]
        later = cells[cells["window"] >= 0]
        if later.loc[later["folder"] == main, "faces"].sum() > later["faces"].sum() / 2:
            return "picture", np.zeros(len(cells))
    return "folder", pd.factorize(names)[0]


def means(split: Split, count: Floats, total: Floats, squares: Floats, face_skew: float = 0.0) -> Means | None:
    """Estimates of the mean over faces of a measure; None where there is nothing to tell.

    Given are, for each row of `cells`, the number of faces that have it, and the sums of its values and their squares.

    Faces of a group share an offset: a group counts by 1 / (between + within / n), by analysis of variance (Searle,
    Casella & McCulloch 1992), and what comes to a group that was there before adds only what it makes surer.
    `face_skew` is of single faces, where each stands by itself.
    """
    some = count > 0
    n: Floats = count[some]
    mean: Floats = total[some] / n
    window, group = (split.cells[name].to_numpy()[some].astype(np.int64) for name in ("window", "group"))
    is_base = window == -1
    within_squares = np.maximum(squares[some] - n * mean**2, 0.0)
    if n[is_base].sum() < LEAST_FACES:
        return None
    alone = split.alike == "picture"
    within, between = components(n[is_base], mean[is_base], within_squares[is_base], alone)
    if within + between < 1e-12:
        return None
    cumulative = np.asarray(pd.Series(n).groupby(group).cumsum(), np.float64)
    before = cumulative - n
    gained = information(cumulative, within, between) - information(before, within, between)
    base, weight = mean[is_base], gained[is_base]
    center = float((weight * base).sum() / weight.sum())
    skew, kurtosis = shape((base - center) * np.sqrt(weight))
    slots = window[~is_base]
    sums = {power: _by(slots, gained[~is_base] ** power, len(split.windows)) for power in (1, 1.5, 2)}
    weighted = _by(slots, gained[~is_base] * (mean[~is_base] - center), len(split.windows))
    faces = _by(slots, n[~is_base], len(split.windows))
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = sums[1] > 0
        return Means(
            center,
            float(1 / weight.sum()),
            np.where(seen, center + weighted / sums[1], center),
            np.where(seen, 1 / sums[1], np.inf),
            np.where(seen, face_skew / np.sqrt(faces) if alone else skew * sums[1.5] / sums[1] ** 1.5, 0.0),
            np.where(seen & (not alone), kurtosis * sums[2] / sums[1] ** 2, 0.0),
            split.groups,
            math.sqrt(between),
        )


def components(n: Floats, mean: Floats, within_squares: Floats, alone: bool) -> tuple[float, float]:
    """The variance within groups, and that between them: the method of moments for groups of unequal sizes."""
    total, groups = n.sum(), len(n)
    if alone or groups == 1:
        center = (n * mean).sum() / total
        return float((within_squares + n * (mean - center) ** 2).sum() / max(total - 1, 1)), 0.0
    within = within_squares.sum() / max(total - groups, 1)
    center = (n * mean).sum() / total
    effective = total - (n**2).sum() / total
    between = ((n * (mean - center) ** 2).sum() - (groups - 1) * within) / effective
    return float(within), float(max(between, 0.0))


def information(n: Floats, within: float, between: float) -> Floats:
    """One over the variance of a group's mean over n faces, 0 where there are none."""
    return n / (between * n + max(within, 1e-12))


def shape(scores: Floats) -> tuple[float, float]:
    """Skewness and excess kurtosis of standardised group means; the latter never below the normal's."""
    if len(scores) < _LEAST_GROUPS or scores.std() == 0:
        return 0.0, 0.0
    z = (scores - scores.mean()) / scores.std()
    return float((z**3).mean()), max(float((z**4).mean()) - 3.0, 0.0)


def _by(slots: npt.NDArray[np.int64], values: Floats, size: int) -> Floats:
    return np.bincount(slots, values, size).astype(np.float64)


def shares(split: Split, hits: Floats, files: Floats) -> Shares | None:
    """How many files have something, of how many, both given for each row of `cells`; None without a baseline."""
    window = split.cells["window"].to_numpy()
    is_base, size = window == -1, len(split.windows)
    if files[is_base].sum() < LEAST_FACES:
        return None
    effect = _design_effect(hits[is_base], files[is_base])
    slots = window[~is_base].astype(np.int64)
    return Shares(
        float(hits[is_base].sum() / effect),
        float(files[is_base].sum() / effect),
        _by(slots, hits[~is_base] / effect, size),
        _by(slots, files[~is_base] / effect, size),
    )


def _design_effect(hits: Floats, files: Floats) -> float:
    """How much more group shares vary than files by themselves would; 1 or more (Pearson's statistic by its df)."""
    share = hits.sum() / files.sum()
    some = files > 0
    if some.sum() < 2 or share in (0.0, 1.0):
        return 1.0
    apart = (hits[some] - files[some] * share) ** 2 / (files[some] * share * (1 - share))
    return max(1.0, float(apart.sum() / (some.sum() - 1)))
