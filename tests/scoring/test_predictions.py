import os
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from rows import row, writer

from agewatch.errors import TableError, UsageError
from agewatch.scoring import predictions


def ages(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for item in predictions.read(folder / "table").to_pylist():
        found.setdefault(item["path"], []).append(round(item["age"], 3))
    return {path: sorted(values) for path, values in found.items()}


def test_known_files_are_replaced_and_new_ones_added_in_one_commit(tmp_path: Path) -> None:
    table = writer(tmp_path, tmp_path)
    table.write([row("it's.jpg", age=1), row("it's.jpg", face=1, age=2), row(r"b\\s.jpg", age=3)])
    table.write([row("it's.jpg", age=9), row("new.jpg", age=4)])
    assert ages(tmp_path) == {"it's.jpg": [9], r"b\\s.jpg": [3], "new.jpg": [4]}
    assert table.known.faces == 3


def test_rows_of_another_model_and_archive_stay(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path).write([row("x.jpg", age=1)])
    other = writer(tmp_path, tmp_path, model="m-2@0")
    assert len(other.known) == 0
    other.write([row("x.jpg", age=2, model="m-2@0")])
    writer(tmp_path, tmp_path / "b", archive="b").write([row("x.jpg", age=3, archive="b")])
    writer(tmp_path, tmp_path).write([row("x.jpg", age=4)])
    assert ages(tmp_path) == {"x.jpg": [2, 3, 4]}


def test_two_writers_with_one_snapshot_do_not_double_rows(tmp_path: Path) -> None:
    first, second = writer(tmp_path, tmp_path), writer(tmp_path, tmp_path)
    first.write([row("x.jpg", age=1), row("y.jpg", age=1)])
    assert second.write([row("x.jpg", age=2), row("z.jpg", age=2)]) == 1
    assert ages(tmp_path) == {"x.jpg": [1], "y.jpg": [1], "z.jpg": [2]}


def test_a_changed_file_replaces_what_a_newer_commit_holds_of_its_old_state(tmp_path: Path) -> None:
    first, second = writer(tmp_path, tmp_path), writer(tmp_path, tmp_path)
    first.write([row("x.jpg", age=1)])
    second.write([row("x.jpg", age=2, mtime_ns=6)])
    assert ages(tmp_path) == {"x.jpg": [2]}


def test_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path)

    def run(number: int) -> None:
        mine = writer(tmp_path, tmp_path)
        for shard in range(4):
            mine.write([row(f"{shard}-{index}.jpg", age=number) for index in range(5)])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ages(tmp_path)
    assert len(found) == 20
    assert all(len(values) == 1 for values in found.values())


def test_an_archive_name_belongs_to_one_root(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path / "one")
    writer(tmp_path, tmp_path / "one")
    with pytest.raises(UsageError, match="--archive"):
        writer(tmp_path, tmp_path / "two")
    assert predictions.archives(tmp_path / "table") == {"a": str((tmp_path / "one").resolve())}


def test_no_table_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="agewatch score"):
        predictions.read(tmp_path / "nothing")


def test_a_place_that_is_not_utf8_is_refused_and_a_root_is_kept(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "odd") + b"\xff"))
    for use in (writer, lambda folder, _: predictions.read(folder)):
        with pytest.raises(UsageError, match=r"odd\\udcff.*not UTF-8"):
            use(odd, tmp_path)
    assert not odd.exists()
    writer(tmp_path, odd)
    writer(tmp_path, odd)
    for other in (tmp_path / "odd", tmp_path / r"odd\xff", tmp_path / "odd%FF"):
        with pytest.raises(UsageError, match="--archive"):
            writer(tmp_path, other)


@pytest.mark.parametrize("name", ["a b", "100%", "x#y?z", "s3:", "{a}*", "é", "it's", '"', "$HOME", "~", "<&;>`"])
def test_an_odd_place_holds_a_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    writer(tmp_path / name, tmp_path).write([row("x.jpg", age=1)])
    assert ages(tmp_path / name) == {"x.jpg": [1]}
    assert (tmp_path / name / "table" / "_delta_log").is_dir()


@pytest.mark.parametrize("name", ["a%20b", "a[b", "a]b", "a^b", "a|b", r"a\b", "a\nb", "a\x7fb"])
def test_a_place_that_delta_rs_takes_for_another_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for use in (writer, lambda folder, _: predictions.read(folder / "table")):
        with pytest.raises(UsageError, match=r"can't lie at .*: its name holds"):
            use(tmp_path / name, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [name]


def test_a_folder_that_cannot_hold_a_table_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("a file stands here")
    with pytest.raises(TableError, match="can't be opened"):
        writer(tmp_path, tmp_path)


def test_a_table_of_other_things_is_left_alone(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", pa.table({"archive": ["a"], "path": ["x.jpg"]}))
    for use in (writer, lambda folder, _: predictions.read(folder / "table")):
        with pytest.raises(TableError, match="other things than predictions: it lacks face, status"):
            use(tmp_path, tmp_path)
    assert DeltaTable(tmp_path / "table").version() == 0


def data_files(folder: Path) -> dict[str, int]:
    actions = DeltaTable(folder / "table").get_add_actions()
    return dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))


def test_a_rewrite_needs_room_for_the_files_it_may_copy_and_no_others(tmp_path: Path) -> None:
    ours = writer(tmp_path, tmp_path)
    ours.write([row("a.jpg"), row("c.jpg")])
    ours.write([row("m.jpg"), row("x" * 200)])  # statistics cut long texts short
    writer(tmp_path, tmp_path, model="m-2@0").write([row("a.jpg", model="m-2@0")])
    writer(tmp_path, tmp_path / "b", archive="b").write([row("a.jpg", archive="b")])
    for paths, copied in ((["z.jpg"], 0), (["a.jpg"], 1), (["x" * 200], 1), (["c.jpg", "m.jpg"], 2)):
        table = writer(tmp_path, tmp_path)
        before, expected = data_files(tmp_path), table._bytes_around(paths, archive="a", model="m-1@0", mode="detect")
        table.write([row(path, age=9) for path in paths])
        gone = before.keys() - data_files(tmp_path).keys()
        assert len(gone) == copied, paths
        assert sum(before[name] for name in gone) == expected, paths
