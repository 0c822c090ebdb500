"""What the command line shows a person: progress, tables, ages at a glance. On a terminal in colour, else plain."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from agewatch.progress import Progress, unwatched
from agewatch.release.store import Entry
from agewatch.scoring import predictions
from agewatch.scoring.score import Summary
from agewatch.words import counted

if TYPE_CHECKING:  # they bring pandas, which scoring does without
    from agewatch.exports.sidecars import Written
    from agewatch.gallery.page import Gallery
    from agewatch.labelled.evaluate import Evaluation
    from agewatch.release.gate import Record
    from agewatch.scoring.archives import Archive
    from agewatch.upkeep.finding import Finding
    from monitoring.error import MeasuredError
    from monitoring.record import DriftRun

_LINE_SECONDS = 10.0
_BAR_WIDTH = 30
_PATHS = 10
_YES_NO = {True: "yes", False: "no"}
_VERDICT = {True: "passed", False: "held back"}


@contextmanager
def progress(*, quiet: bool, doing: str = "scoring") -> Iterator[Progress]:
    """Yield a callback that shows files/s, time left, faces and refusals: a bar, or a line now and then."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield unwatched if quiet else _lines()
        return
    columns = (
        TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, detail="")
        started = time.monotonic()

        def update(done: int, total: int, counts: Counter[str]) -> None:
            bar.update(task, completed=done, total=total, detail=_detail(done, counts, started))

        yield update


def summary(run: Summary) -> None:
    """Print the state of an archive after a run."""
    console = Console()
    console.print(
        f"\n[bold]{escape(run.archive)}[/bold]  {run.model}, {run.mode}, {run.engine or 'network not needed'}"
    )
    for folder in run.unlisted:
        console.print(f"[red]The folder {escape(folder)} can't be listed; its files are not counted.[/red]")
    if not run.found:
        console.print("No pictures were found there." + (f" {run.ignored} other files." if run.ignored else ""))
        _problem(console, run)
        return
    with_faces = run.found - run.no_face - sum(run.refused.values())
    files = {"ok": with_faces, "no_face": run.no_face, **run.refused, "found": run.found}
    _table(console, ("status", "files"), [(status, f"{n:,}") for status, n in files.items()], text=1, total=True)
    rate = f", {run.faces_per_s:,.1f} faces/s" if run.faces_per_s else ""
    console.print(
        f"{counted(run.faces, 'face')}. {counted(run.scored, 'file')} read now, {run.skipped:,} already known,"
        f" {run.ignored:,} of other kinds ignored, {run.disappeared:,} gone since. {run.seconds:.1f} s{rate}."
    )
    if run.nested:
        shown = ", ".join(run.nested[:_PATHS]) + (" ..." if len(run.nested) > _PATHS else "")
        console.print(f"Archives inside are not opened: {escape(shown)}", highlight=False, soft_wrap=True)
    if run.left_to_rescore:
        console.print(f"{run.left_to_rescore:,} of those known stand by an older model only; the next runs go on.")
    for path in run.disappeared_paths[:_PATHS]:
        console.print(f"  gone: {escape(path)}", highlight=False, soft_wrap=True)
    if run.disappeared > _PATHS:
        console.print(f"  and {run.disappeared - _PATHS:,} more; --json lists them")
    _ages(console, run)
    _problem(console, run)
    console.print(f"Rows: {escape(run.predictions)}", soft_wrap=True)


def _problem(console: Console, run: Summary) -> None:
    if run.problem and not run.unlisted:  # each of those was named already
        console.print(f"[red]{escape(run.problem)}[/red]", highlight=False)


def exported(rows: int, out: Path, left: Mapping[str, int]) -> None:
    """Print how many rows an export wrote, and what it left out as only an older model scored it."""
    print(f"{counted(rows, 'row')} in {out}")
    for archive, files in left.items():
        print(f"{counted(files, 'file')} of {archive} with rows of an older model only: --all-models gives them.")


def sidecars(written: "Written") -> None:
    """Print how many sidecars an export wrote, and which pictures have none of ours, and why."""
    print(f"{counted(written.sidecars, 'sidecar')} of {counted(written.faces, 'face')} in {written.out}")
    kept = [(path, "Another program wrote, or wrote to, the sidecar that is there.") for path in written.kept]
    lines = [f"{path}: {why}" for path, why in [*kept, *written.left_out.items()]]
    print("\n".join(lines[:_PATHS]), end="\n" if lines else "")
    if len(lines) > _PATHS:
        print(f"and {len(lines) - _PATHS:,} more: --json names all.")


def gallery(made: "Gallery") -> None:
    """Print where a gallery is, and what it shows of how much."""
    faces = counted(made.faces, "face") if made.faces == made.of else f"{made.faces:,} of {made.of:,} faces"
    lost = f" Not drawn: {made.lost:,}, of pictures that are gone, changed or damaged." if made.lost else ""
    faceless = counted(made.faceless, "file")
    print(f"{faces}, {faceless} without a face, {made.refused:,} refused.{lost}\nGallery: {made.page}")


def drift(found: "DriftRun") -> None:
    """Print the first screen of a drift report in six lines, and where the report lies."""
    from monitoring import first_screen

    console = _wide()
    grid = Table(box=None, pad_edge=False, show_header=False)
    for label, line in first_screen.of_run(found).lines():
        grid.add_row(f"[bold]{escape(label)}[/bold]", escape(_printable(line)))
    console.print(grid)
    console.print(f"Report: {escape(str(found.html))}", soft_wrap=True)


def _printable(said: str) -> str:
    """A text with what no terminal should get from a file's name: control and direction characters as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in said)


def labels(archive: str, found: "MeasuredError | None") -> None:
    """Print what labels say of the error."""
    from monitoring.story import error_rose, measured

    console = _wide()
    if found is None:
        console.print(f"No face of {escape(archive)} has a label yet: `agewatch labels add` takes them.")
        return
    if found.since is not None and found.before is not None:
        console.print(f"[bold]{error_rose(found.mae, found.before, found.since)[0]}[/bold]", highlight=False)
    else:
        console.print(measured(found.mae), highlight=False)
    rows = [
        (
            part.dimension,
            part.value,
            f"{part.n:,}",
            f"{part.mae:.1f} ({part.mae_low:.1f} to {part.mae_high:.1f})",
            f"{part.bias:+.1f}",
            f"{part.coverage:.0%} ({part.coverage_low:.0%} to {part.coverage_high:.0%})",
        )
        for part in found.slices
    ]
    _table(console, ("", "", "n", "mean error, years", "bias", "in its interval"), rows, text=2)


def archives(found: "Sequence[Archive]") -> None:
    """Print the archives of a table."""
    console = _wide()
    if not found:
        console.print("The table holds no archives.")
        return
    rows = [(entry.name, entry.root, f"{entry.files:,}", f"{entry.gone:,}") for entry in found]
    _table(console, ("archive", "folder", "files", "gone"), rows, text=2)


def models(entries: Sequence[Entry], latest: "Mapping[str, Record]") -> None:
    """Print the models of a store, each with the latest decision about it, by model id."""
    console = _wide()
    if not entries:
        console.print("The store holds no models.")
        return
    said = {model: f"{_VERDICT[r.decision.promote]} against {r.champion}" for model, r in latest.items()}
    rows = [
        (
            "*" if entry.current else "",
            entry.model,
            str(entry.file),
            f"{entry.bytes / 1e6:.1f}",
            said.get(entry.model, ""),
        )
        for entry in entries
    ]
    _table(console, ("", "model", "file", "MB", "decision"), rows, text=5)


def evaluation(found: "Evaluation") -> None:
    """Print an evaluation: the totals, every slice, the intervals' coverage, and what leaving out faces would gain."""
    from agewatch.labelled.tables import slice_row

    console = _wide()
    total, others = found.overall, ", ".join(f"{n} {status}" for status, n in found.statuses.items())
    console.print(
        f"\n[bold]{escape(found.model)}[/bold]  {total.n:,} faces{f'; not evaluated: {others}' if others else ''}\n"
        f"MAE {total.mae:.2f} years (95 % CI {total.mae_low:.2f} to {total.mae_high:.2f}), bias {total.bias:+.2f},"
        f" RMSE {total.rmse:.2f}, within 5 years {total.cs5:.1%}, balanced MAE {found.balanced_mae:.2f}",
        highlight=False,
    )
    if not found.held_out:
        console.print("Pictures that the model learnt from may be among them.")
    if found.worst:
        worst = escape(f"{found.worst.dimension} {found.worst.value}")
        console.print(f"Worst slice: {worst}, MAE {found.worst.mae:.2f} years")
    head = ("", "", "n", "MAE", "95 % CI", "bias", "coverage", "95 % CI", "width")
    _table(console, head, map(slice_row, found.slices), text=2)
    console.print(f"Intervals hold {found.coverage:.1%} of the true ages; {found.width:.1f} years wide on average.")
    bands = [(band.band, f"{band.n:,}", f"{band.coverage:.1%}", band.limits) for band in found.bands]
    _table(console, ("true age", "n", "coverage", "99 % limits"), bands, text=1)
    for part in found.thin:
        console.print(
            f"[red]Too little coverage for {escape(part.value)}: {part.coverage:.1%} of {part.n} faces.[/red]"
        )
    risks = [
        (f"{risk.share:.0%}", f"{risk.n:,}", f"{risk.mae:.2f}", f"{risk.width:.0f}") for risk in found.risk_coverage
    ]
    _table(console, ("narrowest", "n", "MAE", "widest"), risks, text=1)


def decision(record: "Record") -> None:
    """Print how a challenger did against the champion, and what was decided."""
    from agewatch.release.gate import Compared

    console, found = _wide(), record.decision
    console.print(
        f"\n[bold]{escape(record.challenger)}[/bold] against {escape(record.champion)}: {found.n:,} pictures",
        highlight=False,
    )
    if not record.held_out:
        console.print("Pictures that one of them learnt from may be among them: not both say what they learnt from.")
    whole = Compared("all", "", found.n, found.champion, found.challenger)
    rows = [
        (
            part.dimension,
            part.value,
            f"{part.n:,}",
            f"{part.champion:.2f}",
            f"{part.challenger:.2f}",
            f"{part.difference:+.2f}",
        )
        for part in (*found.slices, whole)
    ]
    _table(console, ("", "", "n", "champion", "challenger", "difference"), rows, text=2, total=True)
    console.print(
        f"MAE in years. Difference between {found.difference_low:+.2f} and {found.difference_high:+.2f} (95 %)."
        f" CPU ms a face: {found.cost_champion:.2f} and {found.cost_challenger:.2f}.\n"
        f"[bold]{_VERDICT[found.promote].capitalize()}.[/bold] {escape(found.reason)}",
        highlight=False,
        soft_wrap=True,
    )


def findings(found: "Sequence[Finding]") -> None:
    """Print what the doctor found: a table on a terminal, plain lines elsewhere; mends stand whole, to be copied."""
    console = Console()
    if not console.is_terminal:
        for each in found:
            print(f"{each.state:<6}{each.check:<12}{each.sentence}{f'  Mend: {each.mend}' if each.mend else ''}")
        return
    colours = {"ok": "green", "warn": "yellow", "wrong": "red"}
    grid = Table(box=None, pad_edge=False, show_header=False)
    for each in found:
        grid.add_row(f"[{colours[each.state]}]{each.state}[/]", each.check, escape(each.sentence))
    console.print(grid)
    for each in found:
        if each.mend:
            console.print(f"{each.check}: [bold]{escape(each.mend)}[/bold]", soft_wrap=True, highlight=False)


def _wide() -> Console:
    """A console whose tables keep their lines whole in a file or pipe, which has no width."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


def _table(
    console: Console, head: Sequence[str], rows: Iterable[Sequence[str]], *, text: int, total: bool = False
) -> None:
    """Print a table whose first `text` columns are text and whose others are numbers; `total`: the last row is bold."""
    grid = Table(*head, box=None, pad_edge=False)
    for column in grid.columns[text:]:
        column.justify = "right"
    for row in rows:
        grid.add_row(*map(escape, row))
    if total:
        grid.rows[-1].style = "bold"
    console.print(grid)


def _ages(console: Console, run: Summary) -> None:
    """Faces a decade of estimated age."""
    names = ("age", "age_low", "age_high")
    key = predictions.Key(run.archive, run.model, run.mode)
    rows = predictions.read(Path(run.predictions), key.where, names).drop_null()
    if not len(rows):
        return
    ages, low, high = (rows[name].to_numpy() for name in names)
    block = "#" if console.options.ascii_only else "█"
    decades = np.bincount((ages // 10).astype(int))
    console.print(f"Ages: median {np.median(ages):.0f}, 90 % intervals {np.mean(high - low):.0f} years wide on average")
    for decade in range(int(np.flatnonzero(decades)[0]), len(decades)):
        bar = block * round(decades[decade] / decades.max() * _BAR_WIDTH)
        console.print(f"  {decade * 10:>3}-{decade * 10 + 9:<3} {decades[decade]:>8,} {bar}", highlight=False)


def _detail(done: int, counts: Counter[str], started: float) -> str:
    refused = sum(n for status, n in counts.items() if status not in ("ok", "no_face"))
    rate = done / max(time.monotonic() - started, 1e-9)
    return f"{rate:,.0f} files/s, {counts['ok']:,} faces, {refused:,} refused"


def _lines() -> Progress:
    started = last = time.monotonic()

    def line(done: int, total: int, counts: Counter[str]) -> None:
        nonlocal last
        now = time.monotonic()
        if not total or (now - last < _LINE_SECONDS and 0 < done < total):
            return
        last = now
        left = (now - started) / done * (total - done) if done else 0.0
        eta = f", {left:,.0f} s left" if 0 < done < total else ""
        print(f"{done:,} of {total:,} files, {_detail(done, counts, started)}{eta}", file=sys.stderr, flush=True)

    return line
