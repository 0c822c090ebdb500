"""Has a measure changed since it was accepted? Evidence that may be looked at every night, for years.

A window gives each column one estimate, and the baseline another. "No change" means that all have one mean; against it
stands "the mean moved by some amount in some window, and stayed". The evidence is the likelihood ratio of the two,
averaged over the amount and the window. What nobody knows, the mean itself and the scale of the noise, is averaged over
on both sides alike (Haar priors, the latter informed by the baseline's groups), so that the baseline's own error
counts. The sum over the windows in which a change may have begun, a part in NIGHTS each, is a test martingale but for
that growth: however often it is looked at, without change it passes B within NIGHTS windows with a chance of at most
1 / B (Ville's inequality).

Sources: Robbins 1970, doi:10.1214/aoms/1177696786 (mixtures); Pérez-Ortiz, Lardy, de Heide & Grünwald 2024,
doi:10.1214/24-AOS2394 (unknown means and scales at no cost); Shin, Ramdas & Rinaldo 2023, arXiv 2203.03532 (sums over
the time of change); Clopper & Pearson 1934 (the far end of a baseline's share).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtri_exp
from scipy.stats import beta, gamma, t

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NIGHTS = 1_000
"""A life: the chance of a false alarm is stated for so many windows."""
_SCALE_GROUPS = 200.0
"""More groups than this do not count as knowledge of the noise's scale, so that the windows' own noise is heard too."""
_MOVED_PARTS = (0.05, 0.1, 0.2, 0.4, 0.7)
"""The changes of a share that are averaged over, as parts of what lies between it and 0 or 1."""


@dataclass(frozen=True, slots=True)
class Means:
    """A column's estimates: of the baseline, and of each window, shape (windows,), in the column's unit.

    Variances are those of the estimates' own error, infinite where a window has no value. `skew` and `kurtosis` (in
    excess of the normal's) are of a window's error. `groups` is the number of the baseline's, `apart` the standard
    deviation of their true means.
    """

    baseline: float
    baseline_variance: float
    windows: Floats
    variances: Floats
    skew: Floats
    kurtosis: Floats
    groups: int
    apart: float = 0.0


@dataclass(frozen=True, slots=True)
class Shares:
    """How many files have something, of how many: in the baseline, and in each window, shape (windows,).

    Both counts are divided by the design effect where files of a group are alike (Rao & Scott 1992).
    """

    baseline_hits: float
    baseline_files: float
    hits: Floats
    files: Floats


@dataclass(frozen=True, slots=True)
class Course:
    """The evidence of one column as the windows went by; logarithms are natural.

    All have shape (windows,): `log_e` and `log_alone` are the evidence at each window's end, and that of the window by
    itself, without the price of a life; `log_weight` is what each window, as the first of a change, adds to the last
    evidence.
    """

    log_e: Floats
    log_alone: Floats
    log_weight: Floats


def of_means(means: Means, spread: float) -> Course:
    """The evidence of a change of the mean, over a normal prior of its size with this standard deviation."""
    return of_columns([means], [spread])[0]


def of_columns(columns: Sequence[Means], spreads: Sequence[float]) -> list[Course]:
    """As `of_means`, of several columns over the same windows: together they cost little more than one."""
    if not columns:
        return []
    y, p = (np.stack(parts) for parts in zip(*(_centred(means) for means in columns), strict=True))
    df, tau = np.array([scale_df(means) for means in columns])[:, None], np.array(spreads)[:, None] ** -2.0
    total, weighted, squared = np.cumsum(p, axis=1), np.cumsum(p * y, axis=1), np.cumsum(p * y * y, axis=1)
    seen = np.cumsum(p > 0, axis=1) - 1
    count = y.shape[1] - 1
    log_e, log_alone, log_ratio = np.empty((len(y), count)), np.empty((len(y), count)), np.empty((len(y), count))
    for now in range(1, count + 1):
        here = slice(now, now + 1)
        after = total[:, here] - total[:, :now]
        s_xx = after * total[:, :now] / total[:, here]
        s_xy = weighted[:, here] - weighted[:, :now] - after * (weighted[:, here] / total[:, here])
        rest = df + np.maximum(squared[:, here] - weighted[:, here] ** 2 / total[:, here], 1e-300)
        gain = s_xy * s_xy / ((s_xx + tau) * rest)
        log_ratio = -0.5 * (np.log1p(s_xx / tau) + (df + seen[:, here]) * np.log1p(-gain))
        log_e[:, now - 1], log_alone[:, now - 1] = _log_sum(log_ratio) - np.log(NIGHTS), log_ratio[:, -1]
    return [Course(*parts) for parts in zip(log_e, log_alone, log_ratio, strict=True)]


def scale_df(means: Means) -> float:
    """Degrees of freedom of what the baseline's groups tell of the noise's scale."""
    return known_scale(means.groups)


def known_scale(groups: int) -> float:
    """Degrees of freedom of what so many groups tell of the noise's scale."""
    return min(groups - 1.0, _SCALE_GROUPS)


def last_of_many(
    of: Ints, away: Floats, precision: Floats, baselines: Floats, df: Floats, spread: float
) -> tuple[Floats, Ints]:
    """The last evidence, as in `of_means`, of many means of which each has some of the windows.

    `of`, `away` (from its own baseline, drawn in) and `precision` are by mean and window, in this order; `baselines`
    (precisions) and `df` by mean. Returns the logarithm of each one's evidence, -infinity where it has no window, and
    the row of the window in which its change most likely began.
    """
    size = len(baselines)
    count = np.bincount(of, minlength=size).astype(np.float64)
    weighted, squared = (np.bincount(of, some, size) for some in (precision * away, precision * away**2))
    total = np.maximum(baselines + np.bincount(of, precision, size), 1e-300)
    after, after_weighted = _onward(of, precision), _onward(of, precision * away)
    s_xx = after * (total[of] - after) / total[of]
    s_xy = after_weighted - after * (weighted / total)[of]
    rest = (df + np.maximum(squared - weighted**2 / total, 1e-300))[of]
    gain = s_xy * s_xy / ((s_xx + spread**-2) * rest)
    log_ratio = -0.5 * (np.log1p(s_xx * spread**2) + (df + count)[of] * np.log1p(-np.minimum(gain, 1 - 1e-15)))
    most = np.full(size, -np.inf)
    np.maximum.at(most, of, log_ratio)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_e = most + np.log(np.bincount(of, np.exp(log_ratio - most[of]), size)) - np.log(NIGHTS)
    best = np.full(size, -1)
    is_best = log_ratio == most[of]
    best[of[is_best][::-1]] = np.flatnonzero(is_best)[::-1]
    return np.where(count > 0, log_e, -np.inf), best


def last_of_means(means: Means, spread: float) -> tuple[float, int]:
    """The logarithm of the last evidence of `of_means`, and the window in which the change most likely began."""
    away, precision = _centred(means)
    none = np.zeros(len(means.windows), np.int64)
    log_e, best = last_of_many(none, away[1:], precision[1:], precision[:1], np.array([scale_df(means)]), spread)
    return float(log_e[0]), int(best[0])


def _onward(of: Ints, values: Floats) -> Floats:
    """Of each row, the sum from it to the last row of the same mean."""
    sums = np.cumsum(values[::-1])[::-1]
    ends = np.searchsorted(of, of, side="right")
    return np.asarray(sums - np.append(sums, 0.0)[ends])


def _log_sum(logs: Floats) -> Floats:
    """log(sum(exp(logs))) along the last axis; SciPy's costs ten times as much, and each night of a life asks this."""
    most = logs.max(axis=-1, keepdims=True)
    return np.asarray(most[..., 0] + np.log(np.exp(logs - most).sum(axis=-1)))


def visible(means: Means, spread: float, log_bound: float, since: int = -1) -> tuple[float, float, float]:
    """The smallest changes of a mean that would pass a bound, in the column's unit; infinite where none would.

    By now, had they begun in window `since`, by default the last; by now, had they begun in the first; and after any
    number of windows.
    """
    _, p = _centred(means)
    df, seen = scale_df(means), int(np.sum(p[1:] > 0))
    total = p.sum()
    after = p[1:][since:].sum()
    last, first = after * (total - after) / total, p[0] * (total - p[0]) / total
    cases = ((last, seen), (first, seen), (p[0], 100 * NIGHTS))
    last_seen, first_seen, ever = (
        _least(information, df + count, spread**-2, log_bound) for information, count in cases
    )
    return last_seen, first_seen, ever


def windows_until(means: Means, spread: float, log_bound: float, wanted: float) -> int | None:
    """How many more windows like those so far show a lasting change of `wanted`; None where a life of them does not."""
    _, p = _centred(means)
    some = p[1:][p[1:] > 0]
    if not len(some):
        return None
    for more in range(1, NIGHTS):
        total = p.sum() + more * some.mean()
        information, df = p[0] * (total - p[0]) / total, scale_df(means) + len(some) + more
        if _least(information, df, spread**-2, log_bound) <= wanted:
            return more
    return None


def _least(information: float, df: float, tau: float, log_bound: float) -> float:
    """The change at which `of_means` gives one window's share of the bound, its own residuals being as expected."""
    if information <= 0 or df < 1:
        return np.inf
    price = log_bound + np.log(NIGHTS) + 0.5 * np.log1p(information / tau)
    ratio = np.exp(min(2 * price / df, 700.0))
    room = 1 - ratio * tau / (information + tau)
    return float(np.sqrt(max(df - 1, 1) * (ratio - 1) / room / information)) if room > 0 else np.inf


def of_shares(shares: Shares, error: float) -> Course:
    """The evidence of a change of a share, by exact binomial likelihoods against the far ends of the baseline's.

    `error` is the chance, beside the evidence's own, that the baseline's true share lies beyond an end.
    """
    steps = _share_steps(shares, error)
    price = np.log(2 * len(_MOVED_PARTS))
    log_sums, log_e = np.full(len(steps), -np.inf), np.empty(len(shares.files))
    for now in range(len(log_e)):
        log_sums = np.logaddexp(log_sums, 0.0) + steps[:, now]
        log_e[now] = _log_sum(log_sums) - price - np.log(NIGHTS)
    since = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    alone, weight = (np.asarray(logsumexp(logs, axis=0)) - price for logs in (steps, since))
    return Course(log_e, alone, weight)


def last_of_shares(shares: Shares, error: float) -> tuple[float, int]:
    """The logarithm of the last evidence of `of_shares`, and the window in which the change most likely began."""
    since = np.cumsum(_share_steps(shares, error)[:, ::-1], axis=1)[:, ::-1]
    weight = np.asarray(logsumexp(since, axis=0)) - np.log(2 * len(_MOVED_PARTS))
    return float(_log_sum(weight) - np.log(NIGHTS)), int(weight.argmax())


def _share_steps(shares: Shares, error: float) -> Floats:
    """What each window adds to the logarithm of the likelihood ratio, of each change averaged over."""
    low, high = _ends(shares, error)
    misses = shares.files - shares.hits
    ratios = []
    for end, moved in [(high, high + (1 - high) * part) for part in _MOVED_PARTS] + [
        (low, low * (1 - part)) for part in _MOVED_PARTS
    ]:
        if end != moved:
            ratios.append(shares.hits * np.log(moved / end) + misses * np.log((1 - moved) / (1 - end)))
    return np.array(ratios)


def _ends(shares: Shares, error: float) -> tuple[float, float]:
    """Clopper-Pearson's interval of the baseline's share, `error` / 2 beyond each end."""
    hits, misses = shares.baseline_hits, shares.baseline_files - shares.baseline_hits
    low = float(beta.ppf(error / 2, hits, misses + 1)) if hits > 0 else 0.0
    high = float(beta.isf(error / 2, hits + 1, misses)) if misses > 0 else 1.0
    return low, high


def _centred(means: Means) -> tuple[Floats, Floats]:
    """Estimates less the baseline's, and their precisions, the baseline first; shape (1 + windows,).

    A window's estimate is drawn in to what a normal error of the same chance would be.
    """
    away = means.windows - means.baseline
    scale = np.sqrt(means.variances + means.baseline_variance)
    with np.errstate(invalid="ignore"):
        scores = np.where(np.isfinite(scale), away / scale, 0.0)
    drawn_in = as_normal(scores, means.skew, means.kurtosis)
    away = np.where(
        np.isfinite(scale), away * np.divide(drawn_in, scores, out=np.ones_like(scores), where=scores != 0), 0
    )
    return np.concatenate([[0.0], away]), 1 / np.concatenate([[means.baseline_variance], means.variances])


def as_normal(scores: Floats, skew: Floats, kurtosis: Floats) -> Floats:
    """Scores of an error with some skewness and excess kurtosis -> normal scores that are as likely, or less extreme.

    By the tail of a gamma distribution of that skewness on its heavy side, and of Student's t of that kurtosis.
    """
    size = np.abs(scores)
    least = 1e-3
    shape = 4 / np.maximum(np.abs(skew), least) ** 2
    by_skew = -ndtri_exp(gamma.logsf(shape + size * np.sqrt(shape), shape))
    nu = 4 + 6 / np.maximum(kurtosis, least)
    by_kurtosis = -ndtri_exp(t.logsf(size * np.sqrt(nu / (nu - 2)), nu))
    drawn = np.where((scores * skew > 0) & (np.abs(skew) > least), np.minimum(size, by_skew), size)
    drawn = np.where(kurtosis > least, np.minimum(drawn, by_kurtosis), drawn)
    return np.asarray(np.sign(scores) * np.where(size > 1, np.maximum(drawn, 1.0), size))
