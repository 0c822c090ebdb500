"""What labels that come late may be believed: false alarms, how soon a rise of the error is found, and intervals.

Errors are those of the model's held-out adults, drawn with replacement into weeks, and judged by the function that
`agewatch drift` calls. With AGEWATCH_DATA, portraits are really scored and their intervals calibrated on some of them.
`benchmarks/labels.py DRAWS SPLITS` draws fewer than 400 and 200.
"""

import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from lives import Floats
from people import adult_errors
from results import table, write_section
from scipy.optimize import brentq
from scipy.stats import binomtest, ttest_ind

from agewatch import api
from agewatch.estimator.model import AgeModel, estimate
from agewatch.labelled import late
from agewatch.labelled.calibration import calibrate, coverage_by_band, covered
from agewatch.labelled.evaluate import TRAINED_SPLITS
from agewatch.release.recalibrate import distributions
from agewatch.settings import Settings
from monitoring import drift, error
from monitoring.error import ALPHA, MATERIAL, WEEKS

REFERENCE, WITHIN = 10, 10
RISES = ((20, 3.0), (40, 2.0))
CALIBRATED_ON = (100, 150)


def main(draws: int = 400, splits: int = 200) -> None:
    """Draw, judge, and write the section of RESULTS.md."""
    started = time.process_time()
    calm = [_calm(draws, 0.0), _calm(draws // 4, 0.2)]
    delays = [_delay(draws, each, years, kind) for each, years in RISES for kind in ("scaled", "tilted")]
    minutes = (time.process_time() - started) / 60
    data = os.environ.get("AGEWATCH_DATA")
    portraits = (
        _portraits(Path(data) / "archive_portraits", splits) if data else "Portraits: AGEWATCH_DATA was not set."
    )
    write_section("Labels", _TEXT.format(
        n=len(adult_errors()), mae=adult_errors().mean(), weeks=WEEKS, alpha=ALPHA, minutes=minutes, draws=draws,
        last=draws - 1, reference=REFERENCE, within=WITHIN, calm=table(list(_CALM), calm),
        delays=table(list(_DELAYS), delays), portraits=portraits,
    ))  # fmt: skip


def _drawn(rng: np.random.Generator, weeks: int, each: int, spread: float = 0.0) -> tuple[Floats, error.Weeks]:
    """Errors without a change; with `spread` those of a week are alike, by a factor (sd of its log)."""
    errors = adult_errors()[rng.integers(len(adult_errors()), size=(weeks, each))]
    return (errors * np.exp(rng.normal(0, spread, (weeks, 1)))).ravel(), np.repeat(np.arange(weeks), each)


def _alarm(errors: Floats, weeks: error.Weeks, start: int, end: int) -> int | None:
    """The number of weeks after which it is first said that the error rose, of `start` to `end`."""
    for known in range(start, end + 1):
        seen = weeks < known
        value, first = error.rise(errors[seen], weeks[seen])
        later = weeks[seen] >= first
        if value >= 1 / ALPHA and errors[seen][later].mean() - errors[seen][~later].mean() >= MATERIAL:
            return known
    return None


def _calm(draws: int, spread: float) -> list[str]:
    ours = weekly = 0
    for seed in range(draws):
        errors, weeks = _drawn(np.random.default_rng([1, seed]), WEEKS, 20, spread)
        ours += _alarm(errors, weeks, 2, WEEKS) is not None
        before = errors[weeks < REFERENCE]
        late_weeks = errors[weeks >= REFERENCE].reshape(-1, 20)
        tests = ttest_ind(late_weeks, before[None, :], axis=1, equal_var=False, alternative="greater")
        weekly += bool((tests.pvalue < ALPHA).any())
    ends = binomtest(ours, draws).proportion_ci()
    alike = f"by a factor of sd {spread:.0%}" if spread else "no"
    return [alike, f"{ours} of {draws}", f"{ends.low:.1%} to {ends.high:.1%}", f"{weekly} of {draws}"]


def _delay(draws: int, each: int, years: float, kind: str) -> list[str]:
    known = adult_errors()
    weight = np.exp(_tilt(years) * known)
    found = []
    for seed in range(draws):
        rng = np.random.default_rng([2, seed])
        errors, weeks = _drawn(rng, REFERENCE + 40, each)
        worse = rng.choice(known, len(errors), p=weight / weight.sum()) if kind == "tilted" else errors * _scale(years)
        risen = np.where(weeks >= REFERENCE, worse, errors)
        found.append((_alarm(risen, weeks, REFERENCE + 1, REFERENCE + 40) or np.inf) - REFERENCE)
    hits = sum(delay <= WITHIN for delay in found)
    ends = binomtest(hits, draws).proportion_ci()
    return [
        str(each), f"{years:+g}", kind, f"{np.median(found):.0f}", f"{np.quantile(found, 0.9):.0f}",
        f"{hits / draws:.1%}", f"{ends.low:.1%} to {ends.high:.1%}",
    ]  # fmt: skip


def _scale(years: float) -> float:
    return float(1 + years / adult_errors().mean())


def _tilt(years: float) -> float:
    """Faces drawn with weights exp(t error) have a mean error that is larger by so many years."""
    known = adult_errors()
    return float(brentq(lambda t: np.average(known, weights=np.exp(t * known)) - known.mean() - years, 0, 1))


def _portraits(folder: Path, splits: int) -> str:
    """Score portraits, join their labels, and calibrate on some to see what the others' intervals hold."""
    with tempfile.TemporaryDirectory() as scratch:
        held = Path(scratch) / "predictions"
        api.score_archive(folder, predictions=held)
        key, model_path = drift.key_of(None, None, held)
        added = late.add(held, key, folder.with_suffix(".csv"))
        faces = error.labelled(held, key, model_path, datetime.now(UTC).date(), TRAINED_SPLITS)
        model = AgeModel.load(model_path)
        found, ages = distributions(faces, model, folder, key.mode, Settings().cache)
    labels, rows = model.spec.labels, []
    for n in CALIBRATED_ON:
        inside, coverages, old, limits = 0, [], [], (0.0, 0.0)
        for seed in range(splits):
            order = np.random.default_rng([3, seed]).permutation(len(ages))
            used, others = order[:n], order[n:]
            new = calibrate(found[used], ages[used], [key.mode] * n, labels)
            held_by = []
            for calibration in (model.spec.calibration, new):
                told = estimate(found[others], [key.mode] * len(others), labels, calibration)
                held_by.append(covered(told.low, told.high, ages[others], labels))
            frame = pd.DataFrame({"age": ages[others], "mode": key.mode, "covered": held_by[1]})
            total = coverage_by_band(frame, new, labels)[-1]
            inside += total.limit_low <= total.coverage <= total.limit_high
            coverages.append(total.coverage)
            old.append(held_by[0].mean())
            limits = total.limit_low, total.limit_high
        rows.append([
            str(n), str(len(ages) - n), f"{np.mean(old):.1%}", f"{coverages[0]:.1%}", f"{np.mean(coverages):.1%}",
            f"{limits[0]:.1%} to {limits[1]:.1%}", f"{inside} of {splits}",
        ])  # fmt: skip
    return _PORTRAITS.format(added=added.added, refused=sum(added.refused.values()), n=len(ages),
                             rows=table(list(_SPLITS), rows))  # fmt: skip


_CALM = ("weeks alike", "alarmed", "95 % interval", "weekly t-test")
_DELAYS = ("labels a week", "rise, years", "errors", "weeks, median", "90 %", "within ten", "95 % interval")
_SPLITS = (
    "calibrated on", "others", "old intervals hold", "new hold, first split", "mean of splits", "band (98 %)",
    "splits in the band",
)  # fmt: skip
_TEXT = """Written by `python benchmarks/labels.py`: absolute errors of {n:,} adults of the model's held-out pictures \
(mean {mae:.2f} years), drawn with replacement; {minutes:.0f} minutes of CPU.

{weeks} weeks of 20 labels without a change, looked at every week; {draws} draws, seeds (1, 0) to (1, {last}). At most \
{alpha:.0%} are to alarm. The t-test (Welch, one-sided at {alpha:.0%}) holds each week against the first {reference}. \
Where the labels of a week are alike, as of one folder, they are not exchangeable, and the promise does not hold.

{calm}

Weeks until a rise is said that begins after {reference} labelled weeks; seeds (2, 0) to (2, {last}). `scaled`: each \
error is larger by one factor; `tilted`: real faces with larger errors are drawn more often. At least 90 % are to be \
found within {within}.

{delays}

{portraits}
"""
_PORTRAITS = """Portraits, really scored: {added:,} labels joined, {refused} refused; {n:,} are of \
files that the model was neither trained nor selected on. The new intervals are calibrated on some, drawn by seeds \
(3, 0) and on, and measured on the others.

{rows}"""


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
