from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faces_drawn import drawn_face
from pictures import ASTRONAUT

from agewatch.errors import LabelError
from agewatch.labelled.evaluate import LEARNT, evaluate_archive, learnt_keys, summarise
from agewatch.progress import Progress, unwatched
from agewatch.scoring import predictions
from agewatch.scoring.content import hash_key
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution


def key(picture: bytes) -> int:
    return hash_key(blake2b(picture, digest_size=32).hexdigest())


def evaluated(
    model: Path, source: Path, cache: Path, leave_out: set[int], progress: Progress = unwatched
) -> pd.DataFrame:
    how = Execution(cache, 1, precision="f32", progress=progress)
    return evaluate_archive(model, [source], how=how, leave_out=leave_out)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 45 drawn faces, one without its file, one whose label can't be true, and one that is no picture."""
    folder = tmp_path_factory.mktemp("labelled") / "drawn"
    folder.mkdir()
    lines = ["path,age,sex,ethnicity"]
    for number in range(45):
        age = number * 2
        (folder / f"{number}.png").write_bytes(drawn_face(age, number))
        lines.append(f"{number}.png,{age},{'female' if number % 2 else 'male'},{'black' if number % 3 else ''}")
    (folder / "text.png").write_text("no picture")
    (folder / "old.png").write_bytes(drawn_face(99, 99))
    lines += ["gone.png,5,,", "text.png,5,,", "old.png,150,,"]
    folder.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    return folder


def test_every_labelled_picture_has_one_row_scored_as_an_archive_is(
    model_folder: Path, drawn: Path, cache: Path, tmp_path: Path
) -> None:
    known = {key(drawn_face(age, age // 2)) for age in (0, 10)}
    told: list[tuple[int, int, dict[str, int]]] = []
    frame = evaluated(model_folder, drawn, cache, known, lambda *now: told.append((*now[:2], dict(now[2]))))
    assert told[0] == (0, 48, {})
    assert told[-1] == (48, 48, {"ok": 44, "vanished": 1, "unsupported": 1})  # the learnt ones were not scored
    assert len(frame) == 48
    assert Counter(frame["status"]) == {
        "ok": 43, LEARNT: 2, "vanished": 1, "unsupported": 1, "impossible_age": 1,
    }  # fmt: skip
    assert set(frame.loc[frame["status"] == LEARNT, "path"]) == {"0.png", "5.png"}
    scored = frame[frame["status"] == "ok"].set_index("path")
    assert (scored["age"] == [2 * int(path.removesuffix(".png")) for path in scored.index]).all()
    assert set(scored["sex"]) == {"female", "male"}
    score_archive(
        drawn, model_path=model_folder, table=tmp_path / "table", mode="crop", how=Execution(cache, 1, precision="f32")
    )
    rows = predictions.read(tmp_path / "table").to_pandas().set_index("path").loc[scored.index]
    for own, theirs in (("predicted", "age"), ("low", "age_low"), ("high", "age_high"), ("sharpness", "sharpness")):
        assert scored[own].to_list() == pytest.approx(rows[theirs].to_list(), abs=0.01)
    assert (scored["covered"] == ((scored["low"] <= scored["age"]) & (scored["age"] <= scored["high"]))).all()


def test_copies_count_once_and_contradictory_labels_not_at_all(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    for name, age in (("a", 10), ("copy_of_a", 10), ("b", 50), ("c", 70), ("copy_of_c", 70)):
        (folder / f"{name}.png").write_bytes(drawn_face(age, age))
    (tmp_path / "drawn.csv").write_text("path,age\na.png,10\ncopy_of_a.png,10\nb.png,50\nc.png,70\ncopy_of_c.png,20\n")
    frame = evaluated(model_folder, folder, cache, set()).set_index("path")["status"]
    assert frame.to_dict() == {
        "a.png": "ok", "copy_of_a.png": "duplicate", "b.png": "ok",
        "c.png": "conflicting_age", "copy_of_c.png": "conflicting_age",
    }  # fmt: skip


def test_of_a_group_picture_the_largest_face_counts(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(ASTRONAUT.read_bytes())
    (tmp_path / "photos.csv").write_text("path,age\na.png,40\n")
    [row] = evaluated(model_folder, folder, cache, set()).to_dict("records")
    assert (row["mode"], row["status"]) == ("detect", "ok")
    assert 50 < row["box_h"] < 300


def test_the_summary_counts_all_and_adds_up(model_folder: Path, drawn: Path, cache: Path) -> None:
    frame = evaluated(model_folder, drawn, cache, set())
    found = summarise(frame, model_folder, held_out=True)
    assert found.sources == {"drawn": 45}
    assert found.statuses == {"vanished": 1, "unsupported": 1, "impossible_age": 1}
    assert found.overall.n == sum(part.n for part in found.decades["drawn"]) == found.bands[-1].n == 45
    faces = frame[frame["status"] == "ok"]
    assert found.overall.mae == pytest.approx((faces["predicted"] - faces["age"]).abs().mean())
    assert found.coverage == found.bands[-1].coverage == faces["covered"].mean()
    with pytest.raises(LabelError, match=r"None of the 3 labelled pictures can be evaluated: .*1 vanished"):
        summarise(frame[frame["status"] != "ok"], model_folder, held_out=True)


def test_a_model_tells_which_pictures_it_learnt_from(model_folder: Path, tmp_path: Path) -> None:
    for file in ("model.json", "model.safetensors"):
        (tmp_path / file).write_bytes((model_folder / file).read_bytes())
    assert learnt_keys(tmp_path) == set()
    splits = {1: "train", 2: "validation", 3: "calibration", 4: "test", 2**64 - 1: "train"}
    table = pa.table({"key": pa.array(splits, pa.uint64()), "split": pa.array(splits.values())})
    pq.write_table(table, tmp_path / "splits.parquet")
    assert learnt_keys(tmp_path) == {1, 2, 3, 2**64 - 1}
