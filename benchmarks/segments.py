"""Segments: how often one is named without cause, and how soon a folder that is off is found."""

import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from functools import partial

import numpy as np
from lives import FIRST_NIGHT, Life, drawn
from people import adults, children
from results import table, write_section
from scipy.stats import binomtest

from agewatch.scoring.baseline import Baseline
from monitoring.verdict import judge

BASELINE, FACES, FOLDERS = 2_000, (20, 500), 20
LIFE, EVERY = 200, 20
A_NIGHT, LOOKS = 400, (1, 2, 3, 4, 6, 8, 12, 20)
KINDS = ((0.0, False), (3.0, False), (6.0, False), (6.0, True))
"""Years that groups differ by (sd), and whether groups are the folders themselves."""


def main(lives: int = 100, draws: int = 100) -> None:
    """Draw, judge, and write the section of RESULTS.md."""
    with ProcessPoolExecutor() as pool:
        calm = [(kind, list(pool.map(partial(_named, kind), range(lives), chunksize=4))) for kind in KINDS]
        off = [(kind, list(pool.map(partial(_found, kind), range(draws), chunksize=4))) for kind in KINDS]
    write_section("Segments", _text(calm, off, lives, draws))


def _named(kind: tuple[float, bool], seed: int) -> Counter[str]:
    """The kinds of segments that a life without change ever named."""
    cells = drawn(np.random.default_rng([5, seed]), adults(), children(), BASELINE, _life(LIFE, kind))
    named: Counter[str] = Counter()
    for until in range(EVERY, LIFE + 1, EVERY):
        named |= Counter({part.name: 1 for part in judge(cells, _base(), until=_night(until)).segments if part.drifted})
    return named


def _found(kind: tuple[float, bool], seed: int) -> tuple[int, bool]:
    """Nights until the folder that is 15 years off is named, and whether another was by then."""
    life = replace(_life(LOOKS[-1], kind), faces=(A_NIGHT, A_NIGHT), since=0, years=15.0)
    cells = drawn(np.random.default_rng([6, seed]), adults(), children(), BASELINE, life)
    for until in LOOKS:
        drifted = [part for part in judge(cells, _base(), until=_night(until)).segments if part.drifted]
        folders = [part.value for part in drifted if part.name == "folder"]
        if "top0" in folders:
            return until, len(folders) > 1
    return LOOKS[-1] + 1, False


def _life(nights: int, kind: tuple[float, bool]) -> Life:
    return Life(nights, FACES, kind[0], tops=FOLDERS, is_flat=kind[1])


def _base() -> Baseline:
    return Baseline(FIRST_NIGHT, FIRST_NIGHT, is_accepted=False)


def _night(number: int) -> date:
    return FIRST_NIGHT + timedelta(days=number)


def _text(
    calm: list[tuple[tuple[float, bool], list[Counter[str]]]],
    off: list[tuple[tuple[float, bool], list[tuple[int, bool]]]],
    lives: int,
    draws: int,
) -> str:
    rows = []
    for ((sd, is_flat), named), (_, found) in zip(calm, off, strict=True):
        alarms = sum(bool(life) for life in named)
        ends = binomtest(alarms, lives).proportion_ci()
        nights = np.array([night for night, _ in found])
        rows.append([
            f"{sd:g}", "the folders" if is_flat else f"of 20 faces, below {FOLDERS} folders",
            f"{alarms} of {lives} ({ends.low:.1%} to {ends.high:.1%})",
            f"{(nights <= LOOKS[-1]).mean():.0%}", f"{np.median(nights):.0f}", f"{np.quantile(nights, 0.9):.0f}",
            f"{np.mean([also for _, also in found]):.0%}",
        ])  # fmt: skip
    kinds: Counter[str] = sum((life for _, named in calm for life in named), Counter())
    names = ", ".join(f"{name} {count}" for name, count in kinds.most_common()) or "none"
    header = [
        "groups differ by (sd, years)", "groups", "named without cause", f"found in {LOOKS[-1]} nights",
        "nights, median", "90 %", "another folder named too",
    ]  # fmt: skip
    return (
        f"Written by `make bench`: a baseline of {BASELINE:,} adults, {FOLDERS} folders, five cameras, capture dates of"
        f" two years. Lives of {LIFE} nights of {FACES[0]} to {FACES[1]} faces without change, looked at every {EVERY}"
        f" nights (seeds (5, 0) to (5, {lives - 1})): lives that ever name any segment; at most 5 % are to."
        f" Nights of {A_NIGHT} faces with one folder, {A_NIGHT // FOLDERS} of them, off by 15 years from the first"
        f" night on (seeds (6, 0) to (6, {draws - 1})), looked at after {', '.join(map(str, LOOKS))}."
        f"\n\n{table(header, rows)}"
        f"\n\nKinds named without cause: {names}."
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
