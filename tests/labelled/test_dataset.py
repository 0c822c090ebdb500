import os
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from faces_drawn import drawn_face, write_age_folders
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded
from PIL import Image

from agewatch.errors import LabelError
from agewatch.estimator.spec import Cut
from agewatch.labelled import dataset
from agewatch.labelled.dataset import NEAR_DUPLICATE_BITS, SPLITS, Faces, prepare, require_no_leaks
from agewatch.labelled.sources import read_sources
from agewatch.scoring.content import hash_key


def prepared(*sources: Path, earlier: dict[int, str] | None = None) -> Faces:
    cache = sources[0].parent / "cache"
    return prepare(read_sources(sources), Cut(32, 1.03), workers=1, cache=cache, earlier=earlier or {})


def splits_of(faces: Faces) -> dict[int, str]:
    used = faces.table.dropna(subset="split")
    return dict(zip(map(hash_key, used["content_hash"]), used["split"], strict=True))


def by_path(faces: Faces, column: str = "split") -> dict[str, object]:
    return dict(zip(faces.table["path"], faces.table[column], strict=True))


def spoil(root: Path) -> None:
    """Make every picture unreadable behind an unchanged stat."""
    for path in root.rglob("*.png"):
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def recompressed(path: Path, name: str) -> None:
    copy = Image.open(path).resize((90, 90)).resize((80, 80))
    target = path.parent / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(encoded(copy, "JPEG", quality=70))


def test_bad_labels_and_pictures_are_dropped_with_their_reason(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[20], each=5)
    for age, name, content in (
        (130, "impossible.png", drawn_face(1, 1)),
        (30, "same.png", drawn_face(2, 2)),
        (31, "same.png", drawn_face(2, 2)),
        (40, "twice-a.png", drawn_face(3, 3)),
        (40, "twice-b.png", drawn_face(3, 3)),
        (50, "torn.png", drawn_face(4, 4)[:300]),
        (50, "empty.png", b""),
    ):
        path = tmp_path / "data" / f"{age:03}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    table = prepared(tmp_path / "data").table.set_index("path")
    assert table["reason"].dropna().to_dict() == {
        "130/impossible.png": "impossible_age",
        "030/same.png": "conflicting_age",
        "031/same.png": "conflicting_age",
        "040/twice-b.png": "duplicate",
        "050/torn.png": "truncated",
        "050/empty.png": "empty",
    }
    assert table["split"].isna().equals(table["reason"].notna())
    assert (table["group"] < 0).equals(table["reason"].notna())


def test_nothing_left_to_train_on_is_said(tmp_path: Path) -> None:
    (tmp_path / "data" / "030").mkdir(parents=True)
    (tmp_path / "data" / "030" / "empty.png").write_bytes(b"")
    (tmp_path / "data.csv").write_text("path,age\n030/empty.png,30\nmissing.png,4\n")
    with pytest.raises(LabelError, match=r"'empty': 1.*'vanished': 1|'vanished': 1.*'empty': 1"):
        prepared(tmp_path / "data")


def test_splits_have_their_shares_in_every_decade_and_do_not_depend_on_order(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[5, 25, 45], each=40)
    faces = prepared(tmp_path / "data")
    shares = pd.crosstab(faces.table["age"], faces.table["split"], normalize="index")
    for split, share in SPLITS.items():
        assert shares[split].to_numpy() == pytest.approx([share] * 3, abs=0.06)
    labelled = read_sources([tmp_path / "data"])
    turned = prepare(labelled[::-1], Cut(32, 1.03), workers=1, cache=tmp_path / "cache")
    assert by_path(turned) == by_path(faces)


def test_near_duplicates_stay_in_one_split_and_their_differing_ages_are_pointed_out(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[30], each=30)
    originals = sorted((tmp_path / "data" / "030").iterdir())
    for path in originals[2:]:
        recompressed(path, f"copy-of-{path.stem}.jpg")
    recompressed(originals[0], "../035/copy-of-000.jpg")
    recompressed(originals[1], "../036/copy-of-001.jpg")
    faces = prepared(tmp_path / "data")
    table = faces.table.assign(original=faces.table["path"].str.extract(r"(\d+)\.\w+$"))
    assert len(table) == 60
    assert (table.groupby("original")["split"].nunique() == 1).all()
    assert table["split"].nunique() == len(SPLITS)
    differing = {path for path, differs in by_path(faces, "near_duplicate_ages_differ").items() if differs}
    assert differing == {"030/001.png", "036/copy-of-001.jpg"}
    assert table["reason"].isna().all()


def test_a_subject_stays_in_one_split_within_its_source(tmp_path: Path) -> None:
    lines = []
    write_age_folders(tmp_path / "data", ages=[20, 45], each=40)
    for path in sorted((tmp_path / "data").rglob("*.png")):
        number = int(path.stem)
        lines.append(f"{path.relative_to(tmp_path / 'data')},{path.parent.name},{number // 2 if number < 30 else ''}")
    (tmp_path / "data.csv").write_text("\n".join(["path,age,subject", *lines]))
    table = prepared(tmp_path / "data").table
    groups = table.groupby("subject")
    assert len(groups) == 15
    assert (groups.size() == 4).all()
    assert (groups["group"].nunique() == 1).all()
    assert (groups["split"].nunique() == 1).all()
    assert table["group"].nunique() == 15 + 20
    assert not table["near_duplicate_ages_differ"].any()  # a person may be photographed at 20 and at 45


def test_near_duplicates_are_found_as_by_comparing_all_pairs() -> None:
    random = np.random.default_rng(0)
    centres = random.integers(0, 256, (300, 16), np.uint8)
    bits = np.unpackbits(np.repeat(centres, 4, axis=0), axis=1)
    for row in bits:
        row[random.choice(128, random.integers(0, 8), replace=False)] ^= 1
    hashes = pd.Series([np.packbits(row).tobytes().hex() for row in bits])
    near = (bits[:, None, :] != bits[None, :, :]).sum(axis=2) <= NEAR_DUPLICATE_BITS
    expected = dataset._components(np.argwhere(near), len(bits))
    found = dataset._components(dataset._near_duplicates(hashes), len(bits))
    assert 300 < len(set(expected)) < 1200
    assert list(found) == list(expected)


def leaky(**columns: list[object]) -> pd.DataFrame:
    table = {
        "source": ["a", "a", "b"],
        "path": ["1.jpg", "2.jpg", "3.jpg"],
        "content_hash": ["x", "y", "z"],
        "group": [0, 1, 2],
        "subject": ["ann", "bob", "ann"],
        "split": ["train", "test", "calibration"],
    }
    return pd.DataFrame(table | columns)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"content_hash": ["x", "x", "z"]}, r"copies of one picture .* a/1.jpg \(train\) and a/2.jpg \(test\)"),
        ({"group": [0, 1, 1]}, r"near-duplicates .* a/2.jpg \(test\) and b/3.jpg \(calibration\)"),
        ({"subject": ["bob", "bob", None]}, r"2 pictures have pictures of one person .* a/1.jpg \(train\)"),
    ],
)
def test_a_table_that_leaks_is_refused(columns: dict[str, list[object]], told: str) -> None:
    with pytest.raises(LabelError, match=told):
        require_no_leaks(leaky(**columns))
    require_no_leaks(leaky(**columns, split=["test", "test", "test"]))
    require_no_leaks(leaky(**columns, split=["test", None, None]))


def test_what_may_be_parted_is_no_leak() -> None:
    require_no_leaks(leaky())
    require_no_leaks(leaky(subject=[None, None, None]))


def test_a_split_tampered_with_after_preparing_is_refused(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[30], each=12)
    for path in list((tmp_path / "data" / "030").iterdir()):
        recompressed(path, f"copy-of-{path.stem}.jpg")
    table = prepared(tmp_path / "data").table
    require_no_leaks(table)
    table["split"] = ["train"] * 12 + ["test"] * 12  # the copies come last
    with pytest.raises(LabelError, match="near-duplicates"):
        require_no_leaks(table)


def test_known_pictures_stay_in_their_splits_when_others_are_added(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[25, 45], each=20)
    before = prepared(tmp_path / "data")
    write_age_folders(tmp_path / "data", ages=[5, 25, 45], each=50)
    unguarded, after = prepared(tmp_path / "data"), prepared(tmp_path / "data", earlier=splits_of(before))
    held = {path: split for path, split in by_path(after).items() if path in by_path(before)}
    assert held == by_path(before)
    assert any(by_path(unguarded)[path] != split for path, split in by_path(before).items())
    shares = pd.crosstab(after.table["age"], after.table["split"], normalize="index")
    for split, share in SPLITS.items():
        assert shares[split].to_numpy() == pytest.approx([share] * 3, abs=0.06)


def test_what_was_trained_on_is_never_held_out_again(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[30], each=6)
    originals = sorted((tmp_path / "data" / "030").iterdir())
    for path in originals:
        recompressed(path, f"copy-of-{path.stem}.jpg")
    content = by_path(prepared(tmp_path / "data"), "content_hash")
    pairs = [
        ("test", "train"), ("validation", "calibration"), ("test", "calibration"),
        ("train", "test"), (None, "test"), ("validation", None),
    ]  # fmt: skip
    earlier = {}
    for path, pair in zip(originals, pairs, strict=True):
        for name, split in zip((path.name, f"copy-of-{path.stem}.jpg"), pair, strict=True):
            if split:
                earlier[hash_key(str(content[f"030/{name}"]))] = split
    found = by_path(prepared(tmp_path / "data", earlier=earlier))
    expected = ["train", "validation", "calibration", "train", "test", "validation"]
    assert [found[f"030/{path.name}"] for path in originals] == expected
    assert [found[f"030/copy-of-{path.stem}.jpg"] for path in originals] == expected


def test_splits_keep_their_shares_when_pictures_come_one_by_one() -> None:
    contents = [f"{hash_key(f'{n * 2654435761 % 2**32:016x}'):016x}" for n in range(100)]
    earlier: dict[int, str] = {}
    for n in range(20, len(contents) + 1):
        table = pd.DataFrame({"source": "a", "age": 30, "content_hash": contents[:n], "group": range(n)})
        found = dataset._split(table.assign(reason=None), earlier)
        assert [earlier.get(hash_key(content), split) for content, split in zip(contents, found, strict=False)] == found
        earlier = dict(zip(map(hash_key, contents), found, strict=False))
    shares = pd.Series(list(earlier.values())).value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx(SPLITS, abs=0.02)


def test_chips_belong_to_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "030"
    folder.mkdir(parents=True)
    for level in (10, 100, 200):
        (folder / f"{level}.png").write_bytes(encoded(Image.new("RGB", (50, 50), (level,) * 3)))
    faces = prepared(tmp_path / "data")
    assert [int(np.median(chip)) for chip in faces.chips] == [
        int(path.split("/")[1].removesuffix(".png")) for path in faces.table["path"]
    ]


def test_a_second_time_no_picture_is_opened_whatever_its_label_and_a_changed_one_is_extracted_anew(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    write_age_folders(data, ages=[20, 40], each=10)
    paths = sorted(str(path.relative_to(data)) for path in data.rglob("*.png"))
    (tmp_path / "data.csv").write_text("\n".join(["path,age", *(f"{path},{path[:3]}" for path in paths)]))
    first = prepared(data)
    spoil(data)
    again = prepared(data)
    pd.testing.assert_frame_equal(again.table, first.table)
    assert np.array_equal(again.chips, first.chips)
    assert not again.chips.flags.writeable

    (tmp_path / "data.csv").write_text("\n".join(["path,age,sex", *(f"{path},7,male" for path in paths)]))
    corrected = prepared(data).table
    assert set(corrected["age"]) == {7}
    assert set(corrected["sex"]) == {"male"}
    assert corrected["content_hash"].equals(first.table["content_hash"])

    write_age_folders(data, ages=[20, 40], each=10)  # whole again, and changed by their times
    (data / paths[3]).write_bytes(drawn_face(90, seed=1))
    changed = prepared(data)
    assert list(changed.table["content_hash"] != first.table["content_hash"]) == [path == paths[3] for path in paths]
    assert [np.array_equal(*pair) for pair in zip(changed.chips, first.chips, strict=True)] == [
        path != paths[3] for path in paths
    ]


def test_a_torn_cache_is_built_anew_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[20], each=10)
    first = prepared(tmp_path / "data")
    chips = np.array(first.chips)
    [folder] = (tmp_path / "cache").iterdir()
    for name in sorted(path.name for path in folder.iterdir()):
        whole = (folder / name).read_bytes()
        for rest in (whole[: len(whole) // 2], b"", None):
            (folder / name).unlink()
            if rest is not None:
                (folder / name).write_bytes(rest)
            again = prepared(tmp_path / "data")
            pd.testing.assert_frame_equal(again.table, first.table)
            assert np.array_equal(again.chips, chips)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


pictures = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 99), st.integers(0, 12)), min_size=1, max_size=60
)  # source, age, group


def table_of(drawn: list[tuple[str, int, int]]) -> pd.DataFrame:
    rows = [(source, age, group, f"{number:064x}"[::-1]) for number, (source, age, group) in enumerate(drawn, start=1)]
    return pd.DataFrame(rows, columns=["source", "age", "group", "content_hash"]).assign(reason=None)


@given(pictures, st.dictionaries(st.integers(1, 60), st.sampled_from(list(dataset.SPLITS)), max_size=10), st.randoms())
def test_a_split_parts_no_group_keeps_what_is_known_and_does_not_depend_on_order(
    drawn: list[tuple[str, int, int]], known: dict[int, str], random: Random
) -> None:
    table = table_of(drawn)
    earlier = {hash_key(f"{number:064x}"[::-1]): split for number, split in known.items()}
    table["split"] = dataset._split(table, earlier)
    assert table.groupby("group")["split"].nunique().eq(1).all()
    order = list(dataset.SPLITS)
    for group, rows in table.groupby("group"):
        splits = [earlier[key] for key in map(hash_key, rows["content_hash"]) if key in earlier]
        if splits:
            assert set(rows["split"]) == {min(splits, key=order.index)}, group
    shuffled = table.sample(frac=1, random_state=random.randrange(2**32))
    assert dataset._split(shuffled, earlier) == shuffled["split"].tolist()


def test_a_large_split_has_its_shares() -> None:
    random = np.random.default_rng(0)
    table = table_of([("a", int(age), number) for number, age in enumerate(random.integers(0, 90, 5000))])
    shares = pd.Series(dataset._split(table, {})).value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx(dataset.SPLITS, abs=0.005)
