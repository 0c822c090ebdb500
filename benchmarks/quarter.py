"""A quarter of nights in one sitting: the people change in week 5, the camera in week 9, and a person does as advised.

`benchmarks/quarter.py NIGHTS_A_WEEK FIRST_DAY` needs AGEWATCH_DATA and gcc; a week may have fewer nights than seven.
Real are `agewatch up` with Prefect's server, its worker and automations, each night by its cron at 02:30 in Berlin,
the pictures and true ages, training, gate, a smoke test by TorchServe, alerts, and what a person types. Simulated is
the wall clock of all of them (`wall_clock.c`): when a night has ended it is set to a moment before the next; all that
waits, waits in real time. Once it is set back an hour. The current model is the network of the tracked one, which has
seen these pictures, with a last layer that has learnt from faces under 60 alone: older ones are news to it. It sees
faces in the tracked one's 192 pixels: in 128, blur alone moves the ages of the same young people by half a year. From
week 5 on half of the people are over 60, by their true ages, and from the same source as all others: those of another
collection are sharper and brighter, and "mixed" is then the truth. Where no older ones are left, the same come again.
The camera's pictures are darkened, blurred and encoded again. A retraining serves what does best on validation.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from nights import Desk, prefect_runs
from PIL import Image, ImageEnhance, ImageFilter
from results import table, write_section
from safetensors.torch import save_file

from agewatch import api
from agewatch.estimator.model import AgeModel
from agewatch.nights import schedule
from agewatch.nights.ledger import Ledger, Night
from agewatch.processes import free_ports
from agewatch.release import gate, records, smoke, store
from agewatch.scoring import predictions

DATA = Path(os.environ.get("AGEWATCH_DATA", ""))
AT_FIRST, A_NIGHT, FOLDERS = 2_000, 50, 5
YOUNG, OLDER_SHARE = 60, 0.5
WEEKS, PEOPLE, CAMERA = 13, 5, 9  # in all, and in which people and camera change
TO_LABEL, BEFORE = 6, 120  # nights of new people that a person labels, and faces before, too few to train on
LABELLED = 2_400  # the gate compares on one in eleven of these and of the labels, and needs 200
KNOWN = 'serve = "linear SVR on frozen embeddings"'  # the first model's alone: it learns nothing else from faces
RECIPE = """
epochs = 1
image_size = 192
kwargs = { pad_type = "same" }
mean = [0.48502, 0.45795, 0.40760]
std = [0.00392156862745098, 0.00392156862745098, 0.00392156862745098]
"""
ANEW_MINUTES = 0.25
ZONE = "Europe/Berlin"
_BEFORE = timedelta(seconds=4)
_NIGHT_SECONDS, _TRAINING_SECONDS = 300.0, 1_800.0


@dataclass
class Clock:
    """The wall clock of the desk's processes, and the library that gives it to them."""

    folder: Path
    ahead: float = 0.0

    def __post_init__(self) -> None:
        source = Path(__file__).with_name("wall_clock.c")
        command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(self.folder / "wall_clock.so"), str(source), "-lm"]
        subprocess.run(command, check=True)
        self.set(datetime.now(UTC))

    @property
    def env(self) -> dict[str, str]:
        """What gives it to a process."""
        return {"LD_PRELOAD": str(self.folder / "wall_clock.so"), "WALL_CLOCK": str(self.folder / "ahead")}

    def now(self) -> datetime:
        """The time by it."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    def set(self, when: datetime) -> None:
        """Set it, in all processes at once."""
        self.ahead = round((when - datetime.now(UTC)).total_seconds())
        with (self.folder / "ahead").open("r+b" if (self.folder / "ahead").exists() else "wb") as file:
            file.write(struct.pack("d", self.ahead))


@dataclass
class Quarter:
    """The desk, its clock, and the pictures that are still to come."""

    desk: Desk
    clock: Clock
    first: date
    week: int
    young: Iterator[tuple[Path, int]]
    older: Iterator[tuple[Path, int]]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    ages: dict[str, int] = field(default_factory=dict)
    rows: list[Night] = field(default_factory=list)
    told: list[tuple[date, str]] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    @property
    def people(self) -> int:
        """The night with which the people change."""
        return (PEOPLE - 1) * self.week

    @property
    def camera(self) -> int:
        """The night with which the camera changes."""
        return (CAMERA - 1) * self.week

    def tell(self, what: str) -> None:
        """Note what happened, by the desk's clock."""
        self.told.append((self.clock.now().date(), what))
        print(f"{datetime.now(UTC):%H:%M:%S} {self.clock.now():%Y-%m-%d %H:%M} {what}", flush=True)

    def expect(self, what: str, *, holds: bool) -> None:
        """Note where something is not as it should be."""
        if not holds:
            self.lacking.append(what)
            self.tell(f"NOT SO: {what}")

    def arrive(self, number: int) -> list[str]:
        """Put a night's pictures into the archive, and return their paths there."""
        paths = []
        for index in range(AT_FIRST if number < 0 else A_NIGHT):
            is_older = number >= self.people and self.rng.random() < OLDER_SHARE
            source, age = next(self.older if is_older else self.young)
            folder = f"{number:02d}-{index % (40 if number < 0 else FOLDERS)}"
            target = self.desk.folder / "press" / folder / f"{index:04d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            if number >= self.camera:
                with Image.open(source) as picture:
                    dark = ImageEnhance.Brightness(picture.convert("RGB")).enhance(0.5)
                    dark.filter(ImageFilter.GaussianBlur(1.5)).save(target, quality=85)
            else:
                shutil.copyfile(source, target)
            paths.append(f"{folder}/{target.name}")
            self.ages[paths[-1]] = age
        return paths

    def type(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run `agewatch ...` as a person would, by the desk's clock; returns what it prints."""
        env = os.environ | {"AGEWATCH_HOME": str(self.desk.home), "OMP_NUM_THREADS": "1"} | self.clock.env
        command = [sys.executable, "-m", "agewatch", *arguments]
        done = subprocess.run(command, cwd=self.desk.folder, env=env, capture_output=True, text=True, check=False)
        self.expect(f"`agewatch {' '.join(arguments)}` ends well: {done.stderr}", holds=done.returncode in codes)
        return done.stdout

    def until(self, found: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait for something; it is lacking where it does not come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := found():
                return result
            self.desk.look()
            time.sleep(0.5)
        raise RuntimeError(f"{what} did not come: {(self.desk.folder / 'up.log').read_text()[-3000:]}")

    def night(self, number: int) -> Night:
        """Let the next night come, and whatever it sets in motion end."""
        ledger = Ledger(self.desk.home)
        row: Night
        if number < 0:
            row = self.until(lambda: [r for r in ledger.nights("press") if r.outcome], _NIGHT_SECONDS, "the first")[-1]
        else:
            [one] = [one for one in schedule.read(self.desk.folder / "prefect.yaml") if one.flow == schedule.NIGHT]
            due = one.next_due(self.rows[-1].due)
            assert due is not None
            self.clock.set(due - _BEFORE)
            row = self.until(
                lambda: (row := ledger.night("press", "night", due)) and row.outcome and row, _NIGHT_SECONDS, str(due)
            )
        wanted = row.figures.get("wanted") == "retrain"
        if wanted:
            self.until(lambda: ledger.nights("", "retrain"), _NIGHT_SECONDS, "the retraining")
        self.until(
            lambda: not (ledger.under_way() or prefect_runs(self.desk.port, "RUNNING", "PENDING")),
            _TRAINING_SECONDS, "the end of what runs",
        )  # fmt: skip
        self.rows.append(row)
        return row

    def label(self, paths: list[str]) -> None:
        """Add true ages of files."""
        rows = pd.DataFrame({"path": paths, "age": [self.ages[path] for path in paths]})
        rows.to_csv(self.desk.folder / "ages.csv", index=False)
        self.type("labels", "add", "--archive", "press", "ages.csv")
        self.tell(f"a person adds the ages of the {len(rows)} newest faces")

    def set_back(self) -> None:
        """Set the clock back an hour, and let the hour of the night come again."""
        due = self.rows[-1].due
        self.clock.set(self.clock.now() - timedelta(hours=1))
        self.tell("the clock is set back an hour, and the night's time comes again")
        time.sleep(40)  # `up` looks after the nights
        self.clock.set(due - _BEFORE)
        time.sleep(40)
        row = Ledger(self.desk.home).night("press", "night", due)
        self.expect("the night's row is as it was", holds=row == self.rows[-1])


def main(week: int = 7, first: str = "2027-02-01") -> int:
    """Live it, and return how many things were not as they should be."""
    with _quarter(date.fromisoformat(first), week) as quarter:
        _live(quarter)
        why = quarter.type("models", "why")
        _judge(quarter, why)
    print(why, json.dumps(quarter.lacking, indent=1))
    write_section("A quarter", _section(quarter, why))
    return len(quarter.lacking)


@contextmanager
def _quarter(first: date, week: int) -> Iterator[Quarter]:
    """A desk with a schedule and a model that knows the young, the day before its first night."""
    folder = Path(tempfile.mkdtemp(prefix="agewatch-quarter-"))
    clock = Clock(folder)
    env = clock.env | {"AGEWATCH_MODEL_STORE": str(folder / "model_store")}
    # Days follow each other in seconds, and Prefect plans three runs ahead each minute.
    env |= {"PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "30", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10"}
    desk = Desk(folder, 86_400, free_ports(1)[0], env=env)
    try:
        clock.set(datetime.combine(first - timedelta(days=1), datetime.min.time(), UTC) + timedelta(hours=12))
        yield Quarter(desk, clock, first, week, *_prepare(desk, clock))
    finally:
        desk.kill("everything")
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(desk: Desk, clock: Clock) -> tuple[Iterator[tuple[Path, int]], Iterator[tuple[Path, int]]]:
    """Labelled pictures, a model of them, and `prefect.yaml`; returns the pictures to come, the young and the older."""
    faces = pd.read_csv(DATA / "facial_age.csv")
    known = faces[faces["age"].between(5, YOUNG - 1)].sample(LABELLED, random_state=1)
    known.assign(path=str(DATA / "facial_age") + "/" + known["path"])[["path", "age"]].to_csv(
        desk.folder / "labelled.csv", index=False
    )
    (desk.folder / "first.toml").write_text(RECIPE + KNOWN)
    (desk.folder / "recipe.toml").write_text(RECIPE)
    env = os.environ | {"AGEWATCH_HOME": str(desk.home), "OMP_NUM_THREADS": "2"} | clock.env
    weights = desk.folder / "start.safetensors"
    save_file(AgeModel.load(api.model_file(None)).network().members[0].state_dict(), weights)
    (desk.folder / "press").mkdir()
    for command in (
        ["train", "labelled.csv", "--out", "run", "--recipe", "first.toml", "--start", str(weights)],
        ["package", "run/model", "--version", "1"],
        ["models", "promote", "model_store/agewatch-1.mar", "--force"],
        ["init", "press", "--labelled", "labelled.csv", "--at", "02:30", "--timezone", ZONE],
    ):
        subprocess.run([sys.executable, "-m", "agewatch", *command], cwd=desk.folder, env=env, check=True)
    file = desk.folder / "prefect.yaml"
    content = yaml.safe_load(file.read_text())
    night, retrain = content["deployments"]
    night["parameters"] |= {"mode": "crop", "anew_minutes": ANEW_MINUTES}
    retrain["parameters"] |= {"recipe": "recipe.toml"}
    retrain["parameters"]["sources"] += ["labels:press"]
    retrain["schedules"][0]["active"] = False  # what drift asks for is looked at, not the month's
    content["definitions"]["agewatch"]["alert"] = {"command": ["/bin/sh", "-c", "cat >> alerts; echo >> alerts"]}
    file.write_text(yaml.safe_dump(content))
    archive = pd.read_csv(DATA / "archive_faces.csv").sample(frac=1, random_state=2)
    archive = archive[archive["age"] >= 5]

    def pictures(rows: pd.DataFrame) -> Iterator[tuple[Path, int]]:
        return cycle(
            [(DATA / "archive_faces" / path, int(age)) for path, age in zip(rows["path"], rows["age"], strict=True)]
        )

    return pictures(archive[archive["age"] < YOUNG]), pictures(archive[archive["age"] >= YOUNG])


def _live(quarter: Quarter) -> None:
    """All nights, and what a person does between them as agewatch advises."""
    lately, since, state, rows = list[str](), None, "calm", quarter.rows
    quarter.arrive(-1)
    quarter.desk.start()
    for number in range(-1, WEEKS * quarter.week):
        if number >= 0:
            lately = (lately + quarter.arrive(number))[-TO_LABEL * A_NIGHT :]
        row = quarter.night(number)
        figures = row.figures
        said = (figures.get("verdict"), figures.get("cause"))
        if len(rows) < 2 or said != (rows[-2].figures.get("verdict"), rows[-2].figures.get("cause")):
            quarter.tell(f"night {number}: {said[0]}, cause {said[1]}: {figures.get('headline')} {figures.get('why')}")
        quarter.expect(f"night {number} is done: {row.outcome}, {row.reason}", holds=row.outcome == "done")
        if number == quarter.week:
            quarter.set_back()
        if number == 2 * quarter.week:
            quarter.label(lately[-BEFORE:])
        if state == "calm" and number == quarter.people + TO_LABEL - 1:
            since = str(figures["since"])
            quarter.label(lately)
            state = "labelled"
        elif state == "labelled" and figures.get("wanted") == "retrain":
            held = json.loads(quarter.type("status", "--json", codes=(0, 4)))["held_for_approval"]
            quarter.tell(f"drift asked for a retraining: {Ledger(quarter.desk.home).nights('', 'retrain')[-1].figures}")
            quarter.expect(f"one model is held for approval: {held}", holds=len(held) == 1)
            state = "held"
        elif state == "held":
            quarter.expect("nothing else is asked for while it waits", holds=figures.get("wanted") == "wait")
            quarter.type("models", "promote", "model_store/agewatch-2.mar")
            quarter.tell("a person promotes it")
            state = "promoted"
        elif state == "promoted":
            quarter.tell(f"{figures['scored_anew']} files scored anew, {figures['left_to_rescore']} left; {said[0]}")
            if not figures["left_to_rescore"]:
                quarter.type("drift", "accept", "--archive", "press", "--from", str(since))
                quarter.tell(f"a person accepts what arrived from {since} on")
                state = "accepted"
    quarter.type("status", codes=(4,))


def _judge(quarter: Quarter, why: str) -> None:
    ledger, expect, rows, nights = Ledger(quarter.desk.home), quarter.expect, quarter.rows, WEEKS * quarter.week
    dates = {(row.started or row.due).date() for row in rows}
    expect(f"{nights + 1} nights on as many dates: {len(dates)}", holds=len(dates) == nights + 1)
    known = ledger.nights("press")
    expect(f"the ledger holds no other night: {len(known)}", holds=len(known) == nights + 1)
    paths = predictions.read(quarter.desk.home / "predictions", columns=["path", "model"]).to_pylist()
    expect("every picture has a row", holds={row["path"] for row in paths} == {*quarter.ages})
    news = [(each.what, each.due.date(), (ledger.night("press", "night", each.due) or rows[0]).figures.get("cause"))
            for each in ledger.news()]  # fmt: skip
    quarter.tell(f"news: {news}")
    told: dict[int, list[str | None]] = {}
    for _, day, cause in news:
        told.setdefault(PEOPLE if (day - quarter.first).days < quarter.camera else CAMERA, []).append(cause)
    expect(f"people were the first cause told, once: {told}", holds=told.get(PEOPLE, [])[:1] == ["people"])
    expect(f"the camera was told, once: {told}", holds=told.get(CAMERA, []).count("camera") == 1)
    right = {PEOPLE: {"people", "unclear"}, CAMERA: {"camera", "unclear"}}
    expect(f"no wrong cause was told: {told}", holds=all({*told.get(week, [])} <= right[week] for week in right))
    expect(f"no cause was told twice: {told}", holds=all(len(each) == len({*each}) for each in told.values()))
    begun = [(day - quarter.first).days // quarter.week + 1 for _, day, _ in news]
    expect(f"alarms began in weeks {PEOPLE} and {CAMERA}: {begun}", holds={PEOPLE, CAMERA} <= {*begun})
    stood = [row.figures.get("verdict") for row in rows[1 + quarter.camera + 1 :]]
    expect(f"the camera's stands to the end: {stood}", holds={*stood} == {"drift"})
    sent = (quarter.desk.folder / "alerts").read_text().split("\n")
    expect(
        f"each went out: {len(sent)}", holds=sum(len(json.loads(each)["items"]) for each in sent if each) == len(news)
    )
    models = quarter.desk.folder / "model_store"
    alarms, made, decided = records.alarms(models), records.trainings(models), gate.records(models)
    expect(f"one retraining: {len(made)}, because of one alarm: {len(alarms)}", holds=len(made) == len(alarms) == 1)
    expect("it names its alarm", holds=bool(made) and bool(alarms) and made[0].because == alarms[0].id)
    expect("one decision", holds=len(decided) == 1)
    tested = smoke.of(models, made[0].model) if made else None
    expect("it passed a smoke test", holds=tested is not None and tested.passed)
    pointer = store.read_pointer(models)
    expect("it is current", holds=bool(made) and pointer is not None and pointer.model == made[0].model)
    expect("the last night asks for a look", holds=rows[-1].figures.get("wanted") == "look")
    expect("`models why` names alarm, data, gate and promotion", holds=all(
        word in why for word in ("Asked for on", "hash", "Gate on", "Smoke test", "Promoted on")
    ))  # fmt: skip


def _section(quarter: Quarter, why: str) -> str:
    weeks = []
    for number in range(WEEKS):
        part = [row.figures for row in quarter.rows[1 + number * quarter.week : 1 + (number + 1) * quarter.week]]
        verdicts = {f"{each.get('verdict')}{' (' + each['cause'] + ')' if each.get('cause') else ''}" for each in part}
        weeks.append([
            str(number + 1), str(sum(each["scored"] - each["scored_anew"] for each in part)),
            str(sum(each["scored_anew"] for each in part)), ", ".join(sorted(verdicts)),
            ", ".join(sorted({str(each.get("wanted")) for each in part})),
        ])  # fmt: skip
    head = (
        f"Written by `benchmarks/quarter.py {quarter.week} {quarter.first}`: {WEEKS} weeks of {quarter.week} nights at"
        f" 02:30 in {ZONE}, real but for the wall clock. Not as it should be:"
        f" {'; '.join(quarter.lacking) or 'nothing'}."
    )
    week_table = table(["week", "new files", "scored anew", "verdicts", "what is to be done"], weeks)
    timeline = table(["day", "what"], [[str(day), what.replace("|", "/")] for day, what in quarter.told])
    return f"{head}\n\n{week_table}\n\n{timeline}\n\n`agewatch models why`:\n\n```\n{why.strip()}\n```\n"


if __name__ == "__main__":
    sys.exit(1 if main(int((sys.argv[1:2] or ["7"])[0]), *sys.argv[2:3]) else 0)
