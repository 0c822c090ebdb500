"""model.json: what one says is read as it was written, and anything else is refused."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agewatch.errors import ModelError
from agewatch.estimator.spec import Band, Calibration, Labels, Member, Preprocessing, Spec, Svr

share = st.floats(0, 1)
channel = st.floats(0, 1)
spread = st.floats(0.001, 1)
svrs = st.none() | st.builds(Svr, share=share, sigma=st.floats(1, 20))
members = st.builds(
    Member, backbone=st.text(min_size=1), image_size=st.just(64), kwargs=st.dictionaries(st.text(), st.integers()),
    weight=st.floats(0.01, 1), mirrored=st.booleans(), svr=svrs,
)  # fmt: skip
bands = st.builds(
    Band, low=st.integers(0, 50), high=st.integers(50, 100), n=st.integers(0, 9999), quantile=share,
    mode=st.sampled_from([None, "detect", "crop"]),
)  # fmt: skip
specs = st.builds(
    Spec,
    name=st.text(min_size=1),
    version=st.text(min_size=1),
    members=st.lists(members, min_size=1, max_size=3).map(tuple),
    preprocessing=st.builds(
        Preprocessing,
        mean=st.tuples(channel, channel, channel),
        std=st.tuples(spread, spread, spread),
        chip_scale=st.floats(0.5, 3),
    ),
    labels=st.builds(Labels, lowest=st.integers(0, 10), highest=st.integers(60, 120)),
    calibration=st.builds(Calibration, coverage=share, bands=st.lists(bands, max_size=3).map(tuple)),
    metrics=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.text()),
    data_hash=st.text(),
)
FREE = ("metrics", "versions", "kwargs")  # dictionaries that hold what they like

WHOLE = Spec(
    "agewatch",
    "0",
    (Member("a", 64, svr=Svr(0.5, 4.0)), Member("b", 64)),
    Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    calibration=Calibration(0.9, (Band(0, 100, 1000, 0.9, "crop"),)),
)


@given(specs)
def test_a_description_is_read_as_it_was_written(spec: Spec) -> None:
    assert Spec.from_json(spec.to_json()) == spec


def places(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every key and element that is not in a free dictionary."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*way, key)
        if isinstance(value, dict | list) and key not in FREE:
            yield from places(value, (*way, key))


EVERY = sorted(places(json.loads(WHOLE.to_json())), key=str)


def inside(content: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        content = content[key]
    return content


def damaged(way: tuple[Any, ...], what: str) -> str:
    content = copy.deepcopy(json.loads(WHOLE.to_json()))
    *before, last = way
    around = inside(content, tuple(before))
    if what == "missing":
        del around[last]
    elif what == "another type":
        around[last] = [[around[last]]]
    elif isinstance(around[last], dict):
        around[last]["a key too many"] = 1
    elif isinstance(around[last], list):
        around[last].append("too many")
    else:
        around[last] = {"not": "expected"}
    return json.dumps(content)


@pytest.mark.parametrize("what", ["missing", "another type", "too much"])
@pytest.mark.parametrize("way", EVERY, ids=lambda way: ".".join(map(str, way)))
def test_a_key_that_is_missing_extra_or_of_another_type_is_refused(way: tuple[Any, ...], what: str) -> None:
    if what == "too much" and way[-1] in FREE:
        return
    if what == "missing" and way[:-1] in {("architecture", "members"), ("calibration", "bands")}:
        Spec.from_json(damaged(way, what))  # a list that is one shorter is another model, as well described
        return
    with pytest.raises(ModelError, match="damaged"):
        Spec.from_json(damaged(way, what))


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("architecture", "members", 0, "image_size"), 0),
        (("architecture", "members", 0, "image_size"), True),
        (("architecture", "members", 0, "weight"), 0),
        (("architecture", "members", 0, "svr", "share"), 1.1),
        (("architecture", "members"), []),
        (("preprocessing", "std", 0), 0),
        (("labels", "highest"), 0),
        (("calibration", "bands", 0, "quantile"), -0.1),
        (("calibration", "bands", 0, "mode"), "both"),
        (("version",), ""),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(way: tuple[Any, ...], value: Any) -> None:
    content = json.loads(WHOLE.to_json())
    inside(content, way[:-1])[way[-1]] = value
    with pytest.raises(ModelError, match="damaged"):
        Spec.from_json(json.dumps(content))


@given(st.text() | st.binary() | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_what_is_no_description_is_refused(text: str | bytes) -> None:
    with pytest.raises(ModelError, match="damaged"):
        Spec.from_json(text)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ModelError, match="damaged"):
        Spec.from_json("[" * 100_000)
