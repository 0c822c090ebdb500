"""Why a drift came: the camera, the people, both; and what can't be told is said to be unclear."""

import numpy as np
import pyarrow as pa
import pytest
from nights import night

from agewatch.scoring import predictions
from monitoring import cause
from monitoring.cause import Cause


def changed(rows: pa.Table, **columns: object) -> pa.Table:
    for name, values in columns.items():
        field = predictions.SCHEMA.field(name)
        values = [values] * len(rows) if values is None or isinstance(values, str) else values
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows


def arrived(
    older: float = 0, *, dark: float = 1, camera: str | None = None, number: int = 1, n: int = 1000
) -> pa.Table:
    rows = night(number, n, older=older)
    return changed(rows, brightness=rows["brightness"].to_numpy() * dark, camera=camera)


def told(now: pa.Table, *baseline: pa.Table, drifted: tuple[str, ...] = ()) -> Cause:
    return cause.of_rows(pa.concat_tables(baseline or [arrived(number=0, n=4000)]), now, drifted)


@pytest.mark.parametrize(
    ("now", "answer", "words"),
    [
        (arrived(dark=0.3), "camera", "The camera: pictures are darker, and among faces of like quality ages did not"),
        (arrived(6), "people", "The people: ages moved by +"),
        (arrived(-6, dark=0.3), "mixed", "Both: pictures are darker"),
        (arrived(), "unclear", "neither ages nor picture quality moved"),
        (arrived(6, camera="new"), "unclear", "what a new camera does to them is not known"),
        (arrived(-6, dark=0.3, camera="new"), "unclear", "from other cameras, and ages by -"),
        (arrived(dark=0.3, camera="new"), "camera", "darker and from other cameras"),
        (arrived(100), "unclear", "no faces of like age"),
        (arrived(number=1, n=10), "unclear", "too few faces"),
    ],
)
def test_a_cause_is_what_moved_among_likes(now: pa.Table, answer: str, words: str) -> None:
    found = told(now)
    assert (found.answer, words in found.sentence) == (answer, True), found.sentence


def test_both_parts_are_said_in_years_and_add_up_to_the_change() -> None:
    now, base = arrived(6, dark=0.3), arrived(number=0, n=4000)
    found = told(now, base)
    assert found.quality is not None
    assert found.people is not None
    change = np.mean(now["age"].to_numpy()) - np.mean(base["age"].to_numpy())
    assert found.people.value + found.quality.value == pytest.approx(change, abs=1e-3)
    assert found.people.low < 6 < found.people.high
    assert found.quality.low < 0 < found.quality.high


def test_quality_that_goes_with_age_is_no_change_of_the_camera() -> None:
    def aging(rows: pa.Table) -> pa.Table:
        return changed(rows, contrast=0.1 + rows["age"].to_numpy() / 400 + rows["contrast"].to_numpy() / 10)

    assert told(aging(arrived(8)), aging(arrived(number=0, n=4000))).answer == "people"


def test_faces_are_held_against_those_of_the_same_camera() -> None:
    base = [arrived(20, camera="studio", number=2, n=2000), arrived(camera="school", number=0, n=2000)]
    assert told(arrived(camera="school"), *base).answer == "camera", "all of its pictures are as its pictures were"
    both = told(arrived(6, camera="school"), *base)
    assert both.answer == "mixed"
    assert both.people is not None
    assert both.people.low < 6 < both.people.high


def test_one_folder_of_people_unlike_the_others_is_no_shift_where_folders_differ() -> None:
    offsets = np.random.default_rng(1).normal(0, 8, 200)
    base = arrived(number=0, n=4000)
    base = changed(base, age=np.clip(base["age"].to_numpy() + offsets[np.arange(4000) % 200], 0, 100))
    rows = night(1, 300, folder="party", older=7)
    assert told(rows, base).answer == "unclear"
    assert told(night(1, 300, older=7), base).answer == "people", "fifteen folders are more than one"


def test_tails_that_drifted_are_people_where_the_mean_stayed_and_unclear_where_quality_moved() -> None:
    assert told(arrived(), drifted=("youngest_share",)).answer == "people"
    assert told(arrived(dark=0.3), drifted=("oldest_share",)).answer == "unclear"


def test_a_measure_that_no_face_has_is_done_without() -> None:
    bare = dict.fromkeys(("brightness", "contrast", "sharpness", "face_score"))
    assert told(changed(arrived(6), **bare), changed(arrived(number=0, n=4000), **bare)).answer == "people"
