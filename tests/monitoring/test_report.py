"""The report answers a person's questions first, holds offline whatever files are called, and keeps faces to itself."""

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from axe_core_python import sync_playwright
from browser import Page, Session, opened
from models import tiny_model
from nights import night, store
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch.estimator.model import AgeModel
from agewatch.scoring import canaries, predictions
from agewatch.scoring.canaries import CanaryRun, Record
from monitoring import drift, first_screen, plots, summaries
from monitoring.record import DriftRun

AXE = Path(sync_playwright.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
ODD = "<script>alert('x')<!script> \"ünd\" صورة"
"""A folder's name; a slash would make two of it."""
FINDINGS = """(async () => JSON.stringify((await axe.run(document, {iframes: false})).violations
  .filter((one) => ["serious", "critical"].includes(one.impact))
  .map((one) => [one.id, one.nodes[0].html])))()"""
OPENED = """new Promise((done) => {
  document.querySelector("#evidently iframe").addEventListener("load", () => done(1));
  document.querySelector("#evidently").open = true;
})"""
LOOKS = ((1280, 800), (390, 844))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    return folder, AgeModel.load(folder).id


def seen(at: datetime, model: str, spread: float) -> CanaryRun:
    figures = {"moved_years": spread / 2, "spread_years": spread, "largest_years": 3 * spread, "lost": 0, "replaced": 0}
    return CanaryRun(at=at, run_id="r", model=model, mode="detect", engine="openvino-f32", n=200, **figures)


def of(rows: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        field = predictions.SCHEMA.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, values.cast(field.type))
    return rows


def run(tmp_path: Path, model: tuple[Path, str], *nights: pa.Table, spreads: tuple[float, ...] = ()) -> DriftRun:
    table = store(tmp_path / "t", *nights)
    runs = [seen(datetime(2026, 1, 2 + n, 4, tzinfo=UTC), model[1], spread) for n, spread in enumerate(spreads)]
    if runs:
        canaries._write(table, "town", Record(runs=runs))
    return drift.run(None, model=model[0], predictions_dir=table, out=tmp_path / "r")


def answers(found: DriftRun) -> dict[str, str]:
    return dict(first_screen.of_run(found).lines())


def test_people_in_a_new_folder_are_told_by_years_night_cause_folder_and_deed(
    tmp_path: Path, model: tuple[Path, str]
) -> None:
    calm = [night(n, 4000 if n == 0 else 300, model=model[1]) for n in range(6)]
    halls = [(number, hall) for number in (4, 5) for hall in range(8)]
    old = [night(n, 25, older=30, folder=f"home/{n}{hall}", model=model[1], seed=10 * n + hall) for n, hall in halls]
    found = run(tmp_path, model, *calm, *old, spreads=(0.001, 0.001))
    said = answers(found)
    assert list(said) == ["Drift", "Since", "Cause", "Folder", "How sure", "Do now"]
    assert re.match(r"Faces are estimated \d+\.\d years older than those accepted", said["Drift"])
    assert said["Since"].startswith("2026-01-05")
    assert said["Cause"].startswith("The people, not the camera")
    assert "This machine is steady: 200 older pictures" in said["Cause"]
    assert re.match(r"Most of it comes from home, a new folder: 400 faces, \d\d\.\d years older", said["Folder"])
    assert said["How sure"].startswith("Very sure")
    assert "`agewatch drift accept --archive town --from 2026-" in said["Do now"]
    outside = dict(first_screen.of_run(found).lines(with_names=False))
    assert outside["Folder"].startswith("Most of it comes from one folder, a new folder: 400 faces")
    assert not any("home" in line for line in outside.values())


def test_a_camera_an_instrument_a_calm_life_and_too_little_each_say_so(tmp_path: Path, model: tuple[Path, str]) -> None:
    calm = [night(n, 4000 if n == 0 else 300, model=model[1]) for n in range(7)]
    dark = [of(rows, brightness=pa.array(rows["brightness"].to_numpy() * 0.3)) for rows in calm[4:]]
    by_camera = answers(run(tmp_path / "camera", model, *calm[:4], *dark))
    assert by_camera["Drift"].startswith("Brightness of the faces fell by 0.3")
    assert "no change seen" in by_camera["Drift"]
    assert by_camera["Cause"].startswith("The camera, or how the pictures were made; not the people")
    cellar = [night(n, 300, folder="cellar", model=model[1]) for n in range(4, 7)]
    dim = [of(rows, brightness=pa.array(rows["brightness"].to_numpy() * 0.3)) for rows in cellar]
    in_one = answers(run(tmp_path / "cellar", model, *calm, *dim))
    assert re.match(
        r"Most of it comes from cellar, a new folder: \d+ faces, brightness 0\.3\d* lower", in_one["Folder"]
    )
    moved = answers(run(tmp_path / "moved", model, *calm, spreads=(0.001, 0.001, 0.4, 0.4)))
    assert moved["Drift"].startswith("The same pictures as before are estimated 0.2 years older")
    assert moved["Since"] == "2026-01-04."
    assert moved["Cause"].startswith("The instrument")
    assert "`agewatch doctor`" in moved["Do now"]
    steady = answers(run(tmp_path / "calm", model, *calm))
    assert steady["No drift"].startswith("No drift in 1,800 faces")
    assert steady["Since"] == "Nothing moved since 2026-01-02, over 6 nights."
    assert steady["Do now"] == "Nothing; the next night is judged when it comes."
    first = answers(run(tmp_path / "first", model, night(0, 400, model=model[1])))
    assert first["Too little data"].startswith("Can't tell yet: 400 of the 2,000 faces")
    assert "1,600 more faces are needed, about 4 nights like this one" in first["Do now"]
    little = run(tmp_path / "little", model, calm[0], night(1, 60, model=model[1]))
    more = little.verdict.windows_more
    assert more is not None
    assert f"about {more} more nights like these will be enough" in answers(little)["Do now"]
    enough = [night(n, 60, model=model[1]) for n in range(1, more + 2)]
    assert run(tmp_path / "enough", model, calm[0], *enough).verdict.answer == "no_drift"


@pytest.fixture(scope="module")
def drifted(model: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> DriftRun:
    """A drift towards old people in a folder with an odd name; of their pictures all are there but some."""
    root = tmp_path_factory.mktemp("archive") / "town"
    portrait = encoded(Image.open(ASTRONAUT).convert("RGB").crop((130, 20, 330, 240)), "JPEG")
    digest = hashlib.blake2b(portrait, digest_size=32).hexdigest()
    calm = [night(n, 4000 if n == 0 else 300, refused=3 * n, model=model[1]) for n in range(6)]
    rows = night(6, 300, older=35, folder=ODD, model=model[1])
    box = {
        f"box_{side}": pa.array([value] * 300) for side, value in zip("xywh", (20.0, 20.0, 120.0, 150.0), strict=True)
    }
    rows = of(rows, content_hash=pa.array([digest] * 300), **box)
    for path in rows["path"].to_pylist()[:290]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(portrait)
    table = store(root.parent / "t", *calm, rows, root=root)
    runs = [seen(datetime(2026, 1, 2 + n, 4, tzinfo=UTC), model[1], 0.001) for n in range(4)]
    canaries._write(table, "town", Record(runs=runs))
    return drift.run(None, model=model[0], predictions_dir=table, out=root.parent / "r")


def test_the_page_holds_offline_on_desk_and_phone_in_light_and_dark_and_evidently_waits(
    drifted: DriftRun, tmp_path: Path
) -> None:
    with opened(tmp_path / "profile") as tab:
        drawn = "[...document.images].length === 24 || document.querySelector('.gone')"
        page = tab.visit(drifted.html.as_uri(), tmp_path / "page.png", drawn)
        assert "drift since 2026-01-07" in page.text.casefold()
        assert ODD in page.text, "as it is called, and harmless"
        for size in LOOKS:
            for dark in (False, True):
                tab.look(*size, dark=dark)
                assert_usable(tab, size, page)
        assert [one for one in page.requests if not one.startswith("data:")] == [drifted.html.as_uri()]
        assert tab.value("[...document.images].every((one) => one.naturalWidth === 160)")
        tab.value(OPENED)
        assert page.requests[-1] == drifted.html.with_name("evidently.html").as_uri()
        assert page.problems == []


def assert_usable(tab: Session, size: tuple[int, int], page: Page) -> None:
    """All that a person should read first is seen without scrolling; nothing hangs over; axe finds nothing serious."""
    seen_to = tab.value("document.querySelector('.first').getBoundingClientRect().bottom")
    assert seen_to <= size[1], f"the first screen ends at {seen_to} of {size}"
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    tab.value(AXE)
    assert json.loads(tab.value(FINDINGS)) == []
    assert page.problems == []


def test_the_page_is_its_users_alone_and_light_and_evidently_agrees_with_the_verdict(
    drifted: DriftRun, tmp_path: Path
) -> None:
    assert drifted.html.stat().st_mode & 0o777 == 0o600
    text = drifted.html.read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert text.count("<script>") == 1, "ours"
    shown = [picture.path for picture in drifted.pictures]
    assert len(shown) == 24
    assert text.count("data:image/jpeg;base64,") + text.count('class="gone"') == 24
    assert text.count("data:image/jpeg;base64,") >= 20
    with opened(tmp_path / "profile") as tab:
        page = drifted.html.with_name("evidently.html")
        drawn = "document.querySelectorAll('.js-plotly-plot .bars').length >= 6"
        found = tab.visit(page.as_uri(), tmp_path / "e.png", drawn)
    assert (found.problems, found.requests) == ([], [page.as_uri()])
    told = re.findall(r"Drift in column '(\w+)'\s+Data drift (not )?detected", found.text)
    assert {column: not denied for column, denied in told} == {
        column.name: column.drifted for column in drifted.verdict.columns if column.name in summaries.MEASURES
    }


def test_without_pictures_no_face_is_in_it_and_without_a_verdict_neither_drift_nor_its_absence_is_claimed(
    model: tuple[Path, str], drifted: DriftRun, tmp_path: Path
) -> None:
    table = drifted.html.parents[1] / "t"
    bare = drift.run(None, model=model[0], predictions_dir=table, out=tmp_path / "bare", with_pictures=False)
    text = bare.html.read_text(encoding="utf-8")
    assert "data:image" not in text
    assert bare.pictures == drifted.pictures
    little = run(tmp_path, model, night(0, 4000, model=model[1]), night(1, 60, model=model[1]))
    pages = [little.html.read_text(), little.html.with_name("evidently.html").read_text()]
    assert not re.search(r"drift (not )?detected", "".join(pages), re.IGNORECASE)


def test_a_thousand_nights_take_no_more_room_than_eighty(model: tuple[Path, str], tmp_path: Path) -> None:
    two = [night(n, 31, model=model[1]) for n in (1, 2)]
    verdict = run(tmp_path, model, night(0, 3000, model=model[1]), *two).verdict
    assert verdict.trail is not None
    sizes = []
    for count in (80, 1000):
        effects = tuple(np.random.default_rng(0).normal(0, 1, count))
        trail = replace(verdict.trail, effects=effects, halves=(1.0,) * count)
        many = replace(verdict, windows=verdict.windows[:1] * count, trail=trail)
        sizes.append(len(plots.trail(many) or "") + len(plots.evidence(many) or ""))
    assert sizes[1] <= 1.1 * sizes[0]
