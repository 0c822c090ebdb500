"""Does the model hold here? The mean absolute error to expect of an archive's faces, without one true age.

Rows of the model's reference and of the archive go in; an estimate with its band comes out, or "can't say" where the
faces lie outside what the model was tested on. A pure function.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, SplineTransformer, StandardScaler

from agewatch.errors import ModelError
from agewatch.estimator.model import read_reference
from agewatch.estimator.spec import Mode
from monitoring.evidence import Floats

OUTSIDE_SHARE = 0.1
"""Where more faces than these lie outside what the reference covers, nothing is said of the error."""
_OUTSIDE = 0.99
"""A face is outside where it is farther from the reference's faces than this part of them is from the others."""
_NEIGHBOURS = 5
_CHIP = ("brightness", "contrast", "sharpness", "shape")
_ANSWER = ("age", "width")
_LEAST_SPREAD = 0.02
"""In the place of a standard deviation that is smaller: a reference of square pictures knows nothing of others."""
_LEAST_FACES = 30
_LEAST_REFERENCE = 200
_AGE_EDGES = np.arange(5, 90, 5)
_ROUNDS = 30
_PRIOR_FACES = 30
"""Weight of the reference's own distribution of ages, in faces, when the archive's is estimated."""
_SOURCES_APART = 0.1
"""Part of an estimate by which the error of an unseen source differs from it, until the reference's sources tell."""
_SOURCES_KNOWN = 4
"""So many sources is that worth: two or three measured ones alone would make a band of any width by chance."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean absolute error and the ends of its 95 % band, years."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether the reference covers the faces, the share of them that lies outside, and the error to expect.

    Without an estimate nobody can say. Nothing is known at all where the model has no reference, or too few faces came.
    """

    covered: bool | None = None
    outside: float | None = None
    estimated_mae: Estimate | None = None

    @property
    def fact(self) -> str | None:
        """The estimate in a few words; None where nothing is known."""
        if self.estimated_mae is None:
            return None if self.covered is None else "can't say"
        one = self.estimated_mae
        return f"{one.value:.1f} years ({one.low:.1f} to {one.high:.1f})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know where the archive is outside."""
        if self.covered is not False:
            return ()
        return (
            f"{self.outside:.0%} of these faces are unlike those that the model was tested on: how large its error is"
            " here can't be said, and that 90 % of true ages lie in the age intervals is not guaranteed here.",
        )


def reference(model: Path, mode: Mode) -> pd.DataFrame | None:
    """The faces of known age among a model's reference rows in a mode; None where it has no such rows."""
    try:
        rows = pq.ParquetFile(pa.BufferReader(read_reference(model))).read(use_threads=False)
    except (ModelError, pa.ArrowException):
        return None
    wanted = {"archive", "status", "mode", "age_true", "age", "age_low", "age_high", *_CHIP[:3], "box_w", "box_h"}
    if not wanted <= set(rows.column_names):
        return None
    frame: pd.DataFrame = rows.to_pandas()
    return frame[(frame["status"] == "ok") & (frame["mode"] == mode) & frame["age_true"].notna()]


def fit(reference: pd.DataFrame | None, faces: pd.DataFrame) -> Fit:
    """Hold faces of an archive against the model's reference: rows of the predictions table, of one mode.

    The reference has `age_true` too; its `archive` is the source, and the band holds what the estimate was wrong by on
    sources that it had not seen. What is done: docs/drift.md.
    """
    if reference is None or len(faces) < _LEAST_FACES:
        return Fit()
    known, now = _features(reference).dropna(), _features(faces)
    if len(known) < _LEAST_REFERENCE:  # of a recalibrated model nobody knows the new intervals of the old rows
        return Fit()
    outside = _is_outside(known, now)
    if outside.mean() > OUTSIDE_SHARE:
        return Fit(False, float(outside.mean()))
    truth = reference.loc[known.index, "age_true"].to_numpy(np.float64)
    sources = reference.loc[known.index, "archive"].to_numpy()
    value, error = _estimate(known, truth, sources, now.dropna())
    apart = _apart(known, truth, sources)
    weight = _SOURCES_KNOWN + len(apart)
    spread = (_SOURCES_KNOWN * _SOURCES_APART**2 + float((apart**2).sum())) / weight
    half = float(t.ppf(0.975, weight)) * np.sqrt(spread + error**2)
    return Fit(True, float(outside.mean()), Estimate(value, value * float(np.exp(-half)), value * float(np.exp(half))))


def _features(rows: pd.DataFrame) -> pd.DataFrame:
    """What the network saw, its chip, and what it said; logarithms where sizes differ by factors."""
    with np.errstate(divide="ignore"):
        found = pd.DataFrame(
            {
                "brightness": rows["brightness"],
                "contrast": rows["contrast"],
                "sharpness": np.log2(rows["sharpness"].clip(lower=2.0**-20)),
                "shape": np.log2(rows["box_w"] / rows["box_h"]),
                "age": rows["age"],
                "width": np.log((rows["age_high"] - rows["age_low"]).clip(lower=1.0)),
            }
        )
    return found.astype(np.float64).replace([np.inf, -np.inf], np.nan)


def _is_outside(known: pd.DataFrame, now: pd.DataFrame) -> Any:
    """Whether each face's chip, or the answer to it, is far from all that the reference holds, shape (faces,).

    Far is the distance to the fifth neighbour in standard deviations. A face that lacks a value is outside.
    """
    outside = now.isna().any(axis=1).to_numpy()
    for names in (list(_CHIP), list(_ANSWER)):
        scale = known[names].std().clip(lower=_LEAST_SPREAD)
        near = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit((known[names] / scale).to_numpy())
        own = near.kneighbors()[0][:, -1]  # of each reference face among the others
        far = near.kneighbors((now[names] / scale).fillna(0.0).to_numpy())[0][:, -1]
        outside |= far > np.quantile(own, _OUTSIDE)
    return outside


def _estimate(known: pd.DataFrame, truth: Floats, sources: Any, now: pd.DataFrame) -> tuple[float, float]:
    """The mean absolute error expected of faces, years, and its standard error as a part of it."""
    off = np.abs(known["age"].to_numpy() - truth)
    weights = _of_sources(known, sources, now)
    weights *= _of_ages(known["age"].to_numpy(), truth, weights, now["age"].to_numpy())
    model = make_pipeline(
        make_column_transformer(
            (SplineTransformer(4, degree=2, extrapolation="constant"), ["age"]), (StandardScaler(), ["width"])
        ),
        PoissonRegressor(alpha=1e-3, max_iter=300),
    ).fit(known, off, poissonregressor__sample_weight=weights)
    expected = model.predict(now)
    value = float(expected.mean())
    # A face's error scatters about what is expected of it in proportion: by as much as it does in the reference.
    scatter = float(np.average((off / model.predict(known) - 1) ** 2, weights=weights))
    alike = float(weights.sum() ** 2 / (weights**2).sum())
    return value, float(np.sqrt(scatter * ((expected**2).mean() / value**2 / len(now) + 1 / alike)))


def _of_sources(known: pd.DataFrame, sources: Any, now: pd.DataFrame) -> Floats:
    """What each reference face counts for where sources are mixed as the archive's chips say, (reference faces,)."""
    names, codes = np.unique(sources, return_inverse=True)
    if len(names) == 1:
        return np.ones(len(known))
    which = make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), LogisticRegression(max_iter=500))
    which.fit(known[list(_CHIP)], codes)
    before = np.bincount(codes) / len(codes)
    weights: Floats = (_spread(which.predict_proba(now[list(_CHIP)]) / before, before) / before)[codes]
    return weights


def _of_ages(known: Floats, truth: Floats, weights: Floats, now: Floats) -> Floats:
    """What each reference face counts for where true ages are spread as in the archive, shape (reference faces,)."""
    ages, size = np.digitize(truth, _AGE_EDGES), len(_AGE_EDGES) + 1
    joint = np.full((size, size), 1e-9)
    np.add.at(joint, (np.digitize(known, _AGE_EDGES), ages), weights)
    before = joint.sum(axis=0) / joint.sum()
    given = joint / joint.sum(axis=0)
    found: Floats = (_spread(given[np.digitize(now, _AGE_EDGES)], before) / before)[ages]
    return found


def _spread(likelihoods: Floats, before: Floats) -> Floats:
    """The likeliest shares of classes, (classes,), of which faces have likelihoods (faces, classes); before it, others.

    Expectation maximisation: Saerens, Latinne & Decaestecker 2002, doi:10.1162/089976602753284446.
    """
    shares = before
    for _ in range(_ROUNDS):
        each = likelihoods * shares
        counts = (each / each.sum(axis=1, keepdims=True)).sum(axis=0)
        shares = (counts + _PRIOR_FACES * before) / (len(likelihoods) + _PRIOR_FACES)
    return shares


def _apart(known: pd.DataFrame, truth: Floats, sources: Any) -> Floats:
    """Logarithms of the error of each source's faces over what it was estimated to be from the others."""
    found = []
    for source in np.unique(sources):
        rest, own = sources != source, sources == source
        if rest.sum() < _LEAST_REFERENCE:
            continue
        own[own] = ~_is_outside(known[rest], known[own])
        if own.sum() < _LEAST_FACES:
            continue
        value, _ = _estimate(known[rest], truth[rest], sources[rest], known[own])
        found.append(np.log(np.abs(known["age"].to_numpy() - truth)[own].mean() / value))
    return np.array(found)
