"""Where an archive moved: its folders, cameras, capture dates, face sizes, age bands and refusals, each by itself.

Ages of a segment are held against its own baseline, drawn towards the other segments of its kind where these are like
it, or where it is new against those alone, and shares of age bands and refusals against theirs. All share SEGMENTS_PART
of the chance of a false alarm: folders have half of it, other kinds the rest alike, and of each the segment that came
k-th has 1 / (k (k + 1)), which sums to 1 however many come (weighted Bonferroni, Genovese, Roeder & Wasserman 2006;
weights are known before the ages are).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from agewatch.errors import REFUSAL_CODES
from monitoring import columns, evidence, windows
from monitoring.evidence import Floats, Ints, Means, Shares
from monitoring.summaries import AGE_EDGES, SIZE_EDGES
from monitoring.windows import LEAST_FACES, Split

SHOWN = 50
"""Segments that are described at most; others are counted."""
_KNOWN_SEGMENTS = 20
"""From so many segments of a baseline on one knows how a kind's segments differ, and can judge a new one."""
_LIKE = 2.0
"""A segment within so many standard deviations of the others is expected to be like them (limited translation: Efron &
Morris 1972); one that was always unlike them is held against itself alone."""
_OLDEST = 101
"""Years; no model estimates an age of so many."""
_AGE_BANDS = tuple(pairwise((0, *(edge for edge in AGE_EDGES if edge % 10 == 0), _OLDEST)))
_SIZES = (
    f"under {SIZE_EDGES[0]} pixels",
    *(f"{low} to {high - 1} pixels" for low, high in pairwise(SIZE_EDGES)),
    f"{SIZE_EDGES[-1]} pixels and more",
)
_AGE_SPREAD = 10.0
"""Years: the standard deviation of the changes that are averaged over. A folder moves further than an archive."""
_KINDS = 7
_PARTS = {"folder": 1 / 2}
"""Of SEGMENTS_PART; other kinds share the rest."""
_PART = 1 / 2 / (_KINDS - 1)
_LEVEL = 0.001
"""Chance that a look at an archive that has drifted names a segment that has not; there may be many looks."""
_END_ERROR = columns.SEGMENTS_END_ERROR / len(REFUSAL_CODES)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the archive, and how far it moved from the baseline, signed, with its 95 % interval, in `unit`.

    `name` is the kind (`folder`, `camera`, `captured_month`, `captured_year`, `face_size`, `age_band`, `refusal`),
    `value` which of it. `n_faces` are those in question that arrived in the windows meant, of a refusal files. `since`
    is the number of the window in which its drift began; `log_evidence` is relative to its bound.
    """

    name: str
    value: str
    n_faces: int
    effect: float
    low: float
    high: float
    unit: str
    drifted: bool
    since: int
    log_evidence: float


@dataclass(frozen=True, slots=True)
class Source:
    """The folder from which most of a change of a measure's mean comes, as a `part` of the change.

    `effect` is how far its faces lie from its own accepted ones, or where it `is_new` from all accepted ones, in the
    measure's unit.
    """

    measure: str
    folder: str
    n_faces: int
    effect: float
    part: float
    is_new: bool


def source(divided: Split, since: int, measure: str) -> Source | None:
    """Where the change of a measure's plain mean over faces that arrived from `since` on comes from, or None.

    A folder's part is what its faces add to the mean now less what they added before, so that all parts make 1.
    """
    parts = divided.parts
    codes, names = _named(parts["folder"], _top_folders)
    window, count, total = (parts[name].to_numpy(np.float64) for name in ("window", f"{measure}_n", f"{measure}_sum"))
    sides = [window == -1, window >= since]
    n, sums = (np.array([np.bincount(codes[side], of[side], len(names)) for side in sides]) for of in (count, total))
    if len(names) < 2 or not n.sum(axis=1).all():
        return None
    center = sums[0].sum() / n[0].sum()
    added = (sums - n * center) / n.sum(axis=1, keepdims=True)
    moved = added[1] - added[0]
    change = float(moved.sum())
    best = int(np.argmax(np.sign(change) * moved))
    if not change or not n[1, best]:
        return None
    before = sums[0, best] / n[0, best] if n[0, best] else center
    effect = sums[1, best] / n[1, best] - before
    return Source(measure, names[best], int(n[1, best]), float(effect), float(moved[best] / change), not n[0, best])


def of_split(divided: Split, since: int, has_drifted: bool) -> tuple[list[Segment], int]:
    """The segments of what arrived from window `since` on, those that drifted first, and how many more there are.

    Of one that drifted, what arrived since its own drift began. Where the archive as a whole `has_drifted` since, the
    bound of a life is paid for, and a segment is also named by an ordinary test at _LEVEL for all segments together.
    """
    found: list[Segment] = []
    count = 0
    noise = _noise(divided)
    if noise is not None:
        for kind in _kinds(divided.parts):
            judged = _Kind(*kind, divided, noise)
            segments, n = judged.described(since, has_drifted)
            found, count = found + segments, count + n
    shares = _shares(divided, since)
    found, count = found + shares, count + len(shares)
    shown = sorted(found, key=_rank)[:SHOWN]
    return shown, count - len(shown)


def _rank(segment: Segment) -> tuple[bool, float]:
    half = (segment.high - segment.low) / 2
    return not segment.drifted, -abs(segment.effect) / half if math.isfinite(half) and half > 0 else 0.0


def _kinds(parts: pd.DataFrame) -> Iterator[tuple[str, list[str], Ints, Floats, Floats, Ints]]:
    """Name, values, the value's number in each of some rows (-1: none), numbers and sums of ages, and those rows."""
    count, total = parts["age_n"].to_numpy(np.float64), parts["age_sum"].to_numpy(np.float64)
    rows = np.arange(len(parts))
    named = {
        "folder": _named(parts["folder"], _top_folders),
        "camera": _named(parts["camera"].replace("", None), list),
        "captured_month": _named(parts["day"], lambda days: list(days.strftime("%Y-%m"))),
        "captured_year": _named(parts["day"], lambda days: list(days.strftime("%Y"))),
    }
    for name, (codes, values) in named.items():
        if len(values) > 1:
            yield name, values, codes, count, total, rows
    sizes = range(len(_SIZES))
    counts = np.concatenate([parts[f"size_{band}_n"].to_numpy(np.float64) for band in sizes])
    sums = np.concatenate([parts[f"size_{band}_sum"].to_numpy(np.float64) for band in sizes])
    yield (
        "face_size",
        list(_SIZES),
        np.repeat(np.arange(len(_SIZES)), len(parts)),
        counts,
        sums,
        np.tile(rows, len(_SIZES)),
    )


def _named(values: "pd.Series[Any]", name: Callable[[Any], list[str]]) -> tuple[Ints, list[str]]:
    """The number of each value's name (-1 where it is null), and the names; `name` is given each value once."""
    codes, known = pd.factorize(values)
    numbers, names = pd.factorize(np.array(name(known), object))
    return np.append(numbers, -1)[codes].astype(np.int64), [str(one) for one in names]


def _top_folders(folders: Iterable[str]) -> list[str]:
    """The first folder of each path at which paths differ."""
    parts = [folder.split("/") for folder in folders]
    depth = 0
    while parts and all(len(part) > depth + 1 and part[depth] == parts[0][depth] for part in parts):
        depth += 1
    return ["/".join(part[: depth + 1]) or "." for part in parts]


@dataclass(frozen=True)
class _Noise:
    """Years squared: how ages of a group's faces vary, and how groups do, learnt from so many `groups`.

    `alone` where a group is one picture.
    """

    within: float
    between: float
    groups: int
    alone: bool


def _noise(divided: Split) -> _Noise | None:
    cells = divided.cells[(divided.cells["window"] == -1) & (divided.cells["age_n"] > 0)]
    n = cells["age_n"].to_numpy(np.float64)
    if n.sum() < LEAST_FACES:
        return None
    mean = cells["age_sum"].to_numpy(np.float64) / n
    squares = np.maximum(cells["age_squares"].to_numpy(np.float64) - n * mean**2, 0.0)
    alone = divided.alike == "picture"
    within, between = windows.components(n, mean, squares, alone)
    return _Noise(within, between, divided.groups, alone) if within + between > 1e-12 else None


class _Kind:
    """All segments of a kind at once: arrays by segment, and by segment and window in this order (`of`, `window`)."""

    def __init__(
        self, name: str, values: list[str], codes: Ints, count: Floats, total: Floats, rows: Ints, divided: Split,
        noise: _Noise,
    ) -> None:  # fmt: skip
        self.name, self.values, self.last = name, values, len(divided.windows) - 1
        some = (codes >= 0) & (count > 0)
        where = rows[some]
        units = pd.DataFrame({
            "of": codes[some],
            "window": divided.parts["window"].to_numpy()[where],
            "group": 0 if noise.alone else divided.parts["group"].to_numpy()[where],
            "day": pd.factorize(divided.parts["day"])[0][where],
            "n": count[some],
            "total": total[some],
        })  # fmt: skip
        units = units.groupby(["of", "window", "group", "day"], as_index=False, sort=True).sum()
        is_base = (units["window"] == -1).to_numpy()
        self.noise = noise if noise.alone else _between(units, noise, len(values))
        self._learn(units[is_base])
        self._estimate(units[~is_base])

    def _learn(self, base: pd.DataFrame) -> None:
        """The baseline of each segment: mean and precision, its own or what other segments lead one to expect."""
        size = len(self.values)
        of, n, mean = base["of"].to_numpy(), base["n"].to_numpy(), (base["total"] / base["n"]).to_numpy()
        gained = windows.information(n, self.noise.within, self.noise.between)
        self.faces = np.bincount(of, n, size).astype(np.float64)
        precision: Floats = np.bincount(of, gained, size).astype(np.float64)
        own: Floats = np.divide(
            np.bincount(of, gained * mean, size), precision, out=np.zeros(size), where=precision > 0
        )
        self.skew, self.kurtosis = windows.shape((mean - own[of]) * np.sqrt(gained))
        self.df = np.full(size, evidence.known_scale(self.noise.groups))
        known = precision > 0
        if known.sum() >= _KNOWN_SEGMENTS:
            center, spread = _population(own[known], precision[known])
            is_new = self.faces < LEAST_FACES
            with np.errstate(divide="ignore"):
                is_like = is_new | (np.abs(own - center) <= _LIKE * np.sqrt(spread + 1 / precision))
            own = np.where(is_like, (own * precision + center / spread) / (precision + 1 / spread), own)
            precision = np.where(is_like, precision + 1 / spread, precision)
            self.df[is_new] = min(self.df[0], float(known.sum() - 1))
        else:
            precision = np.where(self.faces < LEAST_FACES, 0.0, precision)
        self.own, self.precision = own, precision

    def _estimate(self, later: pd.DataFrame) -> None:
        """Of each segment and window: how far its mean age lies from the segment's baseline, and how sure that is."""
        gained = windows.information(later["n"].to_numpy(), self.noise.within, self.noise.between)
        mean = (later["total"] / later["n"]).to_numpy()
        sums = later.assign(p=gained, py=gained * mean, p15=gained**1.5, p2=gained**2)
        by = sums.groupby(["of", "window"], as_index=False, sort=True)[["n", "p", "py", "p15", "p2"]].sum()
        by = by[self.precision[by["of"].to_numpy()] > 0]
        self.of, self.window = by["of"].to_numpy(), by["window"].to_numpy().astype(np.int64)
        self.n, self.p = by["n"].to_numpy(), by["p"].to_numpy()
        away = by["py"].to_numpy() / self.p - self.own[self.of]
        scale = np.sqrt(1 / self.p + 1 / self.precision[self.of])
        shapes = self.skew * by["p15"].to_numpy() / self.p**1.5, self.kurtosis * by["p2"].to_numpy() / self.p**2
        self.y = away
        self.drawn_in = evidence.as_normal(away / scale, *shapes) * scale

    def described(self, since: int, has_drifted: bool) -> tuple[list[Segment], int]:
        """The most telling of the segments, and how many have arrived since."""
        size = len(self.values)
        seen = np.bincount(self.of, self.n, size)
        log_e, start = evidence.last_of_many(self.of, self.drawn_in, self.p, self.precision, self.df, _AGE_SPREAD)
        log_e = log_e - self._log_bounds()
        passed = (log_e >= 0) & (seen >= LEAST_FACES)
        began = np.where(passed, start, -1)  # of the rows, by segment
        row = np.arange(len(self.of))
        is_now = np.where(passed[self.of], row >= began[self.of], self.window >= since)
        n, p = (np.bincount(self.of[is_now], some[is_now], size) for some in (self.n, self.p))
        effect = np.bincount(self.of[is_now], (self.p * self.y)[is_now], size) / np.maximum(p, 1e-300)
        df = np.maximum(self.df, 1)
        with np.errstate(divide="ignore"):
            half = t.ppf(0.975, df) * np.sqrt(1 / p + 1 / self.precision)
            p_value = 2 * t.sf(np.abs(effect) / half * t.ppf(0.975, df), df)
        if has_drifted:
            passed |= p_value * _KINDS * max(int((n > 0).sum()), 1) <= _LEVEL
        drifted = passed & (np.abs(effect) >= columns.MATERIAL["age"]) & (n >= LEAST_FACES)
        rank = np.where(n > 0, np.where(drifted, 1e9, 0.0) + np.abs(effect) / half, -1.0)
        best = [int(number) for number in np.argsort(-rank, kind="stable")[:SHOWN] if rank[number] >= 0]
        return [
            Segment(
                self.name, self.values[i], int(n[i]), float(effect[i]), float(effect[i] - half[i]),
                float(effect[i] + half[i]), "years", bool(drifted[i]),
                int(self.window[began[i]]) if began[i] >= 0 else since, float(log_e[i]),
            )
            for i in best
        ], int((n > 0).sum())  # fmt: skip

    def _log_bounds(self) -> Floats:
        """What the logarithm of each segment's evidence has to pass, by its rank in the order of coming."""
        size = len(self.values)
        first, faces = np.full(size, self.last + 1), np.zeros(size)
        is_first = np.append(True, self.of[1:] != self.of[:-1]) if len(self.of) else np.zeros(0, bool)
        first[self.of[is_first]], faces[self.of[is_first]] = self.window[is_first], self.n[is_first]
        first[self.faces > 0] = -1
        order = np.lexsort((-faces, -self.faces, first))
        rank = np.empty(size)
        rank[order] = np.arange(1, size + 1)
        return np.asarray(
            math.log(columns.BOUND / columns.SEGMENTS_PART / _PARTS.get(self.name, _PART))
            + np.log(rank)
            + np.log(rank + 1)
        )


def _between(units: pd.DataFrame, noise: _Noise, size: int) -> _Noise:
    """The noise, its variance between the units of one segment (a group's faces of a night and capture day) pooled.

    Apart in the baseline and later, so that a segment that moved does not count; that of all groups where too few units
    share a segment.
    """
    of = units["of"].to_numpy() + size * (units["window"].to_numpy() >= 0)
    n, mean, size = units["n"].to_numpy(), (units["total"] / units["n"]).to_numpy(), 2 * size
    faces, groups = np.bincount(of, n, size), np.bincount(of, minlength=size)
    df = len(of) - int((groups > 0).sum())
    if df < _KNOWN_SEGMENTS:
        return noise
    center = np.bincount(of, n * mean, size) / np.maximum(faces, 1e-9)
    effective = float((faces - np.bincount(of, n**2, size) / np.maximum(faces, 1e-9)).sum())
    between = (float((n * (mean - center[of]) ** 2).sum()) - df * noise.within) / effective
    return replace(noise, between=max(between, 0.0), groups=df + 1)


def _population(means: Floats, precisions: Floats) -> tuple[float, float]:
    """Where a segment's mean is to be expected, and the variance of that, taken large (DerSimonian & Laird 1986)."""
    total, size = precisions.sum(), len(means)
    center = (precisions * means).sum() / total
    effective = total - (precisions**2).sum() / total
    between = max(((precisions * (means - center) ** 2).sum() - (size - 1)) / max(effective, 1e-300), 0.0)
    weight = 1 / (between + 1 / precisions)
    # Two standard errors more: few segments don't know by how little they differ.
    between += 2 * math.sqrt(2 / (size - 1)) * size / float(weight.sum())
    return float((weight * means).sum() / weight.sum()), float(between + 1 / weight.sum())


def _shares(divided: Split, since: int) -> list[Segment]:
    """Age bands by the means of their groups, as faces of a group are alike, and refusals by exact tests."""
    cells = divided.cells
    faces, files = (cells[name].to_numpy(np.float64) for name in ("age_n", "files"))
    under = {0: np.zeros(len(cells))} | {edge: cells[f"under_{edge}"].to_numpy(np.float64) for edge in AGE_EDGES}
    under[_OLDEST] = faces
    found = []
    for low, high in _AGE_BANDS:
        hits = under[high] - under[low]
        part = min(max(hits.sum() / max(faces.sum(), 1), 1e-9), 1 - 1e-9)
        skew = (1 - 2 * part) / math.sqrt(part * (1 - part))
        data = windows.means(divided, faces, hits, hits, skew) if hits.any() else None
        if data is not None:
            found.append(_share("age_band", f"{low} to {high - 1} years", data, len(_AGE_BANDS), since, cells, hits))
    for code in REFUSAL_CODES:
        hits = cells[code].to_numpy(np.float64)
        shares = windows.shares(divided, hits, files) if hits.any() else None
        if shares is not None:
            found.append(_share("refusal", code, shares, len(REFUSAL_CODES), since, cells, hits))
    return found


def _share(
    name: str, value: str, data: Means | Shares, number: int, since: int, cells: pd.DataFrame, hits: Floats
) -> Segment:
    """One of so many segments of a kind, all of whose windows are known."""
    if isinstance(data, Shares):
        log_e, start = evidence.last_of_shares(data, _END_ERROR)
    else:
        log_e, start = evidence.last_of_means(data, columns.SHARE_SPREAD)
    log_e -= math.log(columns.BOUND * number / columns.SEGMENTS_PART / _PART)
    effect, half, _, _ = columns.effect(data, start)
    drifted = log_e >= 0 and abs(effect) >= columns.MATERIAL["youngest_share"]
    began = start if drifted else since
    if not drifted:
        effect, half, _, _ = columns.effect(data, since)
    n = int(hits[cells["window"].to_numpy() >= began].sum())
    unit = f"share of {'faces' if name == 'age_band' else 'files'}"
    return Segment(name, value, n, effect, effect - half, effect + half, unit, bool(drifted), began, log_e)
