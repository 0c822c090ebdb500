"""What the drift verdict may be believed: false alarms in lives without change, and how soon changes are found.

Archives are drawn as the nightly sums that `agewatch drift` reads, and judged by the function that it calls. Beside it
stand rules that others use, and for delays a CUSUM (Page 1954) on the mean age that is told the shift beforehand.
`benchmarks/drift.py LIVES DELAYS` draws fewer than the 400 and 100 that RESULTS.md holds.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, partial
from itertools import product

import numpy as np
import pandas as pd
from lives import FIRST_NIGHT, GROUP, Floats, Life, drawn
from people import adults, children
from results import table, write_section
from scipy.stats import binomtest, wasserstein_distance

from agewatch.scoring.baseline import Baseline
from monitoring import columns, windows
from monitoring.columns import ALPHA, BOUND
from monitoring.evidence import NIGHTS
from monitoring.verdict import judge

FACES = (20, 500)
ACCEPT_EVERY = 100
CHANGES: tuple[float | str, ...] = (1.0, 2.0, 3.0, 10.0, "children")
A_NIGHT = (50, 200, 1_000)


@dataclass(frozen=True)
class Cell:
    """Lives of one kind: faces of the baseline, years that groups differ by (sd), nights between two accepts or 0."""

    baseline: int
    offset: float
    accept_every: int = 0


CELLS = (*(Cell(*pair) for pair in product((2_000, 20_000), (0.0, 3.0, 6.0))), Cell(2_000, 3.0, ACCEPT_EVERY))


def main(lives: int = 400, delays: int = 100) -> None:
    """Draw, judge, and write the section of RESULTS.md."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        calm, found = [], []
        for cell in CELLS:
            calm.append(_calm_row(cell, list(pool.map(partial(_life, cell), range(lives), chunksize=4))))
            print(*calm[-1], sep=" | ", flush=True)  # an hour and more: what is known so far is worth seeing
        for faces, change in product(A_NIGHT, CHANGES):
            nights = list(pool.map(partial(_delay, faces, change), range(delays), chunksize=4))
            found.append(_delay_row(faces, change, np.array(nights)))
            print(*found[-1], sep=" | ", flush=True)
        peers = list(pool.map(_peers, CELLS[:6]))
    children_time, own = os.times()[2:4], os.times()[:2]
    text = _text(lives, delays, calm, found, peers, (sum(children_time) + sum(own)) / 60)
    write_section("Drift", text)


def _life(cell: Cell, seed: int) -> tuple[bool, float]:
    """Whether a life without change alarmed, and the smallest change of the mean age that it could ever have shown."""
    cells = drawn(
        np.random.default_rng([1, seed]), adults(), children(), cell.baseline, Life(NIGHTS, FACES, cell.offset)
    )
    step = cell.accept_every or NIGHTS
    alarmed = False
    for start in range(0, NIGHTS, step):
        baseline = Baseline(FIRST_NIGHT, _night(start), is_accepted=start > 0)
        alarmed |= _first_alarm(cells, baseline, _night(min(start + step, NIGHTS))) is not None
    return alarmed, _visible_ever(cells)


def _first_alarm(cells: pd.DataFrame, baseline: Baseline, until: date) -> int | None:
    """The number (from 1) of the first window after the baseline at whose end the verdict is drift.

    What segments say is asked at the last window alone.
    """
    whole = judge(cells, baseline, until=until)
    for number, window in enumerate(whole.windows, 1):
        # What the evidence was at each window's end stands in one verdict; that it mattered is asked there and then.
        passed = (window.value or 0) >= BOUND
        if passed and judge(cells, baseline, until=window.window.until).answer == "drift":
            return number
    return len(whole.windows) if whole.answer == "drift" else None


def _visible_ever(cells: pd.DataFrame) -> float:
    divided = windows.split(cells, Baseline(FIRST_NIGHT, FIRST_NIGHT, is_accepted=False))
    return columns.visible_ages(divided)[2]


def _delay(faces: int, change: float | str, seed: int) -> tuple[int, int]:
    """Nights until a change from the first night on is found: by agewatch, and by a CUSUM that is told the shift."""
    nights = 600 if (faces, change) == (50, 1.0) else 150
    years, share = (0.0, 0.15) if isinstance(change, str) else (change, 0.0)
    life = Life(nights, (faces, faces), since=0, years=years, children=share)
    cells = drawn(np.random.default_rng([2, seed]), adults(), children(), 20_000, life)
    ours = _first_alarm(cells, Baseline(FIRST_NIGHT, FIRST_NIGHT, is_accepted=False), _night(nights)) or nights
    known, sd = float(adults()["age"].mean()), float(adults()["age"].std())
    told = years or share * (float(children().mean()) - known)
    sums = cells[cells["night"].dt.date > FIRST_NIGHT].groupby("night")[["age_sum", "age_n"]].sum()
    error = sd / np.sqrt(sums["age_n"].to_numpy())
    steps = told * (sums["age_sum"] / sums["age_n"] - known - told / 2).to_numpy() / error**2
    passed = np.nonzero(_cusum(steps[None, :])[0] >= _cusum_bound(abs(told) / float(error[0])))[0]
    return ours, int(passed[0]) + 1 if len(passed) else nights


def _cusum(steps: Floats) -> Floats:
    sums, found = np.zeros(len(steps)), np.empty_like(steps)
    for night in range(steps.shape[1]):
        sums = np.maximum(0, sums) + steps[:, night]
        found[:, night] = sums
    return found


@cache
def _cusum_bound(z: float) -> float:
    """What a CUSUM of normal log-likelihood ratios passes in NIGHTS nights with chance ALPHA; z is shift / error."""
    steps = np.random.default_rng(3).normal(-(z**2) / 2, z, (4_000, NIGHTS))
    return float(np.quantile(_cusum(steps).max(axis=1), 1 - ALPHA))


def _peers(cell: Cell) -> tuple[float, float]:
    """Share of nights that alarm without change: Evidently's default for large references, and a night's 1 % test."""
    rng = np.random.default_rng([4, cell.baseline])
    ages = adults()["age"]

    def draw(groups: int) -> Floats:
        return (ages[rng.integers(len(ages), size=(groups, GROUP))] + rng.normal(0, cell.offset, (groups, 1))).ravel()

    before = draw(cell.baseline // GROUP)
    alarms = np.zeros(2)
    for _ in range(NIGHTS):
        now = draw(max(1, round(rng.integers(FACES[0], FACES[1] + 1) / GROUP)))
        far = abs(now.mean() - before.mean()) / np.sqrt(before.var() / len(now) + before.var() / len(before))
        alarms += [wasserstein_distance(before, now) / before.std() >= 0.1, far > 2.576]
    return alarms[0] / NIGHTS, alarms[1] / NIGHTS


def _calm_row(cell: Cell, lives: list[tuple[bool, float]]) -> list[str]:
    alarms = sum(alarmed for alarmed, _ in lives)
    ends = binomtest(alarms, len(lives)).proportion_ci()
    accepted = f"accepted every {cell.accept_every} nights" if cell.accept_every else "fixed"
    return [
        f"{cell.baseline:,}, {accepted}", f"{cell.offset:g}", f"{alarms} of {len(lives)}",
        f"{ends.low:.1%} to {ends.high:.1%}", f"{np.median([ever for _, ever in lives]):.1f}",
    ]  # fmt: skip


def _delay_row(faces: int, change: float | str, nights: Floats) -> list[str]:
    (ours, slow), (cusum, cusum_slow) = (np.quantile(nights[:, i], (0.5, 0.9)) for i in (0, 1))
    shift = f"{change:+g} years" if not isinstance(change, str) else "15 % children"
    return [shift, str(faces), f"{ours:.0f}", f"{slow:.0f}", f"{cusum:.0f}", f"{cusum_slow:.0f}", f"{ours / cusum:.1f}"]


_TEXT = """Written by `make bench`: {adults:,} adults of the model's held-out pictures, drawn with replacement; \
{minutes:.0f} minutes of CPU.

Lives of {nights:,} nights without change, {few} to {many} faces a night in groups of {group}; seeds (1, 0) to \
(1, {last_life}). At most {alpha:.0%} are to alarm, by columns at the end of any night or by segments at the last.

{calm}

Nights until a change is found that begins the night after a baseline of 20,000; independent faces; {delays} draws a \
line, seeds (2, 0) to (2, {last_delay}). The CUSUM knows the shift, the mean and the noise, and alarms without change \
in {alpha:.0%} of lives too.

{found}

Nights without change that alarm by other rules: Wasserstein over standard deviation of at least 0.1, Evidently's \
default for large references, and a test of each night's mean at 1 % that takes faces as independent; {nights:,} \
nights.

{peers}
"""
_CALM = ("faces of the baseline", "groups differ by (sd, years)", "alarmed", "95 % interval", "visible ever, years")
_FOUND = ("change", "faces a night", "nights, median", "90 %", "CUSUM, median", "90 %", "ratio")
_PEERS = ("faces of the baseline", "groups differ by (sd, years)", "Evidently's default", "1 % a night")


def _text(
    lives: int,
    delays: int,
    calm: list[list[str]],
    found: list[list[str]],
    peers: list[tuple[float, float]],
    minutes: float,
) -> str:
    rates = [
        [f"{cell.baseline:,}", f"{cell.offset:g}", *(f"{rate:.1%}" for rate in pair)]
        for cell, pair in zip(CELLS[:6], peers, strict=True)
    ]
    return _TEXT.format(
        adults=len(adults()["age"]), minutes=minutes, nights=NIGHTS, few=FACES[0], many=FACES[1], group=GROUP,
        last_life=lives - 1, delays=delays, last_delay=delays - 1, alpha=ALPHA, calm=table(list(_CALM), calm),
        found=table(list(_FOUND), found), peers=table(list(_PEERS), rates),
    )  # fmt: skip


def _night(number: int) -> date:
    return FIRST_NIGHT + timedelta(days=number)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
