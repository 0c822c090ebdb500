"""The evidence is worth what it says: rare without a change, soon with one, and the same however often it is asked."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from monitoring import evidence
from monitoring.evidence import NIGHTS, Means, Shares, of_means, of_shares, visible

RNG_LIVES = 300


def drawn(rng: np.random.Generator, windows: int, *, since: int = 10**9, by: float = 0.0, groups: int = 40) -> Means:
    """A baseline of `groups` units of variance 1, whose mean and variance are estimated, and windows after it."""
    units = rng.normal(0, 1, groups)
    variances = rng.uniform(0.1, 1, windows)
    estimates = rng.normal(np.where(np.arange(windows) >= since, by, 0.0), np.sqrt(variances))
    scale = float(units.var(ddof=1))  # the shape of the noise is known, its scale is learnt
    none = np.zeros(windows)
    return Means(float(units.mean()), scale / groups, estimates, variances * scale, none, none, groups)


def test_lives_without_change_alarm_no_more_often_than_stated() -> None:
    """At a bound of 5 over 250 windows at most one life in 20 may alarm: 300 lives, 27 are beyond 99.9 %."""
    rng = np.random.default_rng(1)
    alarms = sum(of_means(drawn(rng, NIGHTS // 4, groups=8), 4.0).log_e.max() >= np.log(5) for _ in range(RNG_LIVES))
    assert alarms <= stats.binom.ppf(0.999, RNG_LIVES, 0.05)


def test_a_change_is_found_and_dated() -> None:
    course = of_means(drawn(np.random.default_rng(2), 60, since=40, by=2.0), 4.0)
    assert course.log_e[39] < np.log(20) <= course.log_e[-1]
    weight = np.exp(course.log_weight - logsumexp(course.log_weight))
    assert weight[38:43].sum() > 0.9


def test_what_was_said_of_a_window_is_said_of_it_for_ever() -> None:
    means = drawn(np.random.default_rng(3), 30, since=12, by=1.0)
    whole = of_means(means, 4.0)
    for until in (1, 7, 20):
        cut = (part[:until] for part in (means.windows, means.variances, means.skew, means.kurtosis))
        earlier = of_means(Means(means.baseline, means.baseline_variance, *cut, means.groups), 4.0)
        assert earlier.log_e == pytest.approx(whole.log_e[:until])


def test_the_evidence_is_the_likelihood_ratio_that_it_claims_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an oracle: with the scale known (many groups), integrals over the mean and the change by brute force."""
    monkeypatch.setattr(evidence, "_SCALE_GROUPS", 1e9)
    y, v, base, prior = np.array([0.4, 2.1]), np.array([0.5, 0.25]), 0.05, 1.5
    none = np.zeros(2)
    course = of_means(Means(0.0, base, y, v, none, none, 10**9), prior)
    mean = np.linspace(-12, 12, 2401)[:, None]
    change = np.linspace(-12, 12, 2401)[None, :]
    before = stats.norm.pdf(0.0, mean, np.sqrt(base))
    null = (before * stats.norm.pdf(y[0], mean, np.sqrt(v[0])) * stats.norm.pdf(y[1], mean, np.sqrt(v[1]))).sum()
    weights = stats.norm.pdf(change, 0, prior) * (change[0, 1] - change[0, 0])
    for first, found in enumerate(course.log_weight):
        parts = [stats.norm.pdf(y[i], mean + (change if i >= first else 0), np.sqrt(v[i])) for i in (0, 1)]
        changed = (before * parts[0] * parts[1] * weights).sum()
        assert found == pytest.approx(np.log(changed / null), abs=0.001)


def test_a_skewed_error_is_worth_less_than_a_normal_one_of_the_same_size() -> None:
    one, none = np.ones(1), np.zeros(1)
    plain = of_means(Means(0.0, 0.01, 6 * one, one, none, none, 300), 4.0).log_e[0]
    skewed = of_means(Means(0.0, 0.01, 6 * one, one, 0.6 * one, none, 300), 4.0).log_e[0]
    heavy = of_means(Means(0.0, 0.01, 6 * one, one, none, 2 * one, 300), 4.0).log_e[0]
    light_side = of_means(Means(0.0, 0.01, -6 * one, one, 0.6 * one, none, 300), 4.0).log_e[0]
    assert skewed < plain - 2
    assert heavy < plain - 2
    assert light_side == pytest.approx(plain)


def test_the_smallest_visible_change_is_where_the_evidence_passes() -> None:
    variances, none = np.full(5, 0.3), np.zeros(5)
    seen = visible(Means(0.0, 0.01, none, variances, none, none, 80), 4.0, np.log(20))[0]
    for factor, passes in ((0.85, False), (1.15, True)):
        quiet = np.sqrt(0.3) * np.array([1.0, -1.0, 1.0, -1.0, 0.0])  # residuals as large as their variance says
        quiet[-1] = factor * seen
        course = of_means(Means(0.0, 0.01, quiet, variances, none, none, 80), 4.0)
        assert (course.log_alone[-1] - np.log(NIGHTS) >= np.log(20)) is np.bool_(passes)


@pytest.mark.parametrize(("hits", "files"), [(0, 2000), (20, 2000), (2000, 2000)])
def test_shares_without_change_are_quiet_and_a_jump_is_not(hits: int, files: int) -> None:
    rng = np.random.default_rng(4)
    share, size = hits / files, np.full(200, 100.0)
    calm = rng.binomial(100, share, 200).astype(float)
    assert of_shares(Shares(hits, files, calm, size), 0.001).log_e.max() < np.log(20)
    jump = calm.copy()
    jump[150:] = rng.binomial(100, share + 0.15 if share < 0.5 else share - 0.15, 50)
    course = of_shares(Shares(hits, files, jump, size), 0.001)
    assert course.log_e[148] < np.log(20) < course.log_e[155]
    assert abs(int(course.log_weight.argmax()) - 150) <= 1
