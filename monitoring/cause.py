"""Rows of the baseline and of what arrived since it drifted -> why: the camera, the people, both, or unclear.

Pure functions. What they rest on, and what they can't tell: docs/drift.md.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import t
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from monitoring import summaries
from monitoring.evidence import Floats
from monitoring.windows import components, groups

_WORDS = {
    "brightness": ("brighter", "darker"),
    "contrast": ("richer in contrast", "poorer in contrast"),
    "sharpness": ("sharper", "less sharp"),
    "face_score": ("easier for the face detector", "harder for the face detector"),
    "size": ("of larger faces", "of smaller faces"),
}
"""The measures of quality, and what pictures are where one rose or fell."""
RESPONSE_YEARS = 0.5
"""What a change of quality alone does to the mean age of the same people, as a standard deviation around nothing:
-0.4 to +0.1 years where pictures were darkened, blurred, saved as JPEG 10 or halved (benchmarks/variants.py). Ages and
quality of an archive do not foretell it: they go with who is in the picture."""
_MATERIAL_YEARS = 0.5
_MATERIAL_SD = 0.2
"""The least change of a measure that matters, in standard deviations of the baseline's faces."""
_CONSTANT = 1e-6  # crops of one size differ by rounding alone
_MATERIAL_SHARE = 0.1
"""The same of a camera's share of the faces."""
_LEVEL = 0.05
"""Chance of a false word on ages, and on all of quality together."""
_HIDDEN_YEARS = 5.0
"""Nothing is said where a shift of the ages by so much would be seen with less than even chance."""
_LEAST_KNOWN = 30
"""A camera with fewer faces in the baseline counts as new, with all of its kind."""
_LEAST_LIKE = 0.25
"""Likes speak for a window where at least this share of its faces has some."""

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Answer = Literal["camera", "people", "mixed", "unclear"]


@dataclass(frozen=True, slots=True)
class Years:
    """A part of the change of the mean age, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether its interval leaves out "no change"."""
        return self.low * self.high > 0

    @property
    def is_moved(self) -> bool:
        """Whether it is beyond noise, and matters."""
        return self.is_beyond_noise and abs(self.value) >= _MATERIAL_YEARS

    def __str__(self) -> str:
        """The part for a person: `+4.7 years (2.9 to 6.5)`."""
        return f"{self.value:+.1f} years ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True, slots=True)
class Cause:
    """The answer, a sentence on it, and the change of the mean age in two parts where they can be told.

    `quality` goes with picture quality, `people` remains among faces of like quality; they add up to the change.
    """

    answer: Answer
    sentence: str
    quality: Years | None = None
    people: Years | None = None


@dataclass(frozen=True)
class _Faces:
    """Faces of the baseline and of now, in one order, all of shape (faces,) but `quality` (faces, measures)."""

    is_now: Bools
    group: Integers
    alone: bool
    age: Floats
    camera: npt.NDArray[np.object_]
    names: tuple[str, ...]
    quality: Floats


def of_rows(baseline: pa.Table, now: pa.Table, drifted: Collection[str] = ()) -> Cause:
    """Say why the baseline's rows and those of now differ: rows of the predictions table with `summaries.COLUMNS`.

    `drifted` are the names of the columns that drifted (`columns.MATERIAL`): where a share of the youngest or oldest is
    among them, ages moved even if their mean did not.
    """
    faces = _faces(baseline, now)
    if faces is None:
        return Cause("unclear", "The cause is unclear: too few faces to compare.")
    change = _difference(faces, faces.age)
    measures, cameras = _moved_measures(faces), _moved_cameras(faces)
    if measures is None:
        return Cause("unclear", f"The cause is unclear: ages moved by {change}, beyond those accepted, so that no faces"
                     " of like age can be held against each other.")  # fmt: skip
    tails = bool({"youngest_share", "oldest_share"} & set(drifted))
    if not measures and not cameras:
        if not change.is_moved and not tails:
            return Cause("unclear", "The cause is unclear: neither ages nor picture quality moved beyond noise.")
        what = "ages moved" if change.is_moved else "the shares of the young or old moved, and mean age"
        return Cause("people", f"The people: {what} by {change}, and picture quality did not.", people=change)
    return _with_quality(faces, change, measures, cameras, tails)


def _with_quality(faces: _Faces, change: Years, measures: list[str], cameras: set[str], is_tail_moved: bool) -> Cause:
    """The answer where picture quality moved, by measures (in words) or by cameras; a new one is ""."""
    quality = f"pictures are {_listed([*measures, *(['from other cameras'] if cameras else [])])}"
    likes = _among_likes(faces, is_new="" in cameras)
    rest = likes or change
    people = _widened(rest, RESPONSE_YEARS) if measures or likes is None else rest
    unclear = f"The cause is unclear: {quality}, and "
    if people.high - people.low > 2 * _HIDDEN_YEARS:
        return Cause("unclear", f"{unclear}too few faces are of like quality to tell whether ages moved.")
    if people.is_moved and likes is None:
        return Cause("unclear", f"{unclear}ages by {change}; what a new camera does to them is not known.")
    if people.is_moved:
        apart, half = change.value - people.value, 2 * RESPONSE_YEARS if measures else 0.0
        by_camera = Years(apart, apart - half, apart + half)
        return Cause("mixed", f"Both: {quality}, with which {by_camera} of mean age go; {people} remain among faces of"
                     " like quality.", by_camera, people)  # fmt: skip
    if is_tail_moved:
        return Cause("unclear", f"{unclear}the shares of the young or old; mean age by {people} among faces of like"
                     " quality.")  # fmt: skip
    return Cause("camera", f"The camera: {quality}, and among faces of like quality ages did not move ({people}).",
                 people=people)  # fmt: skip


def _widened(change: Years, sd: float) -> Years:
    half = math.hypot((change.high - change.low) / 2, 2 * sd)
    return Years(change.value, change.value - half, change.value + half)


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _faces(baseline: pa.Table, now: pa.Table) -> _Faces | None:
    rows = pa.concat_tables([baseline, now])
    values = summaries.values(rows)
    is_now = np.arange(len(rows)) >= len(baseline)
    if "age" not in values:
        return None
    size = pc.cast(rows["box_h"], pa.float64()).to_numpy(zero_copy_only=False)
    values["size"] = np.log2(np.where(size > 0, size, np.nan))
    kept = np.isfinite(values["age"])
    if min((kept & is_now).sum(), (kept & ~is_now).sum()) < _LEAST_KNOWN:
        return None
    known = [
        n for n in _WORDS if n in values and all(np.isfinite(values[n][kept & s]).any() for s in (is_now, ~is_now))
    ]
    medians = {name: np.nanmedian(values[name][kept & ~is_now]) for name in known}
    columns = [np.where(np.isfinite(values[name]), values[name], medians[name])[kept] for name in known]
    cells = pd.DataFrame(
        {
            "window": is_now[kept] - 1,
            "folder": pc.replace_substring_regex(rows["path"], "/?[^/]*$", "").to_numpy(zero_copy_only=False)[kept],
            "day": rows["captured_at"].to_pandas().dt.floor("D")[kept].array,
            "faces": 1,
        }
    )
    alike, group = groups(cells)
    camera = rows["camera"].fill_null("unknown").to_numpy(zero_copy_only=False)[kept]
    common = pd.Series(camera[~is_now[kept]]).value_counts()
    camera = np.where(np.isin(camera, common.index[common >= _LEAST_KNOWN].to_numpy()), camera, "")
    quality = np.column_stack(columns) if columns else np.empty((kept.sum(), 0))
    return _Faces(
        is_now[kept], group.astype(np.int64), alike == "picture", values["age"][kept], camera, tuple(known), quality
    )


def _difference(faces: _Faces, values: Floats, weights: Floats | None = None, level: float = _LEVEL) -> Years:
    """How far the mean of values is from the baseline's, by weights (0 where a face is left out), with its interval.

    Faces of a group share an offset. Its variance is learnt from the baseline's groups, as in `windows.means`, and from
    those of now where they differ more, which they can't show where all is in one folder.
    """
    weights = np.ones(len(values)) if weights is None else weights
    means, variances, variance = [], [], (0.0, 0.0)
    for side in (~faces.is_now, faces.is_now):
        some = side & (weights > 0)
        group = np.arange(some.sum()) if faces.alone else pd.factorize(faces.group[some])[0]
        y, w = values[some], weights[some] / weights[some].sum()
        n = np.bincount(group).astype(np.float64)
        mean = np.bincount(group, y).astype(np.float64) / n
        squares = np.bincount(group, (y - mean[group]) ** 2).astype(np.float64)
        own = components(n, mean, squares, faces.alone)
        variance = (max(variance[0], own[0]), max(variance[1], own[1]))
        shares = np.bincount(group, w)
        means.append(float((w * y).sum()))
        variances.append(variance[0] * float((w**2).sum()) + variance[1] * float((shares**2).sum()))
    free = max(len(np.unique(faces.group[~faces.is_now])) - 1, 1) if not faces.alone else len(values)
    half = float(t.ppf(1 - level / 2, free)) * math.sqrt(sum(variances))
    return Years(means[1] - means[0], means[1] - means[0] - half, means[1] - means[0] + half)


def _moved_measures(faces: _Faces) -> list[str] | None:
    """How pictures differ among faces of like age, in words; None where too few faces of now have likes.

    Older faces are sharper, and less bright: a measure is what is left of it once a spline of the age is taken off,
    and the baseline's faces count by how often their tenth of the ages is among those of now.
    """
    ages = faces.age[~faces.is_now]
    edges = np.quantile(ages, (0.01, *np.linspace(0.1, 0.9, 9), 0.99))
    low, high = edges[[0, -1]]
    within = (faces.age >= low) & (faces.age <= high)
    if within[faces.is_now].mean() < _LEAST_LIKE or high <= low:
        return None
    before = within & ~faces.is_now
    tenth = np.digitize(faces.age, edges[1:-1])
    counts, wanted = (np.bincount(tenth[within & side], minlength=10) for side in (~faces.is_now, faces.is_now))
    weights = within * np.where(faces.is_now, 1.0, (wanted / np.maximum(counts, 1))[tenth])
    curve = make_pipeline(SplineTransformer(n_knots=4, knots="quantile"), LinearRegression())
    left, moved = np.zeros(faces.quality.shape), []
    if faces.names:
        curve.fit(faces.age[before, None], faces.quality[before])
        left[within] = faces.quality[within] - curve.predict(faces.age[within, None])
    for name, values, rest in zip(faces.names, faces.quality.T, left.T, strict=True):
        apart = _difference(faces, rest, weights, _LEVEL / (len(faces.names) + 1))
        spread = values[before].std()
        if spread > _CONSTANT and apart.is_beyond_noise and abs(apart.value) >= _MATERIAL_SD * spread:
            moved.append(_WORDS[name][apart.value < 0])
    return moved


def _moved_cameras(faces: _Faces) -> set[str]:
    """The cameras whose share of the faces moved; those that are rare in the baseline, or new, are together ""."""
    names = np.unique(faces.camera)
    level = _LEVEL / (len(faces.names) + 1) / len(names)
    shares = {name: _difference(faces, (faces.camera == name).astype(np.float64), level=level) for name in names}
    moved = {name for name, one in shares.items() if one.is_beyond_noise and abs(one.value) >= _MATERIAL_SHARE}
    return moved if "" not in moved or shares[""].value > 0 else moved - {""}


def _among_likes(faces: _Faces, *, is_new: bool) -> Years | None:
    """The change of the mean age among faces of the same camera; None where too few faces of now have such likes.

    The baseline's faces count by how often their camera's are among those of now (post-stratification).
    """
    names, camera = np.unique(faces.camera, return_inverse=True)
    before, after = (np.bincount(camera[side], minlength=len(names)) for side in (~faces.is_now, faces.is_now))
    has_likes = (before >= _LEAST_KNOWN) & ~((names == "") & is_new)
    if after[has_likes].sum() < _LEAST_LIKE * after.sum():
        return None
    weights = np.where(faces.is_now, 1.0, (after / np.maximum(before, 1))[camera])
    return _difference(faces, faces.age, np.where(has_likes[camera], weights, 0.0))
