"""What a verdict says to a person: its first line, what to do, and what was left out."""

import math
from collections.abc import Sequence
from datetime import date

from agewatch.scoring.anew import Left
from agewatch.scoring.baseline import FULL, Baseline
from monitoring.columns import ColumnDrift
from monitoring.error import Mean
from monitoring.segments import Segment
from monitoring.windows import LEAST_FACES, Split

_APART_YEARS = 1.0
_NAMED = 3
_MOST_EVIDENCE = 1e12
Said = tuple[str, str]
"""A headline, and what to do."""


def drift(moved: Sequence[ColumnDrift], parts: Sequence[Segment], since: date) -> Said:
    """Of columns and segments that drifted, of each the most telling first; there is one at least."""
    also = f"; {', '.join(column.label for column in moved[1:])} moved too" if moved[1:] else ""
    most = next((part for part in parts if part.unit == "years"), None)
    where = f"; most of all {_where(most)} ({signed(most.effect, most.unit)})" if most and moved else ""
    return (
        f"Drift since {since}: {f'{shift(moved[0])}{also}{where}' if moved else _part_moved(parts[0])}.",
        "Look at the newest pictures. If the archive is to be so from now on, run `agewatch drift accept --from"
        f" {since}`.",
    )


def calm(divided: Split, visible_years: float) -> Said:
    """Of windows that show no drift."""
    return (
        f"No drift in {_faces(divided)} that arrived since {divided.windows[0].first}: a lasting change of their mean"
        f" age by {visible_years:.1f} years would have been seen.",
        "",
    )


def too_little(
    divided: Split, visible_years: float, ever: float, wanted: float, apart: float, more: int | None
) -> Said:
    """Where a change that matters might still be hidden: for so many windows more, or for ever.

    Groups differ by `apart` years (sd).
    """
    headline = f"Too little data: {_faces(divided)} that arrived since {divided.windows[0].first} "
    if math.isfinite(visible_years):
        headline += f"show a change of the mean age only from {visible_years:.1f} years."
    else:
        headline += "can't show a change of the mean age yet."
    if ever <= wanted:
        enough = f"About {more:,} more nights like these" if more else "More nights"
        return headline, f"{enough} will show a lasting change of {wanted:g} years."
    least = f"under {ever:.1f} years" if math.isfinite(ever) else "of any size"
    base = divided.baseline
    held = f"{base.n_faces:,} faces in {_groups(divided)}" if base else "no faces"
    differ = f", whose mean ages differ by {apart:.1f} years among themselves" if apart >= _APART_YEARS else ""
    return (
        headline,
        f"No number of nights will show a change {least} against a baseline of {held}{differ}. Accept more nights with"
        " `agewatch drift accept`.",
    )


def no_baseline(arrived: Sequence[tuple[date, int]]) -> Said:
    """Where too few faces have arrived in all, given the nights and their faces."""
    faces = sum(n for _, n in arrived)
    return (
        f"Too little data: {faces:,} of the {FULL:,} faces that make a baseline have arrived.",
        "Until then nothing is judged. To be content with fewer, run `agewatch drift accept`.",
    )


def empty_baseline(baseline: Baseline) -> Said:
    """Where no rows are of the nights that were accepted."""
    return (
        f"Too little data: no face that arrived from {baseline.first} to {baseline.until}, the baseline, has a row of"
        " this model and mode.",
        "Score the archive with this model, or accept other nights with `agewatch drift accept`.",
    )


def baseline_by_older(files: int, model: str) -> Said:
    """Where files of the baseline have no row of the current model yet."""
    return (
        f"Too little data: {files:,} files of the baseline still stand by {model} only.",
        "The next night scores them anew, before all else; then the verdict goes on.",
    )


def by_older(still: Left) -> tuple[str, ...]:
    """Files that only an older model scored."""
    if not still.files:
        return ()
    nights = list(still.nights)
    return (
        f"{still.files:,} files that arrived from {nights[0]} to {nights[-1]} still stand by {still.model} only. Their"
        " nights are judged when they are scored anew.",
    )


def nothing_new(divided: Split) -> Said:
    """Where nothing, or next to nothing, has arrived since the baseline."""
    base = divided.baseline
    held = f"the {base.n_faces:,} faces of the baseline ({base.first} to {base.until})" if base else "the baseline"
    return f"Too little data: nothing to compare with {held} has arrived yet.", "The next nights will be compared."


def notes(divided: Split) -> tuple[str, ...]:
    """What a reader has to know of how the windows were made."""
    said = []
    if divided.waiting is not None:
        said.append(
            f"{divided.waiting.n_faces:,} faces that arrived since {divided.waiting.first} wait for the next window:"
            f" one has at least {LEAST_FACES}."
        )
    if divided.alike == "picture":
        said.append("The archive is one folder without capture dates: its pictures were taken as independent.")
    elif divided.groups < 2:
        said.append("The baseline is a single folder, so that only the nights themselves tell how folders differ.")
    return tuple(said)


def left_out(names: Sequence[str]) -> tuple[str, ...]:
    """Columns without values, or without any variation."""
    return (f"Not judged, as the baseline has no values or a single one: {', '.join(names)}.",) if names else ()


def ahead(faces: int, last: date, until: date) -> str:
    """Rows that arrived after the day that is asked about."""
    return f"{faces:,} faces with an arrival after {until} (up to {last}) are left out; was a clock wrong?"


def measured(mae: Mean) -> str:
    """Of labels that do not say that the error rose."""
    return f"By {mae.n:,} labelled faces the mean error is {_years(mae)}."


def error_rose(now: Mean, before: Mean, since: date) -> Said:
    """Of labels that say so."""
    return (
        f"Error rose since {since}: by {now.n:,} labelled faces it is {_years(now)} on average, and was"
        f" {before.value:.1f} by {before.n:,} before.",
        "Look at what arrived since: `agewatch labels` shows where the error is. If the archive is to be so from now"
        " on, mend the intervals with `agewatch labels recalibrate`, or train on its labels, and run"
        " `agewatch drift accept`.",
    )


def amount(value: float, unit: str) -> str:
    """A change or threshold for a person, without its sign: `4.2 years`, `30.0 points`, `0.031`."""
    size = abs(value)
    if not math.isfinite(size):
        return "none"
    if unit.startswith("share"):
        return f"{100 * size:.1f} points"
    return f"{size:.1f} {unit}" if unit in ("years", "doublings") else f"{size:.2g}"


def signed(value: float, unit: str) -> str:
    """A change for a person, with its sign and in short: `+4.2`, `-30.0 points`."""
    if not math.isfinite(value):
        return "unknown"
    if unit.startswith("share"):
        return f"{100 * value:+.1f} points"
    return f"{value:+.1f}" if unit in ("years", "doublings") else f"{value:+.2g}"


def change(of: ColumnDrift | Segment) -> str:
    """A change with its interval: `+4.2 (+3.1 to +5.3)`."""
    low, high = (signed(value, of.unit) for value in (of.low, of.high))
    return f"{signed(of.effect, of.unit)} ({low} to {high})"


def evidence(value: float | None) -> str:
    """The evidence for a person: `0.02`, `54,000`, `over a trillion`."""
    if value is None:
        return "nothing yet"
    if value > _MOST_EVIDENCE:
        return "over a trillion"
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def capital(said: str) -> str:
    """A text with its first letter in capitals, the others as they are."""
    return said[:1].upper() + said[1:]


def _years(mae: Mean) -> str:
    return f"{mae.value:.1f} years ({mae.low:.1f} to {mae.high:.1f})"


def shift(column: ColumnDrift) -> str:
    """What a column did, in a clause."""
    if column.name == "age":
        way = "older" if column.effect > 0 else "younger"
        low, high = sorted((abs(column.low), abs(column.high)))
        return f"faces are estimated {abs(column.effect):.1f} years {way} ({low:.1f} to {high:.1f}) than those accepted"
    if column.unit.startswith("share"):
        return f"{column.label} are {column.now:.1%} in place of {column.before:.1%}"
    way = "rose" if column.effect > 0 else "fell"
    return f"{column.label} {way} by {amount(column.effect, column.unit)}"


_WHERE = {
    "folder": "in one folder",
    "camera": "of one camera",
    "captured_month": "captured in {}",
    "captured_year": "captured in {}",
    "face_size": "{} high",
    "age_band": "of {}",
    "refusal": "refused as {}",
}


def places(parts: Sequence[Segment]) -> tuple[str, ...]:
    """The folders and cameras that moved, by name: a headline, which may leave the machine, holds none."""
    named = [f"{part.name} {part.value}" for part in parts if part.name in ("folder", "camera")]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return (f"Moved: {', '.join(named[:_NAMED])}{more}.",) if named else ()


def _where(part: Segment) -> str:
    return _WHERE[part.name].format(part.value)


def _part_moved(part: Segment) -> str:
    if part.unit == "years":
        way = "older" if part.effect > 0 else "younger"
        low, high = sorted((abs(part.low), abs(part.high)))
        by = f"{abs(part.effect):.1f} years {way} ({low:.1f} to {high:.1f})"
        return f"faces {_where(part)} are estimated {by} than those accepted"
    what = "files" if part.name == "refusal" else "faces"
    way = "more" if part.effect > 0 else "fewer"
    return f"{what} {_where(part)} are {amount(part.effect, part.unit)} {way} than those accepted"


def _faces(divided: Split) -> str:
    return f"{sum(window.n_faces for window in divided.windows):,} faces"


def _groups(divided: Split) -> str:
    if divided.alike == "picture":
        return "one folder"
    return f"{divided.groups:,} {divided.alike}{'s' if divided.groups != 1 else ''}"
