"""Archives that live for years, drawn night by night as the sums that `agewatch drift` reads."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

from agewatch.errors import REFUSAL_CODES
from monitoring.summaries import AGE_EDGES, CELL, MEASURES, SIZE_EDGES

GROUP = 20
"""Faces that belong together, with one offset of their ages."""
FIRST_NIGHT = date(2026, 1, 1)
CAMERAS = ("A 1", "B 2", "C 3", "D 4", "E 5")
REFUSED, NO_FACE = 0.01, 0.04
"""Shares of files, beside those with one face."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Life:
    """How an archive's nights are drawn: faces a night (lowest, highest), the standard deviation in years of the
    offset that a group of GROUP faces shares, and from night `since` on a shift in years, or a share of children.

    Groups are folders of their own; with `tops`, of so many folders: each group below one, or with `is_flat` all of a
    folder's faces directly in it, with one offset. The shift is then of the first of these folders alone.
    """

    nights: int
    faces: tuple[int, int]
    group_sd: float = 0.0
    since: int = 10**9
    years: float = 0.0
    children: float = 0.0
    tops: int = 0
    is_flat: bool = False


def drawn(rng: np.random.Generator, faces: dict[str, Floats], young: Floats, baseline: int, life: Life) -> pd.DataFrame:
    """The sums of a baseline of so many faces, all of the first night, and of the nights after it.

    `faces` are measures of faces, by the names in MEASURES (sharpness in doublings), drawn from with replacement;
    `young` ages of children.
    """
    low, high = life.faces
    groups = [baseline // GROUP, *np.maximum(1, np.round(rng.integers(low, high + 1, life.nights) / GROUP).astype(int))]
    night = np.repeat(np.arange(life.nights + 1), groups)
    picked = rng.integers(len(faces["age"]), size=(len(night), GROUP))
    top = np.arange(len(night)) % max(life.tops, 1)
    offset = rng.normal(0, life.group_sd, (len(night), 1))
    age = faces["age"][picked] + (offset[top] if life.is_flat else offset)
    is_later = ((night > life.since) & (top == 0))[:, None]
    age = age + np.where(is_later, life.years, 0.0)
    if life.children:
        is_child = is_later & (rng.random(age.shape) < life.children)
        age = np.where(is_child, young[rng.integers(len(young), size=age.shape)], age)
    # No model estimates an age below 0 or over 100; reflected, so that the mean stays nearly what was asked for.
    measured = {name: faces[name][picked] for name in MEASURES} | {"age": np.clip(age, 0.5, 100)}
    folder = [f"{f'top{top[n]}/' if life.tops else ''}g{n}" for n in range(len(night))]
    return _sums(rng, night, [name.split("/")[0] for name in folder] if life.is_flat else folder, measured)


def _sums(
    rng: np.random.Generator, night: npt.NDArray[np.int64], folder: list[str], measured: dict[str, Floats]
) -> pd.DataFrame:
    count = len(night)
    columns: dict[str, object] = {
        "night": pd.to_datetime([FIRST_NIGHT + timedelta(days=int(n)) for n in range(int(night.max()) + 1)]).to_numpy()[
            night
        ],
        "folder": folder,
        "day": pd.to_datetime("2025-01-01") + pd.to_timedelta(rng.integers(0, 700, count), "D"),
        "camera": np.array(CAMERAS)[rng.integers(len(CAMERAS), size=count)],
        "refused": rng.binomial(GROUP, REFUSED, count).astype(float),
        "no_face": rng.binomial(GROUP, NO_FACE, count).astype(float),
        "faces": float(GROUP),
    }
    columns |= {code: columns["refused"] if code == "unreadable" else 0.0 for code in REFUSAL_CODES}
    frame = pd.DataFrame(columns).astype({"day": "datetime64[s]"})
    frame["files"] = frame["faces"] + frame["refused"] + frame["no_face"]
    under = {f"under_{edge}": (measured["age"] < edge).sum(axis=1).astype(float) for edge in AGE_EDGES}
    band = rng.integers(len(SIZE_EDGES) + 1, size=measured["age"].shape)
    for number in range(len(SIZE_EDGES) + 1):
        under |= {
            f"size_{number}_n": (band == number).sum(axis=1).astype(float),
            f"size_{number}_sum": np.where(band == number, measured["age"], 0.0).sum(axis=1),
        }
    moments: dict[str, Floats] = {}
    for name, values in measured.items():
        moments |= {
            f"{name}_n": np.isfinite(values).sum(axis=1).astype(float),
            f"{name}_sum": np.nansum(values, axis=1),
            f"{name}_squares": np.nansum(values**2, axis=1),
        }
    together: pd.DataFrame = frame.join(pd.DataFrame(under | moments))
    if len(set(folder)) < count:
        together = together.groupby(list(CELL), as_index=False).sum()
    return together.sort_values(list(CELL), ignore_index=True)
