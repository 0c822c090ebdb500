"""What a person reads first of a drift run: the same few lines on the page, on the terminal and on Prefect's page."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from agewatch.scoring.baseline import FULL
from agewatch.words import counted
from monitoring import story
from monitoring.columns import BOUND, MATERIAL
from monitoring.page import WORDS
from monitoring.plots import SHORT
from monitoring.record import DriftRun
from monitoring.segments import Segment, Source
from monitoring.verdict import VISIBLE_YEARS, Verdict

_LEADS = {
    "people": "The people, not the camera: ages moved, picture quality did not.",
    "camera": "The camera, or how the pictures were made; not the people.",
    "mixed": "Both: other people, and another camera or way of making the pictures.",
    "unclear": "Not clear: the people or the camera.",
    "instrument": "The instrument, which is this machine or its programs; neither camera nor people.",
}
_VERY = 100.0
"""Evidence so many times the bound is called very sure."""
_MOSTLY = 0.5
"""A folder that makes so much of a change is where it comes from."""


@dataclass(frozen=True, slots=True)
class Row:
    """An answer to one question. `name` is a folder's, between `text` and `rest`: it stays on this machine."""

    label: str
    text: str
    name: str = ""
    rest: str = ""

    def __str__(self) -> str:
        """The answer in one line."""
        return f"{self.text}{self.name}{self.rest}"

    @property
    def without_name(self) -> str:
        """The answer as it may leave the machine."""
        return f"{self.text}{'one folder' if self.name else ''}{self.rest}"


@dataclass(frozen=True, slots=True)
class Deed:
    """Something to do now, with the command for it, or the place on the page, if there is one."""

    text: str
    command: str = ""
    place: str = ""

    def __str__(self) -> str:
        """The deed in one line."""
        return f"{self.text}: `{self.command}`" if self.command else self.text


@dataclass(frozen=True, slots=True)
class FirstScreen:
    """The verdict in a word and in a sentence, answers to the questions that it raises, and what to do."""

    word: str
    title: str
    rows: tuple[Row, ...]
    deeds: tuple[Deed, ...]

    def lines(self, *, with_names: bool = True) -> list[tuple[str, str]]:
        """Six labels and lines, without the names of folders where they leave the machine."""
        answers = {row.label: str(row) if with_names else row.without_name for row in self.rows}
        age = answers.pop("Mean age")
        first = f"{self.title} Mean age: {age[:1].lower()}{age[1:]}"
        deeds = (said if said.endswith("?") else f"{said}." for said in map(str, self.deeds))
        return [(self.word, first), *answers.items(), ("Do now", " ".join(deeds))]


def of_run(found: DriftRun) -> FirstScreen:
    """The first screen of a run."""
    verdict = found.verdict
    rows = (
        Row("Mean age", story.capital(_age(found))),
        Row("Since", _since(found)),
        Row("Cause", _cause(found)),
        _where(found),
        Row("How sure", _sure(found)),
    )
    return FirstScreen(WORDS[verdict.answer], _title(found), rows, tuple(_deeds(found)))


def _title(found: DriftRun) -> str:
    """What moved, in a sentence; how far in which interval, and since when, is told by the rows."""
    verdict = found.verdict
    if found.cause == "instrument" and found.instrument is not None:
        return f"The same pictures as before are estimated {_way(found.instrument.run.moved_years)}."
    moved = [column for column in verdict.columns if column.drifted]
    if verdict.answer == "too_little_data" and verdict.visible_years is not None:
        years = verdict.visible_years
        least = f"a change by under {years:.1f} years" if math.isfinite(years) else "even a large change"
        return f"Can't tell yet whether ages change: {least} would look like chance."
    if verdict.arrived:
        return (
            f"Can't tell yet: {sum(n for _, n in verdict.arrived):,} of the {FULL:,} faces that it takes have arrived."
        )
    if verdict.answer != "drift" or not verdict.moved or not moved:
        said = verdict.headline.partition(": ")[2] if verdict.answer != "no_drift" else verdict.headline
        return story.capital(said)
    first = verdict.trail.name if verdict.trail is not None else ""
    moved.sort(key=lambda column: (column.name != "age", column.name != first))
    others = [SHORT.get(column.name, column.label) for column in moved[1:]]
    also = (
        f"; {' and '.join(others) if len(others) < 3 else f'{len(others):,} other measures'} moved too"
        if others
        else ""
    )
    most = moved[0]
    said = f"faces are estimated {_way(most.effect)} than those accepted" if most.name == "age" else story.shift(most)
    ages = (
        "" if "age" in [column.name for column in moved] or found.cause != "camera" else "; no change of ages is seen"
    )
    return f"{story.capital(said)}{also}{ages}."


def _age(found: DriftRun) -> str:
    """By how many years, and which way."""
    verdict = found.verdict
    if found.cause == "instrument" and found.instrument is not None:
        run = found.instrument.run
        each = f"a picture moved by {run.spread_years:.2f} years on average"
        return f"{_way(run.moved_years)} in the mean of the same {run.n:,} pictures; {each}."
    age = next((column for column in verdict.columns if column.name == "age"), None)
    if age is None:
        return "nothing can be compared yet."
    moved = f"{_way(age.effect)} than accepted ({age.low:+.1f} to {age.high:+.1f})"
    if age.drifted:
        return f"{moved}."
    part = _most(verdict.segments)
    if part is not None and part.drifted and not verdict.drifted:
        by = f"{_way(part.effect)} in one folder ({part.low:+.1f} to {part.high:+.1f})"
        return f"{by}; the archive as a whole hardly moved."
    seen = "not to be told yet" if verdict.answer == "too_little_data" else "no change seen"
    if verdict.answer == "drift" and verdict.visible_years is not None and math.isfinite(verdict.visible_years):
        return f"no change seen; one by less than {verdict.visible_years:.1f} years might not show."
    return (
        f"{seen}: in the last night {age.effect:+.1f} years ({age.low:+.1f} to {age.high:+.1f}), which may be chance."
    )


def _way(years: float) -> str:
    return f"{abs(years):.1f} years {'older' if years > 0 else 'younger'}"


def _since(found: DriftRun) -> str:
    verdict = found.verdict
    if verdict.answer == "drift" and verdict.since is not None:
        low, high = verdict.since_low or verdict.since, verdict.since_high or verdict.since
        return f"{verdict.since}{f', most likely between {low} and {high}' if low < high else ''}."
    if verdict.arrived:
        nights = len(verdict.arrived)
        return f"Judging has not begun; {'the first night has' if nights == 1 else f'{nights:,} nights have'} arrived."
    if not verdict.windows:
        return "Nothing has been judged yet."
    n, first = len(verdict.windows), verdict.windows[0].window.first
    nothing = "Nothing moved" if verdict.answer == "no_drift" else "Nothing seen yet"
    return f"{nothing} since {first}, over {counted(n, 'night')}."


def _cause(found: DriftRun) -> str:
    seen = found.instrument
    steady = f" This machine is steady: {seen.run.n:,} older pictures are estimated as before." if seen else ""
    if found.cause is None:
        if found.verdict.answer == "drift":
            return f"The model errs more, by your labels.{steady}"
        return f"{'None to look for' if found.verdict.answer == 'no_drift' else 'Not to be told yet'}.{steady}"
    lead = _LEADS[found.cause]
    if found.cause == "mixed" and found.why is not None and found.why.people is not None:
        return f"{lead} Other people make {found.why.people.value:+.1f} years of it."
    return f"{lead}{'' if found.cause == 'instrument' else steady}"


def _where(found: DriftRun) -> Row:
    """The folder that moved most."""
    label, verdict = "Folder", found.verdict
    if found.cause == "instrument":
        return Row(label, "None more than others: all pictures are estimated otherwise.")
    drifted = [part for part in verdict.segments if part.name == "folder" and part.drifted]
    source = verdict.source
    if source is not None and source.part >= _MOSTLY:
        old, than = ("a new folder", "those") if source.is_new else ("a known folder", "its own")
        far = _way(source.effect) if source.measure == "age" else _otherwise(source, verdict)
        by = f"{counted(source.n_faces, 'face')}, {far} than {than} accepted"
        return Row(label, "Most of it comes from ", source.folder, f", {old}: {by}.")
    part = _most(verdict.segments)
    if part is None:
        return Row(label, "Not to be told yet." if verdict.answer != "no_drift" else "None stands out.")
    by = f": {_way(part.effect)} ({part.low:+.1f} to {part.high:+.1f})"
    if drifted:
        others = f"; {len(drifted) - 1:,} others moved too" if drifted[1:] else ""
        return Row(label, "Most in ", part.value, f"{by}{others}.")
    if source is not None:
        return Row(
            label, f"In no single one; the largest part of it, {source.part:.0%}, comes from ", source.folder, "."
        )
    if verdict.answer == "drift":
        return Row(label, "Not known: of this measure no folder is told.")
    none = "None moved" if verdict.answer == "no_drift" else "Not to be told yet"
    return Row(label, f"{none}; furthest, by what may be chance, ", part.value, f"{by}.")


def _otherwise(source: Source, verdict: Verdict) -> str:
    unit = verdict.trail.unit if verdict.trail is not None else ""
    return f"{SHORT[source.measure]} {story.amount(source.effect, unit)} {'higher' if source.effect > 0 else 'lower'}"


def _most(parts: Sequence[Segment]) -> Segment | None:
    """The folder that moved most: of those that drifted, else of all, the surest first."""
    folders = [part for part in parts if part.name == "folder" and math.isfinite(part.effect)]
    drifted = [part for part in folders if part.drifted]
    return max(drifted, key=lambda part: abs(part.effect)) if drifted else next(iter(folders), None)


def _sure(found: DriftRun) -> str:
    verdict = found.verdict
    if found.cause == "instrument":
        return "Certain: the same pictures were estimated twice, so that chance has no part in it."
    if verdict.answer == "drift" and verdict.moved:
        level = "Very sure" if (verdict.value or 0) > _VERY * BOUND else "Sure"
        moved = verdict.trail.name if verdict.trail is not None else "it"
        return (
            f"{level}: {SHORT.get(moved, moved)} moved, with evidence of {story.evidence(verdict.value)} to 1;"
            f" drift is said from {BOUND:.0f} to 1 on."
        )
    if verdict.answer == "drift":
        return "Sure: in 150 labelled weeks without a rise, the chance of saying so is at most 5 %."
    if verdict.visible_years is None or not math.isfinite(verdict.visible_years):
        return "Not at all yet: even a large change could not have been told from chance."
    seen = max(verdict.visible_years, MATERIAL["age"])
    if verdict.answer == "no_drift":
        return f"Sure to within {seen:.1f} years: a lasting change of the whole archive's mean age by more would show."
    wanted = f"and should from {VISIBLE_YEARS:g}"
    return f"Not enough: a lasting change of the mean age shows from {seen:.1f} years on, {wanted}."


def _deeds(found: DriftRun) -> list[Deed]:
    """What to do now, the first thing first."""
    verdict, name = found.verdict, shlex.quote(found.key.archive)
    accept = f"agewatch drift accept --archive {name}"
    if found.cause == "instrument" and found.instrument is not None:
        ran = f"it runs {found.instrument.run.engine} now"
        what = f"Find what changed on this machine ({ran}): library, processor, precision"
        return [Deed(what, "agewatch doctor"), _labels(name), Deed("If it is right as it is, accept it", accept)]
    if verdict.answer == "drift":
        normal = f"{accept} --from {verdict.since}" if verdict.since is not None else accept
        return [*_of_drift(found, name), Deed("If it is right as it is, make it the new normal", normal)]
    if verdict.arrived:
        return [_until_full(verdict)]
    if verdict.answer == "no_drift":
        return [Deed("Nothing; the next night is judged when it comes")]
    if verdict.windows_more is not None:
        more = verdict.windows_more
        return [Deed(f"Nothing; about {counted(more, 'more night')} like these will be enough")]
    return [Deed(verdict.advice.rstrip(".") or "Nothing; wait for the next nights")]


def _of_drift(found: DriftRun, name: str) -> list[Deed]:
    rose = found.error is not None and found.error.since is not None
    most = "the pictures that moved it most" if found.pictures else "the newest pictures"
    asked = ": did a camera, a scanner or its settings change?" if found.cause in ("camera", "mixed", "unclear") else ""
    look = Deed(f"Look at {most}{asked}", place="pictures" if found.pictures else "")
    if rose:
        return [look, Deed("The error rose: train on your labels", f"agewatch train labels:{name} --out run")]
    return [look, _labels(name)]


def _labels(name: str) -> Deed:
    told = "Are the ages still right? Tell the true ages of 20 faces on the page that this makes"
    return Deed(told, f"agewatch labels ask --archive {name} -n 20 --out ages")


def _until_full(verdict: Verdict) -> Deed:
    faces, nights = sum(n for _, n in verdict.arrived), len(verdict.arrived)
    left = max(FULL - faces, 0)
    if not faces:
        return Deed(f"Nothing; {left:,} more faces are needed")
    more = math.ceil(left * nights / faces)
    like = "this one" if nights == 1 else "these"
    return Deed(f"Nothing; {left:,} more faces are needed, about {counted(more, 'night')} like {like}")
