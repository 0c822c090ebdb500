"""Whether a drift's cause is told right: archives of held-out pictures, really re-encoded, through `cause.of_rows`.

`benchmarks/cause.py DRAWS` draws fewer than 100 of each case. AGEWATCH_DATA names the pictures (see `variants`).
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import variants
from results import table, write_section
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from agewatch.scoring import predictions
from monitoring import cause, summaries
from monitoring.cause import Cause
from monitoring.evidence import Floats

GROUP = 20
BASELINE_GROUPS = 120
WINDOW_GROUPS = (15, 50)
TILT = 0.15
YEARS = {"older": 5.0, "younger": -5.0, "3 years older": 3.0}
CHILDREN = "15 % children"
NEW = "new camera"
YOUNG = "known camera, that of the young"
YOUNG_YEARS = -8.0
MEASURES = ("brightness", "contrast", "sharpness", "face_score")
MATCHED = 10
TUNED = ("dark", "blurred", "JPEG 10", "half size")
UNTUNED = ("slightly bright", "slightly blurred", "JPEG 30", "grey")

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """What was said, the rendering's and the people's part of the change of the mean age, and what matching says."""

    said: Cause
    camera_years: float
    people_years: float
    matched: tuple[float, float] | None


@dataclass(frozen=True)
class Case:
    """What a window is: its rendering and the part of it that has that; its people; its camera; what may be said."""

    change: str
    people: str
    right: tuple[str, ...]
    part: float = 1.0
    camera: str | None = None
    source: str = "crops"

    @property
    def name(self) -> str:
        """The case for a person."""
        source = "portraits" if self.source == "portraits" else ""
        words = [self.change if self.part == 1 else f"{self.part:.0%} {self.change}", self.people, self.camera, source]
        return ", ".join(word for word in words if word and word != "as they are") or "nothing"


CASES = (
    *(Case(change, "", ("camera",)) for change in TUNED),
    *(Case("as they are", people, ("people",)) for people in ("older", "younger", CHILDREN)),
    *(Case(change, people, ("mixed",)) for change, people in product(TUNED, ("older", "younger"))),
    Case("dark", CHILDREN, ("mixed",)),
    *(Case("as they are", people, ("unclear", "mixed"), camera=NEW) for people in ("older", "younger")),
    *(Case(change, "older", ("unclear", "mixed"), camera=NEW) for change in ("dark", "JPEG 10")),
    *(Case(change, "", ("camera", "unclear"), camera=NEW) for change in TUNED),
)
HELD_OUT = (
    *(Case(change, "", ("camera",)) for change in UNTUNED),
    *(Case(change, "older", ("mixed",)) for change in UNTUNED),
    *(Case(change, people, (answer,), 0.5)
      for change, (people, answer) in product(("dark", "blurred"), (("", "camera"), ("older", "mixed")))),
    *(Case("dark", people, (answer,), source="portraits") for people, answer in (("", "camera"), ("older", "mixed"))),
    Case("as they are", "", ("camera",), camera=YOUNG),
    Case("as they are", "older", ("mixed",), camera=YOUNG),
    Case("as they are", "3 years older", ("people",)),
    Case("dark", "3 years older", ("mixed",)),
    Case("as they are", "", ("unclear",)),
)  # fmt: skip


def main(draws: int = 100) -> None:
    """Draw, ask, and write the section of RESULTS.md."""
    began = time.process_time()
    rows = [_row(case, draws) for case in CASES]
    held_out = [_row(case, draws) for case in HELD_OUT]
    moved = [[change, *_moved(change)] for change in (*TUNED, *UNTUNED)]
    minutes = (time.process_time() - began) / 60
    text = _TEXT.format(
        draws=draws, last=draws - 1, minutes=minutes, group=GROUP, baseline=BASELINE_GROUPS, few=WINDOW_GROUPS[0],
        many=WINDOW_GROUPS[1], pictures=len(_frame("as they are")), tuned=table(list(_HEADER), rows),
        held_out=table(list(_HEADER), held_out), moved=table(list(_MOVED), moved),
    )  # fmt: skip
    write_section("Cause of a drift", text)


@cache
def _frame(change: str, source: str = "crops") -> pd.DataFrame:
    """Faces of a source that were found in every rendering, in one order."""
    frames = {name: _scored(name) for name in variants.CHANGES}
    common = sorted(set.intersection(*(set(frame.index) for frame in frames.values())))
    found: pd.DataFrame = frames[change].loc[common]
    return found[(found["source"] == "archive_portraits") == (source == "portraits")]


@cache
def _scored(change: str) -> pd.DataFrame:
    rows = variants.scored(change)
    return rows[rows["face"] == 0].set_index("path")


@cache
def _rows(change: str, source: str) -> pa.Table:
    frame = _frame(change, source).reset_index()
    schema = pa.schema([predictions.SCHEMA.field(name) for name in summaries.COLUMNS])
    return pa.Table.from_pandas(frame[list(summaries.COLUMNS)], schema, preserve_index=False, safe=False)


def _draw(case: Case, seed: int) -> Draw:
    """Both sides of an archive, and what is said of them."""
    rng = np.random.default_rng([5, seed])
    plain = _frame("as they are", case.source)
    every = rng.permutation(len(plain))
    halves = np.array_split(every, 2) if case.source == "crops" else [every, every]
    true, groups = plain["age_true"].to_numpy(), int(rng.integers(*WINDOW_GROUPS, endpoint=True))
    if case.people == CHILDREN:
        before = _folders(rng, plain, halves[0][true[halves[0]] >= 18], np.zeros(BASELINE_GROUPS))
        now = _folders(rng, plain, halves[1][true[halves[1]] >= 18], np.zeros(groups))
        some = rng.random(now.shape) < 0.15
        now[some] = rng.choice(halves[1][true[halves[1]] < 13], some.sum())
    else:
        # every third folder of the baseline comes from the camera of the young, where there is one
        young = YOUNG_YEARS * (case.camera == YOUNG)
        before = _folders(rng, plain, halves[0], np.where(np.arange(BASELINE_GROUPS) % 3, 0.0, young))
        years = young + YEARS.get(case.people, 0.0) + true[halves[0]].mean() - true[halves[1]].mean()
        now = _folders(rng, plain, halves[1], np.full(groups, years))
    is_changed = rng.random(now.shape) < case.part
    cameras = np.where(np.arange(BASELINE_GROUPS) % 3, "old", YOUNG if case.camera == YOUNG else "old")
    accepted = _table("before", case, before, np.zeros(before.shape, np.bool_), cameras)
    arrived = _table("now", case, now, is_changed, np.full(groups, case.camera or "old"))
    ages, changed = plain["age"].to_numpy(), _frame(case.change, case.source)["age"].to_numpy()
    by_camera = float((is_changed * (changed[now] - ages[now])).mean())
    matched = _matched(accepted, arrived) if seed < MATCHED else None
    return Draw(cause.of_rows(accepted, arrived), by_camera, float(ages[now].mean() - ages[before].mean()), matched)


def _matched(accepted: pa.Table, arrived: pa.Table) -> tuple[float, float]:
    """What the plain method says: the people's part in years, and the share of what arrived that has likes.

    Accepted faces are weighted by the odds of a classifier on all measures, asked of folders it has not seen.
    """
    rows = pa.concat_tables([accepted, arrived])
    values = summaries.values(rows)
    measures = np.column_stack([*(values[name] for name in MEASURES), np.log2(rows["box_h"].to_numpy())])
    measures = np.nan_to_num(measures, neginf=-20.0)
    is_now = np.arange(len(rows)) >= len(accepted)
    folders = [path.split("/")[0] for path in rows["path"].to_pylist()]
    model = make_pipeline(StandardScaler(), SplineTransformer(4), LogisticRegression(C=0.1, max_iter=300))
    chance = cross_val_predict(model, measures, is_now, groups=folders, cv=GroupKFold(3), method="predict_proba")[:, 1]
    odds = chance / np.maximum(1 - chance, 1e-9)
    has_likes = odds < 20 * len(arrived) / len(accepted)
    weights = np.where(has_likes, odds, 0.0)[~is_now]
    if not has_likes[is_now].any():
        return np.nan, 0.0
    apart = values["age"][is_now & has_likes].mean() - np.average(values["age"][~is_now], weights=weights)
    return float(apart), float(has_likes[is_now].mean())


def _folders(rng: np.random.Generator, plain: pd.DataFrame, pictures: Places, years: Floats) -> Places:
    """Folders of pictures (folders, GROUP), each with more of some ages, brightness and sharpness than others.

    True ages are chosen so that the mean over a folder's pictures moves by so many years (folders,).
    """
    some = plain.iloc[pictures]
    alike = np.column_stack([some["age_true"], some["brightness"], np.log2(some["sharpness"].clip(lower=2.0**-20))])
    z = (alike - alike.mean(axis=0)) / alike.std(axis=0)
    pulls = {by: _pull(z[:, 0], by / alike[:, 0].std()) for by in set(years.tolist())}
    pull = np.array([pulls[by] for by in years.tolist()])
    chance = np.exp(rng.normal(0, TILT, (len(years), 3)) @ z.T + pull[:, None] * z[:, 0])
    chance /= chance.sum(axis=1, keepdims=True)
    return np.stack([rng.choice(pictures, GROUP, p=one) for one in chance])


def _pull(values: Floats, wanted: float) -> float:
    """The exponent whose weights move the mean of values, themselves of mean 0, to what is wanted."""
    return float(brentq(lambda by: np.average(values, weights=np.exp(by * values)) - wanted, -5, 5))


def _table(
    side: str, case: Case, chosen: Places, is_changed: npt.NDArray[np.bool_], cameras: npt.NDArray[np.str_]
) -> pa.Table:
    both = pa.concat_tables([_rows("as they are", case.source), _rows(case.change, case.source)])
    rows = both.take(pa.array((chosen + is_changed * (len(both) // 2)).ravel()))
    paths = [f"{side}{number // GROUP}/{number}.jpg" for number in range(chosen.size)]
    rows = rows.set_column(rows.schema.get_field_index("path"), "path", pa.array(paths))
    return rows.set_column(rows.schema.get_field_index("camera"), "camera", pa.array(np.repeat(cameras, GROUP)))


def _row(case: Case, draws: int) -> list[str]:
    found = [_draw(case, seed) for seed in range(draws)]
    said = Counter(str(one.said.answer) for one in found)
    right = sum(said[name] for name in case.right)
    wrong = [f"{name} {number}" for name, number in said.most_common() if name not in case.right]
    far = [max(abs(one.said.quality.value - one.camera_years), abs(one.said.people.value - one.people_years))
           for one in found if one.said.quality and one.said.people]  # fmt: skip
    parts = (
        f"{sum(years <= 1 for years in far)} of {len(far)}"
        if "mixed" in case.right and far and case.camera != YOUNG
        else ""
    )
    true = [
        f"{np.mean([one.camera_years for one in found]):+.1f}",
        f"{np.mean([one.people_years for one in found]):+.1f}",
    ]
    matched = np.array([one.matched for one in found if one.matched])
    by_likes = "none" if np.isnan(matched[:, 0]).all() else f"{np.nanmean(matched[:, 0]):+.1f}"
    return [
        case.name, " or ".join(case.right), f"{right} of {draws}", ", ".join(wrong), *true, parts,
        f"{by_likes} ({matched[:, 1].mean():.0%})",
    ]  # fmt: skip


def _moved(change: str) -> list[str]:
    plain, changed = _frame("as they are"), _frame(change)
    apart = changed["age"] - plain["age"]
    inner = [apart[plain["age_true"].between(*ends)].mean() for ends in ((0, 12), (13, 59), (60, 120))]
    return [f"{apart.mean():+.2f}", f"{apart.std():.1f}", *(f"{mean:+.2f}" for mean in inner)]


_TEXT = """Written by `python benchmarks/cause.py {draws}`, {minutes:.0f} minutes of CPU beyond scoring: {pictures:,} \
held-out crops, each found in every rendering and scored as it is. Half of the pictures make a baseline of {baseline} \
folders of {group}, the other half {few} to {many} folders that arrive; drawn with replacement, folders with more of \
some ages, brightness and sharpness than others. Seeds (5, 0) to (5, {last}). Whether the verdict is drift was not \
asked. True parts are the same pictures' ages in both renderings.

{tuned}

Renderings and mixtures that no constant was chosen by:

{held_out}

What a rendering does to the ages of the same people, in years:

{moved}
"""
_HEADER = (
    "what arrived", "right", "said", "else", "camera's part, true", "people's part, true", "parts within a year",
    "people's part by matching (with likes)",
)  # fmt: skip
_MOVED = ("rendering", "mean", "sd", "under 13", "13 to 59", "60 and over")

if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
