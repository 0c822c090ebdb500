"""What a drift run found -> the drawings of its page. Each is of constant size, however much was looked at."""

import math
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from agewatch.scoring.baseline import FULL
from agewatch.words import counted
from monitoring import story
from monitoring.columns import BOUND, ColumnDrift, Trail
from monitoring.evidence import Floats
from monitoring.fit import Estimate
from monitoring.instrument import MOVED_YEARS, Instrument, has_moved
from monitoring.segments import Segment
from monitoring.svg import WIDTH, Scale, box, dot, frame, line, path, rows, text, upright
from monitoring.verdict import Verdict, WindowEvidence

_LEFT = 48
_NAMES = 165
"""Where rows begin that have a name before them."""
_POINTS = 80
"""Windows that are drawn one by one; more are put together, two and two and so on."""
_ROW = 22
_AGES = np.arange(0, 105, 5)
_SEGMENTS = 20
SHORT = {
    "age": "mean age",
    "age_interval": "width of age intervals",
    "face_score": "detector's confidence",
    "brightness": "brightness",
    "contrast": "contrast",
    "sharpness": "sharpness",
    "refused_share": "unreadable files",
    "no_face_share": "pictures without a face",
}
_SIDES = ("before", "now", "reference")
_MOST_LOG10 = 12.0


def trail(verdict: Verdict) -> Markup | None:
    """The nights against what was accepted, by the column that drifted most; None where nothing was judged."""
    shown = verdict.trail
    if shown is None:
        return None
    factor = 100.0 if shown.unit.startswith("share") else 1.0
    effects, halves = factor * np.array(shown.effects), factor * np.array(shown.halves)
    days, began = [one.window.first for one in verdict.windows], verdict.since
    days, effects, halves = _together(days, effects, halves)
    known = np.isfinite(effects)
    if not known.any():
        return None
    typical = float(np.median(halves[known]))
    bars = np.where(known, np.minimum(halves, 3 * typical), 0.0)  # one wide bar may be cut
    low, high = min(0.0, float(np.nanmin(effects - bars))), max(0.0, float(np.nanmax(effects + bars)))
    down, across = Scale(low, high, 170, 22), _days(days)
    shapes = upright(down, _LEFT, [(tick, f"{tick:+g}" if tick else "0") for tick in down.ticks()])
    if began is not None:
        left = across(max(began, days[0]).toordinal()) - 5
        shapes.insert(0, box(left, 22, WIDTH - left, 148, "since"))
        on_left = left > WIDTH * 0.6
        shapes.append(
            text(left - 4 if on_left else left + 4, 16, f"drift since {began}", "bad", "end" if on_left else "start")
        )
    for day, effect, half in zip(days, effects, halves, strict=True):
        if math.isfinite(effect):
            x, style = across(day.toordinal()), "bad" if began is not None and day >= began else "now"
            shapes += [
                line(x, down(effect - half), x, down(effect + half), f"bar {style}"),
                dot(x, down(effect), style),
            ]
    shapes += [text(WIDTH, down(0) - 4, "as accepted", "small", "end"), *_ends(days, across, 186)]
    unit = "points" if factor > 1 else shown.unit
    last = effects[known][-1]
    told = (
        f"{known.sum()} nights from {days[0]} to {days[-1]}; the last lies {last:+.2g} {unit} from what was accepted."
    )
    return frame("trail", 190, heading(shown), told, shapes)


def heading(shown: Trail) -> str:
    """What the trail is of."""
    unit = "points" if shown.unit.startswith("share") else shown.unit
    return f"{story.capital(SHORT.get(shown.name, shown.label))} by night, against those accepted ({unit}; bars: 95 %)"


def filling(verdict: Verdict) -> Markup:
    """How full the baseline is, night by night."""
    faces = sum(n for _, n in verdict.arrived)
    place, shapes, sum_ = Scale(0, max(FULL, faces), 0, WIDTH), [box(0, 30, WIDTH, 36, "track")], 0
    for number, (_, n) in enumerate(verdict.arrived):
        shapes.append(box(place(sum_), 30, place(sum_ + n) - place(sum_), 36, "now" if number % 2 == 0 else "now pale"))
        sum_ += n
    shapes.append(text(0, 20, f"{faces:,} faces so far", "strong"))
    shapes += [text(0, 84, "0", "small"), text(WIDTH, 84, f"{FULL:,} make a baseline", "small", "end")]
    nights = len(verdict.arrived)
    told = f"{faces:,} of {FULL:,} faces have arrived in {counted(nights, 'night')}."
    return frame("filling", 92, "Faces that have arrived, of those that make a baseline", told, shapes)


def canaries(seen: Instrument) -> Markup:
    """By how much the same pictures are estimated otherwise, run by run."""
    runs = [*seen.runs[-_POINTS:-1], seen.run]
    most = max(*(run.spread_years for run in runs), 4 * MOVED_YEARS)
    down, days = Scale(0, most * 1.1, 130, 16), [run.at.date() for run in runs]
    across = _days(days)
    shapes = upright(down, _LEFT, [(tick, f"{tick:g}") for tick in down.ticks(4)])
    shapes += [line(_LEFT, down(MOVED_YEARS), WIDTH, down(MOVED_YEARS), "bound"),
               text(_LEFT + 4, down(MOVED_YEARS) - 5, f"said from {MOVED_YEARS:g} years", "small")]  # fmt: skip
    for run, day in zip(runs, days, strict=True):
        shapes.append(dot(across(day.toordinal()), down(run.spread_years), "bad" if has_moved(run) else "now", 4))
    told = f"{len(runs)} runs; in the last, each of {seen.run.n:,} pictures moved by {seen.run.spread_years:.2f} years."
    title = "By how much the same pictures are estimated otherwise than at first (years, mean size)"
    return frame("canaries", 150, title, told, [*shapes, *_ends(days, across, 148)])


def evidence(verdict: Verdict) -> Markup | None:
    """The evidence at each night's end with its bound, and when the drift began; None where there is none."""
    seen = [one for one in verdict.windows if one.value is not None]
    if not seen:
        return None
    days, logs, _ = _together([one.window.first for one in seen], np.array([_log10(one) for one in seen]), None)
    bound = math.log10(BOUND)
    low, high = min(-1.0, float(logs.min())), max(bound + 1, float(logs.max()))
    down, across = Scale(low, high, 150, 16), _days(days)
    powers = [tick for tick in down.ticks(5) if float(tick).is_integer()]
    shapes = upright(down, _LEFT, [(tick, f"{10**tick:g}" if -3 <= tick <= 4 else f"1e{tick:g}") for tick in powers])
    if verdict.since_low is not None and verdict.since_high is not None and verdict.since is not None:
        left, right = (across(max(day, days[0]).toordinal()) for day in (verdict.since_low, verdict.since_high))
        shapes.insert(0, box(left - 2, 16, right - left + 4, 134, "since"))
        at = across(max(verdict.since, days[0]).toordinal())
        shapes.append(line(at, 16, at, 150, "began"))
    shapes += [line(_LEFT, down(bound), WIDTH, down(bound), "bound"),
               text(_LEFT + 4, down(bound) - 5, f"the bound, {BOUND:.0f}: drift is said above", "small")]  # fmt: skip
    places = [(across(day.toordinal()), down(log)) for day, log in zip(days, logs, strict=True)]
    shapes += [
        path(places, "course"),
        *(dot(x, y, "bad" if log >= bound else "now", 2.5) for (x, y), log in zip(places, logs, strict=True)),
    ]
    told = f"It stands at {story.evidence(verdict.value)} now; drift is said from {BOUND:.0f}."
    return frame("evidence", 172, "Evidence of drift at each night's end", told, [*shapes, *_ends(days, across, 168)])


def columns(judged: Sequence[ColumnDrift]) -> Markup:
    """Each column's change with its interval, as a multiple of the smallest that would be said."""
    parts = [(one, one.threshold) for one in judged if math.isfinite(one.threshold) and one.threshold > 0]
    values = [one.effect / unit for one, unit in parts]
    most = min(max([1.5, *(abs(value) * 1.2 for value in values)]), 20.0)
    across = Scale(-most, most, _NAMES, WIDTH - 8)
    ground = rows(
        [SHORT.get(one.name, one.label.replace("estimated ", "")) for one, _ in parts],
        across,
        [(0, "0"), (-1, "−1"), (1, "1")],
        _ROW,
    )
    shapes = [*ground, *(line(across(end), 0, across(end), _ROW * len(parts) + 6, "bound") for end in (-1, 1))]
    for number, ((one, unit), value) in enumerate(zip(parts, values, strict=True)):
        shapes += _interval(across, value, one.low / unit, one.high / unit, number, drifted=one.drifted)
    others = [one.label for one in judged if one not in [shown for shown, _ in parts]]
    unsaid = f" (too little is known yet of {', '.join(others)})" if others else ""
    words = {True: ", drifted", False: ""}
    told = "; ".join(
        f"{one.label} {story.change(one)}, said from {story.amount(one.threshold, one.unit)}{words[one.drifted]}"
        for one, _ in parts
    )
    return frame(
        "columns",
        _ROW * len(parts) + 26,
        f"Each column's change, in multiples of the smallest that would be said{unsaid}",
        told,
        shapes,
    )


def ages(before: Floats, now: Floats, reference: Floats) -> Markup | None:
    """Shares of faces by estimated age, of five years each; None where nothing has arrived."""
    sides = {name: side[np.isfinite(side)] for name, side in zip(_SIDES, (before, now, reference), strict=True)}
    sides = {name: side for name, side in sides.items() if len(side)}
    if not sides:
        return None
    shares = {name: 100 * np.histogram(np.clip(side, 0, 99), _AGES)[0] / len(side) for name, side in sides.items()}
    down, across = (
        Scale(0, max(float(share.max()) for share in shares.values()) * 1.05, 150, 10),
        Scale(0, 100, _LEFT, WIDTH - 8),
    )
    shapes = upright(down, _LEFT, [(tick, f"{tick:g} %") for tick in down.ticks(4)])
    shapes += [text(across(age), 166, str(age), "small", "middle") for age in range(0, 101, 20)]
    for name, share in shares.items():
        steps = [
            (across(float(age)), down(float(part)))
            for pair, part in zip(pairwise(_AGES), share, strict=True)
            for age in pair
        ]
        shapes.append(path(steps, f"course {name}"))
    words = {"before": "accepted", "now": "now", "reference": "the model's test pictures"}
    told = "; ".join(f"{words[name]}: half are under {np.median(side):.0f}" for name, side in sides.items())
    return frame("ages", 172, "Faces by estimated age (years)", told, shapes)


def segments(parts: Sequence[Segment], word: Callable[[Segment], str]) -> Markup | None:
    """Parts of the archive by how far their mean age moved, those that moved furthest; None without any."""
    found = [part for part in parts if part.unit == "years" and math.isfinite(part.effect)][:_SEGMENTS]
    if not found:
        return None
    found.sort(key=lambda part: -part.effect)
    most = max(abs(part.effect) for part in found) * 1.4 or 1.0
    across = Scale(min(0.0, -most if any(part.effect < 0 for part in found) else 0.0), most, _NAMES, WIDTH - 8)
    ground = rows(
        [word(part) for part in found],
        across,
        [(tick, f"{tick:+g}" if tick else "0") for tick in across.ticks(4)],
        _ROW,
    )
    shapes = list(ground)
    for number, part in enumerate(found):
        shapes += _interval(across, part.effect, part.low, part.high, number, drifted=part.drifted)
    told = "; ".join(f"{word(part)} {story.change(part)} years{', drifted' if part.drifted else ''}" for part in found)
    return frame("segments", _ROW * len(found) + 26, "How far the mean age of each part moved (years)", told, shapes)


def errors(expected: Estimate | None, measured: Estimate | None) -> Markup | None:
    """The mean error that is expected here, and beside it what labels measured, years; None without both."""
    found = [(name, one) for name, one in (("expected here", expected), ("by your labels", measured)) if one]
    if not found:
        return None
    across = Scale(0, max(one.high for _, one in found) * 1.1, _NAMES, WIDTH - 8)
    shapes = rows([name for name, _ in found], across, [(tick, f"{tick:g}") for tick in across.ticks(4)], _ROW)
    for number, (_, one) in enumerate(found):
        shapes += _interval(across, one.value, one.low, one.high, number, drifted=False)
    told = "; ".join(f"{name} {one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for name, one in found)
    return frame("errors", _ROW * len(found) + 26, "Mean error of an estimate (years)", told, shapes)


def refused(verdict: Verdict) -> Markup | None:
    """The share of files refused in each window, by reason; None where none was."""
    if not verdict.refused:
        return None
    days = [one.window.first for one in verdict.windows]
    files = np.array([one.window.n_files for one in verdict.windows], np.float64)
    slots = np.arange(len(days)) // _fold(len(days))
    total = np.maximum(np.bincount(slots, files), 1)
    shares = {code: 100 * np.bincount(slots, np.array(n, np.float64)) / total for code, n in verdict.refused}
    top = float(sum(shares.values(), np.zeros(len(total))).max())
    down, width = Scale(0, max(top, 1.0) * 1.05, 140, 12), (WIDTH - _LEFT) / len(total)
    shapes = upright(down, _LEFT, [(tick, f"{tick:g} %") for tick in down.ticks(4)])
    for slot in range(len(total)):
        base = 0.0
        for number, share in enumerate(shares.values()):
            high = base + float(share[slot])
            shapes.append(
                box(
                    round(_LEFT + slot * width, 1),
                    down(high),
                    max(width - 1, 1),
                    down(base) - down(high),
                    f"kind-{number}",
                )
            )
            base = high
    told = "; ".join(f"{code}: {counted(sum(n), 'file')}" for code, n in verdict.refused)
    return frame(
        "refused", 162, "Files refused, share of each night's", told, [*shapes, *_ends(days, _days(days), 158)]
    )


def _interval(across: Scale, value: float, low: float, high: float, number: int, *, drifted: bool) -> list[Markup]:
    """A value with its interval in a row; what drifted is filled."""
    y, style = _ROW * number + _ROW / 2, "bad" if drifted else "calm"
    ends = [end if math.isfinite(end) else (across.low if end < 0 else across.high) for end in (low, high)]
    return [line(across(ends[0]), y, across(ends[1]), y, f"bar {style}"), dot(across(value), y, style, 4)]


def _fold(count: int) -> int:
    return max(1, math.ceil(count / _POINTS))


def _together(days: list[date], values: Floats, halves: Floats | None) -> tuple[list[date], Floats, Floats]:
    """Windows, or where they are many the means of neighbours."""
    by = _fold(len(days))
    slots = range(0, len(days), by)
    halves = np.zeros(len(days)) if halves is None else halves
    if by == 1:
        return days, values, halves
    with np.errstate(invalid="ignore"):
        put = [np.array([_mean(some[slot : slot + by]) for slot in slots]) for some in (values, halves)]
    return [days[slot] for slot in slots], put[0], put[1] / math.sqrt(by)


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _days(days: Sequence[date]) -> Scale:
    first, last = days[0].toordinal(), days[-1].toordinal()
    return Scale(first, last, _LEFT + 8, WIDTH - 8) if last > first else Scale(first - 1, last + 1, _LEFT, WIDTH)


def _ends(days: Sequence[date], across: Scale, y: float) -> list[Markup]:
    if days[0] == days[-1]:
        return [text(across(days[0].toordinal()), y, str(days[0]), "small", "middle")]
    return [text(_LEFT, y, str(days[0]), "small"), text(WIDTH, y, str(days[-1]), "small", "end")]


def _log10(one: WindowEvidence) -> float:
    return min(max(math.log10(max(one.value or 0.0, 1e-300)), -3.0), _MOST_LOG10)
