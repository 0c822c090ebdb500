"""What the canaries say: whether the same pictures are still given the same ages."""

from dataclasses import dataclass
from datetime import date, datetime
from itertools import takewhile

from agewatch.scoring.canaries import CanaryRun, Record
from agewatch.scoring.predictions import Key

MOVED_YEARS = 0.05
"""Years by which ages of the same pictures may differ in the mean, each by its size. The same program gives the same
ages to a thousandth; a JPEG decoder's faster transform moves them by 0.1, bf16 in place of f32 by 0.46."""
LOST_SHARE = 0.05
"""Share of the canaries that may have lost their face."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """The last run's figures, and what they mean; `runs` are all that count, in the order of time."""

    run: CanaryRun
    runs: tuple[CanaryRun, ...] = ()

    @property
    def moved(self) -> bool:
        """Whether the instrument gives other answers than it did."""
        return has_moved(self.run)

    @property
    def since(self) -> date | None:
        """The day of the first of the runs up to the last that all saw it moved; None where the last did not."""
        seen = list(takewhile(has_moved, reversed((*self.runs[:-1], self.run))))
        return seen[-1].at.date() if seen else None

    @property
    def headline(self) -> str:
        """The first line of the story where it moved."""
        run = self.run
        way = f"{abs(run.moved_years):.1f} years {'older' if run.moved_years > 0 else 'younger'} in the mean"
        lost = f", and {run.lost:,} have lost their face" if run.lost else ""
        return (
            f"The instrument moved: the same {run.n:,} pictures as before are estimated {way}, each by"
            f" {run.spread_years:.1f} years{lost}."
        )

    @property
    def advice(self) -> str:
        """What to do where it moved."""
        return (
            f"The run at {self.run.at:%Y-%m-%d %H:%M} UTC used {self.run.engine}: look for what changed (a library, the"
            " processor, the precision). To stay with it, run `agewatch drift accept`."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a reader should know."""
        if not self.run.replaced:
            return ()
        return (f"{self.run.replaced:,} canaries were gone or had changed; others took their place.",)


def has_moved(run: CanaryRun) -> bool:
    """Whether a run gave other answers than the first one."""
    return run.spread_years > MOVED_YEARS or run.lost > LOST_SHARE * (run.n + run.lost)


def last(record: Record, key: Key, accepted: datetime | None, until: date) -> Instrument | None:
    """What the last run up to a day (UTC, included) saw with this model and mode; None where none looked.

    Runs before something was accepted no longer count: the ages were accepted with it.
    """
    ours = [run for run in record.runs if (run.model, run.mode) == (key.model, key.mode)]
    runs = [run for run in ours if run.at.date() <= until and (accepted is None or run.at > accepted)]
    return Instrument(runs[-1], tuple(runs)) if runs else None
