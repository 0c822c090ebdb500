import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from faces_drawn import write_age_folders

from agewatch.errors import LabelError, UsageError
from agewatch.labelled.sources import Labelled, read_sources

DATE = "20170116174525125"


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(source: Path) -> dict[str, tuple[object, ...]]:
    return {item.file.path: (item.age, item.sex, item.ethnicity) for item in read_sources([source])}


def test_age_folders_and_csv_are_read(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "kaggle", ages=[1, 25], each=2)
    touched(tmp_path / "kaggle", "notes/x.png", "2017/x.png")
    (tmp_path / "museum").mkdir()
    (tmp_path / "museum.csv").write_text("path,age,sex,ethnicity,subject\na/b.jpg,31,female,,7\nc.jpg,4,,black,\n")
    labelled = read_sources([tmp_path / "kaggle", tmp_path / "museum"])
    assert [item.age for item in labelled] == [1, 1, 25, 25, 31, 4]
    assert (labelled[4].sex, labelled[4].ethnicity, labelled[4].subject) == ("female", None, "7")
    assert (labelled[5].sex, labelled[5].ethnicity, labelled[5].subject) == (None, "black", None)
    assert labelled[4].source == (tmp_path / "museum").resolve()
    assert read_sources([tmp_path / "museum.csv"]) == labelled[4:]


def test_utkface_names_are_read_at_any_depth(tmp_path: Path) -> None:
    root = touched(
        tmp_path / "faces",
        f"26_0_0_{DATE}.jpg",
        f"part1/100_1_3_{DATE}.jpg.chip.jpg",
        f"deep/er/3_1_4_{DATE}.png",
        f"39_1_{DATE}.jpg.chip.jpg",  # as published: no race
        f"61_3_{DATE}.jpg",  # as published: neither sex
        f"53__0_{DATE}.jpg",  # as published: sex is empty
        f"24_0_1_{DATE} .jpg",  # as published
        "40_1_2.jpg",
        f"1234_0_0_{DATE}.jpg",
        "IMG_20170116.jpg",
    )
    assert read(root) == {
        f"26_0_0_{DATE}.jpg": (26, "male", "white"),
        f"part1/100_1_3_{DATE}.jpg.chip.jpg": (100, "female", "indian"),
        f"deep/er/3_1_4_{DATE}.png": (3, "female", "others"),
        f"39_1_{DATE}.jpg.chip.jpg": (39, "female", None),
        f"61_3_{DATE}.jpg": (61, None, None),
        f"53__0_{DATE}.jpg": (53, None, "white"),
        f"24_0_1_{DATE} .jpg": (24, "male", "black"),
    }


def test_an_age_folder_wins_over_the_name_in_it(tmp_path: Path) -> None:
    root = touched(tmp_path / "faces", f"026/26_0_2_{DATE}.jpg", f"026/30_1_1_{DATE}.jpg", f"026/x/26_1_1_{DATE}.jpg")
    assert read(root) == {
        f"026/26_0_2_{DATE}.jpg": (26, "male", "asian"),
        f"026/30_1_1_{DATE}.jpg": (26, None, None),
        f"026/x/26_1_1_{DATE}.jpg": (26, "female", "black"),
    }


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "path": ["a/é.jpg", "b.jpg", "c.jpg"],
            "age": [31.9, 4, 80],
            "sex": pd.Categorical(["female", None, "male"]),
            "subject": [12, 12, 7],
            "camera": ["x", "y", "z"],
        },
        index=[5, 6, 7],
    )
    (tmp_path / "museum").mkdir()
    frame.to_parquet(tmp_path / "museum.parquet")
    labelled = read_sources([tmp_path / "museum"])
    assert [(i.file.path, i.age, i.sex, i.ethnicity, i.subject) for i in labelled] == [
        ("a/é.jpg", 31, "female", None, "12"),
        ("b.jpg", 4, None, None, "12"),
        ("c.jpg", 80, "male", None, "7"),
    ]
    assert {item.source for item in labelled} == {(tmp_path / "museum").resolve()}
    frame.to_csv(tmp_path / "museum.csv", index=False)
    assert read_sources([tmp_path / "museum.csv"]) == read_sources([tmp_path / "museum.parquet"])
    with pytest.raises(UsageError, match=r"Both museum\.csv and museum\.parquet"):
        read_sources([tmp_path / "museum"])


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    for missing in ("missing", "missing.csv", "missing.parquet"):
        with pytest.raises(UsageError, match="no folder, CSV or Parquet"):
            read_sources([tmp_path / missing])
    with pytest.raises(LabelError, match="no labelled"):
        read_sources([tmp_path])
    for parent in ("a", "b"):
        write_age_folders(tmp_path / parent / "same", ages=[3], each=1)
    with pytest.raises(UsageError, match="named same"):
        read_sources([tmp_path / "a" / "same", tmp_path / "b" / "same"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"path,years\n", "columns path and age"),
        (b"", "columns path and age"),
        (b"path,age\na.jpg,3\nb.jpg,old\n", "line 3: 'old' is no age"),
        (b"path,age\na.jpg,inf\n", "'inf' is no age"),
        (b"path,age\na.jpg,nan\n", "'nan' is no age"),
        (b"path,age\na.jpg,1e20\n", "'1e20' is no age"),
        (b"path,age\na.jpg,-1001\n", "'-1001' is no age"),
        (b"path,age\na.jpg\n", "line 2: '' is no age"),
        (b"path,age\n,3\n", "line 2: the path is empty"),
        (b"path,age\na\0.jpg,3\n", "is no path"),
        (b"path,age\na.jpg,3,female\n", "line 2: there are more fields than columns"),
        (b"path,age\n\xe9,3\n", "UTF-8"),
    ],
)
def test_a_malformed_csv_is_said(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(LabelError, match=told):
        read_sources([tmp_path / "x.csv"])


def test_a_malformed_parquet_is_said(tmp_path: Path) -> None:
    table = tmp_path / "x.parquet"
    frames = {
        "columns path and age": pd.DataFrame({"path": ["a.jpg"]}),
        "row 2: '' is no age": pd.DataFrame({"path": ["a.jpg", "b.jpg"], "age": [3, None]}),
        "row 1: 'old' is no age": pd.DataFrame({"path": ["a.jpg"], "age": ["old"]}),
        "row 1: the path is empty": pd.DataFrame({"path": [None], "age": [3]}),
        "row 1: 5 is no path": pd.DataFrame({"path": [5], "age": [3]}),
    }
    for told, frame in frames.items():
        frame.to_parquet(table)
        with pytest.raises(LabelError, match=told):
            read_sources([table])
    for torn in (table.read_bytes()[:-10], b""):
        table.write_bytes(torn)
        with pytest.raises(LabelError, match="can't be read as a Parquet file"):
            read_sources([table])


def test_parquet_text_that_is_no_utf8_is_said(tmp_path: Path) -> None:
    told = pc.CastOptions(pa.string(), allow_invalid_utf8=True)
    latin = pc.cast(pa.array([b"\xe9.jpg"]), options=told)
    pq.write_table(pa.table({"path": latin, "age": [3]}), tmp_path / "x.parquet")
    with pytest.raises(LabelError, match="can't be read as a Parquet file"):
        read_sources([tmp_path / "x.parquet"])


def test_what_is_named_twice_is_read_once(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "faces", ages=[25], each=2)
    faces, table = tmp_path / "faces", tmp_path / "faces.csv"
    once = read_sources([faces])
    assert read_sources([faces, tmp_path / "x" / ".." / "faces"]) == once
    table.write_text("path,age\n025/000.png,30\n025/000.png,31\n")
    labelled = read_sources([faces, table, faces])
    assert [item.age for item in labelled] == [30, 31]  # a path that stands twice in a table is for others to judge


def test_a_table_that_is_no_regular_file_is_wrong_usage(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "faces", ages=[25], each=1)
    os.mkfifo(tmp_path / "faces.csv")
    for source in (tmp_path / "faces.csv", tmp_path / "faces"):
        with pytest.raises(UsageError, match=r"faces\.csv is no regular file"):
            read_sources([source])


def test_a_source_without_a_name_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="folder / has no name"):
        read_sources([Path("/")])


def test_a_folder_that_cannot_be_listed_is_wrong_usage(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "faces", ages=[25], each=1)
    folder = os.open(tmp_path / "faces" / "025", os.O_RDONLY)
    for _ in range(17):  # a path longer than the system takes: not even root can list it
        os.mkdir("x" * 250, dir_fd=folder)
        inside = os.open("x" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inside
    os.close(folder)
    with pytest.raises(UsageError, match=r"faces/025/x+.* can't be listed"):
        read_sources([tmp_path / "faces"])


def test_spreadsheets_mark_their_utf8_and_end_lines_with_commas(tmp_path: Path) -> None:
    (tmp_path / "x.CSV").write_bytes(b"\xef\xbb\xbfpath,age\na.jpg,3.9,\nb.jpg,-0.5\n")
    found: list[Labelled] = read_sources([tmp_path / "x.CSV"])
    assert [item.age for item in found] == [3, -1]


def test_an_export_of_estimates_is_no_table_of_labels(tmp_path: Path) -> None:
    (tmp_path / "museum").mkdir()
    (tmp_path / "museum.csv").write_text("archive,path,age,age_low,age_high,run_id\nmuseum,a.jpg,31,20,40,x\n")
    with pytest.raises(LabelError, match="export of estimates"):
        read_sources([tmp_path / "museum"])
