from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faces_drawn import drawn_face, write_age_folders
from pictures import encoded
from PIL import Image

from agewatch.errors import LabelError, UsageError
from agewatch.labels import SPLITS, Faces, prepare, read_sources


def prepared(*sources: Path) -> Faces:
    return prepare(read_sources(sources), size=32, chip_scale=1.03, workers=1)


def test_age_folders_and_csv_are_read(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "kaggle", ages=[1, 25], each=2)
    (tmp_path / "kaggle" / "notes").mkdir()
    (tmp_path / "kaggle" / "notes" / "x.png").write_bytes(b"")
    (tmp_path / "museum").mkdir()
    (tmp_path / "museum.csv").write_text("path,age,sex,ethnicity\na/b.jpg,31,female,\nc.jpg,4,,black\n")
    labelled = read_sources([tmp_path / "kaggle", tmp_path / "museum"])
    assert [item.age for item in labelled] == [1, 1, 25, 25, 31, 4]
    assert (labelled[4].sex, labelled[4].ethnicity) == ("female", None)
    assert labelled[4].source == (tmp_path / "museum").resolve()
    assert read_sources([tmp_path / "museum.csv"]) == labelled[4:]


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder or CSV"):
        read_sources([tmp_path / "missing"])
    with pytest.raises(LabelError, match="no labelled"):
        read_sources([tmp_path])
    (tmp_path / "x.csv").write_text("path,years\n")
    with pytest.raises(LabelError, match="columns path and age"):
        read_sources([tmp_path / "x.csv"])
    (tmp_path / "x.csv").write_text("path,age\na.jpg,old\n")
    with pytest.raises(LabelError, match="line 2: 'old'"):
        read_sources([tmp_path / "x.csv"])
    for broken, told in (
        (b"path,age\na.jpg,inf\n", "inf"),
        (b"path,age\na.jpg\n", "line 2"),
        (b"path,age\n\xe9,3\n", "UTF-8"),
    ):
        (tmp_path / "x.csv").write_bytes(broken)
        with pytest.raises(LabelError, match=told):
            read_sources([tmp_path / "x.csv"])
    for parent in ("a", "b"):
        write_age_folders(tmp_path / parent / "same", ages=[3], each=1)
    with pytest.raises(UsageError, match="named same"):
        read_sources([tmp_path / "a" / "same", tmp_path / "b" / "same"])


def test_spreadsheets_mark_their_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.CSV").write_bytes(b"\xef\xbb\xbfpath,age\na.jpg,3.9\nb.jpg,-0.5\n")
    assert [item.age for item in read_sources([tmp_path / "x.CSV"])] == [3, -1]


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


def test_nothing_left_to_train_on_is_said(tmp_path: Path) -> None:
    (tmp_path / "data" / "030").mkdir(parents=True)
    (tmp_path / "data" / "030" / "empty.png").write_bytes(b"")
    with pytest.raises(LabelError, match="empty"):
        prepared(tmp_path / "data")


def test_splits_have_their_shares_in_every_decade_and_do_not_depend_on_order(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[5, 25, 45], each=40)
    faces = prepared(tmp_path / "data")
    shares = pd.crosstab(faces.table["age"], faces.table["split"], normalize="index")
    for split, share in SPLITS.items():
        assert shares[split].to_numpy() == pytest.approx([share] * 3, abs=0.06)
    labelled = read_sources([tmp_path / "data"])
    turned = prepare(labelled[::-1], size=32, chip_scale=1.03, workers=1)
    assert (
        turned.table.set_index("path")["split"].sort_index().equals(faces.table.set_index("path")["split"].sort_index())
    )


def test_near_duplicates_stay_in_one_split(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "data", ages=[30], each=30)
    for path in list((tmp_path / "data" / "030").iterdir()):
        copy = Image.open(path).resize((90, 90)).resize((80, 80))
        path.with_name(f"copy-of-{path.stem}.jpg").write_bytes(encoded(copy, "JPEG", quality=70))
    table = prepared(tmp_path / "data").table
    table["original"] = table["path"].str.replace("copy-of-", "").str.replace(r"\.\w+$", "", regex=True)
    assert len(table) == 60
    assert (table.groupby("original")["split"].nunique() == 1).all()
    assert table["split"].nunique() == len(SPLITS)


def test_chips_belong_to_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "030"
    folder.mkdir(parents=True)
    for level in (10, 100, 200):
        (folder / f"{level}.png").write_bytes(encoded(Image.new("RGB", (50, 50), (level,) * 3)))
    faces = prepared(tmp_path / "data")
    assert [int(np.median(chip)) for chip in faces.chips] == [
        int(path.split("/")[1].removesuffix(".png")) for path in faces.table["path"]
    ]
