"""The champion gate: who is promoted, who is held back, and why."""

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faces_drawn import drawn_face, write_age_folders
from models import model_file, tiny_model

from agewatch.errors import HeldBackError, LabelError, ModelError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.files import now, write_json
from agewatch.labelled.evaluate import evaluate_archive
from agewatch.release import gate, store, trust
from agewatch.release.gate import Compared, Decision, Record, judge
from agewatch.release.package import package
from agewatch.scoring.scorer import Execution

N = 1200


def rows(error: np.ndarray, n: int = N) -> pd.DataFrame:
    """What `evaluate_archive` leaves of n pictures, estimated with given errors; every fifth is labelled black."""
    index = np.arange(n)
    return pd.DataFrame(
        {
            "source": "drawn", "path": [f"{i}.png" for i in index], "age": index % 90,
            "sex": np.where(index % 2, "female", "male"), "ethnicity": np.where(index % 5, "white", "black"),
            "mode": "crop", "box_h": 80.0, "sharpness": np.modf(index * 0.618)[0], "status": "ok",
            "predicted": index % 90 + error[:n],
        }
    )  # fmt: skip


def errors(scale: float = 5.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, N)


def decided(champion: np.ndarray, challenger: np.ndarray, cost: float = 1.0, n: int = N) -> Decision:
    return judge(rows(champion, n), rows(challenger, n), cost_champion=2.0, cost_challenger=2.0 * cost)


def test_a_challenger_that_is_better_for_all_is_promoted() -> None:
    found = decided(errors(), errors() * 0.9)
    assert found.promote
    assert found.challenger == pytest.approx(0.9 * found.champion)
    assert found.difference_low < found.challenger - found.champion < found.difference_high < 0
    assert "better beyond noise" in found.reason.lower()
    assert f"{found.challenger:.2f} years against {found.champion:.2f} on 1200 pictures" in found.reason


def test_a_challenger_that_is_better_overall_and_much_worse_for_one_group_is_held_back() -> None:
    black = np.arange(N) % 5 == 0
    found = decided(errors(), errors() * np.where(black, 1.2, 0.8))
    assert not found.promote
    assert found.difference_high < 0
    part = next(part for part in found.slices if part.value == "black")
    assert part.n == 240
    assert "Better overall" in found.reason
    assert (
        f"worse for ethnicity black: MAE {part.challenger:.2f} years against {part.champion:.2f} on 240" in found.reason
    )


def test_a_small_group_does_not_hold_back() -> None:
    black = np.arange(N) % 5 == 0
    found = decided(errors(), errors() * np.where(black, 1.2, 0.8), n=900)
    assert next(part for part in found.slices if part.value == "black").n == 180
    assert found.promote


@pytest.mark.parametrize(("worse_by", "promoted"), [(0.24, True), (0.26, False)])
def test_a_quarter_of_a_year_is_what_a_group_may_lose(worse_by: float, promoted: bool) -> None:
    black = np.arange(N) % 5 == 0
    champion = np.full(N, 4.0)
    assert decided(champion, np.where(black, 4 + worse_by, 3.0)).promote is promoted


def test_what_is_equal_but_for_noise_is_held_back_unless_it_is_cheaper() -> None:
    noise = np.random.default_rng(1).normal(0, 0.4, N)
    challenger = errors() + noise
    same = decided(errors(), challenger)
    assert same.difference_low < 0 < same.difference_high < 0.1
    assert not same.promote
    assert "not better beyond noise" in same.reason.lower()
    assert not decided(errors(), challenger, cost=0.95).promote
    cheaper = decided(errors(), challenger, cost=0.9)
    assert cheaper.promote
    assert "90% of the CPU time" in cheaper.reason
    assert not decided(np.full(N, 4.0), np.full(N, 4.11), cost=0.5).promote
    assert decided(np.full(N, 4.0), np.full(N, 4.09), cost=0.5).promote


def test_few_pictures_decide_nothing() -> None:
    found = decided(errors(), errors() * 0.1, n=199)
    assert not found.promote
    assert "199 pictures" in found.reason
    assert decided(errors(), errors() * 0.1, n=200).promote


def test_only_pictures_that_both_have_a_face_in_are_compared() -> None:
    champion, challenger = rows(errors()), rows(errors() * 0.9)
    champion.loc[:99, ["status", "predicted"]] = ["no_face", np.nan]
    challenger.loc[50:199, ["status", "predicted"]] = ["learnt", np.nan]
    found = judge(champion, challenger.sample(frac=1, random_state=0), cost_champion=1, cost_challenger=1)
    assert found.n == N - 200
    assert found.champion == pytest.approx(np.abs(errors()[200:]).mean())
    with pytest.raises(LabelError, match="No labelled picture"):
        judge(champion[:50], challenger, cost_champion=1, cost_challenger=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with the models 1, the current one, and 2."""
    folder = tmp_path / "store"
    for version in ("1", "2"):
        model_file(folder, version)
    gate.promote(folder, folder / "agewatch-1.mar", force=False)
    return folder


def keep(folder: Path, *, promote: bool, champion: str = "1") -> None:
    """Keep a decision about model 2 in a store."""
    models = [AgeModel.load(folder / f"agewatch-{version}.mar") for version in (champion, "2")]
    decision = Decision(promote, "Why.", 500, 4.0, 3.9, -0.2, -0.1, 1.0, 1.0, (Compared("sex", "male", 500, 4.0, 3.9),))
    record = Record(models[0].id, models[1].id, True, {"drawn": 500}, now(), decision)
    file = gate.record_file(folder, models[1], models[0])
    file.parent.mkdir(exist_ok=True)
    write_json(file, dataclasses.asdict(record))


def test_a_model_is_promoted_when_it_passed_against_the_current_one(folder: Path) -> None:
    challenger = folder / "agewatch-2.mar"
    with pytest.raises(UsageError, match=r"not compared with .* agewatch-1@.*models compare .*agewatch-2\.mar"):
        gate.promote(folder, challenger, force=False)
    keep(folder, promote=False)
    with pytest.raises(HeldBackError, match=r"agewatch-2@.* is held back\. Why\."):
        gate.promote(folder, challenger, force=False)
    assert store.current(folder) == folder / "agewatch-1.mar"
    keep(folder, promote=True)
    assert gate.promote(folder, challenger, force=False).file == "agewatch-2.mar"
    assert gate.promote(folder, challenger, force=False).file == "agewatch-2.mar"  # it is current: nothing to ask


def test_a_decision_against_another_model_does_not_count(folder: Path) -> None:
    model_file(folder, "3")
    keep(folder, promote=True, champion="3")
    with pytest.raises(UsageError, match="not compared"):
        gate.promote(folder, folder / "agewatch-2.mar", force=False)
    keep(folder, promote=True)
    _replace_weights(folder / "agewatch-2.mar")
    with pytest.raises(ModelError, match="not on record"):
        gate.promote(folder, folder / "agewatch-2.mar", force=True)
    trust.trust(folder, folder / "agewatch-2.mar")
    with pytest.raises(UsageError, match="not compared"):
        gate.promote(folder, folder / "agewatch-2.mar", force=False)


def _replace_weights(file: Path) -> None:
    """Make another model of the same name and version."""
    with zipfile.ZipFile(file) as old:
        spec = old.read("model.json")
    with zipfile.ZipFile(file, "w") as new:
        new.writestr("model.json", spec)
        new.writestr("model.safetensors", "other weights")


def test_force_promotes_whatever_was_decided_but_only_models_of_the_store(folder: Path, tmp_path: Path) -> None:
    keep(folder, promote=False)
    assert gate.promote(folder, folder / "agewatch-2.mar", force=True).file == "agewatch-2.mar"
    with pytest.raises(UsageError, match="not in the model store"):
        gate.promote(folder, model_file(tmp_path / "elsewhere", "2"), force=True)


def test_a_damaged_decision_is_a_model_error(folder: Path) -> None:
    keep(folder, promote=True)
    [file] = (folder / gate.DECISIONS).iterdir()
    for damaged in (b"", b"[]", file.read_bytes()[:-20], file.read_bytes().replace(b'"reason"', b'"season"')):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"2-over-1\.json can.t be read"):
            gate.promote(folder, folder / "agewatch-2.mar", force=False)


def test_two_models_are_compared_on_pictures_and_the_record_decides(tmp_path: Path, cache: Path) -> None:
    """The labels are the challenger's own ages, so it has to win."""
    folder, data = tmp_path / "store", tmp_path / "drawn"
    champion, challenger = (
        package(tiny_model(tmp_path / str(seed), seed), version=str(seed), store=folder) for seed in (0, 1)
    )
    data.mkdir()
    for number in range(220):
        (data / f"{number}.png").write_bytes(drawn_face(number % 90, number))
    table = data.with_suffix(".csv")
    table.write_text("path,age\n" + "".join(f"{number}.png,1\n" for number in range(220)))
    how = Execution(cache, 1, precision="f32")
    frame = evaluate_archive(challenger, [data], leave_out=set(), how=how)
    frame.assign(age=frame["predicted"].round().astype(int))[["path", "age"]].to_csv(table, index=False)

    store.promote(folder, champion)
    record = gate.compare(folder, challenger, champion, [data], how)
    assert record.decision.promote
    assert record.decision.challenger < 0.6 < record.decision.champion
    assert record.sources == {"drawn": 220}
    assert record.held_out
    assert record.decision.cost_champion > 0
    assert gate.records(folder) == [record]
    written = json.loads((folder / "decisions" / "1-over-0.json").read_text())
    assert written["decision"]["reason"] == record.decision.reason
    assert (written["champion"], written["challenger"]) == (AgeModel.load(champion).id, AgeModel.load(challenger).id)
    assert gate.promote(folder, challenger, force=False).file == challenger.name

    back = gate.compare(folder, champion, challenger, [data], how)
    assert not back.decision.promote
    with pytest.raises(HeldBackError):
        gate.promote(folder, champion, force=False)
    with pytest.raises(UsageError, match="is the model it would be compared with"):
        gate.compare(folder, champion, champion, [data], how)


def test_a_challenger_that_hides_what_it_learnt_from_is_not_compared(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "store"
    tiny_model(tmp_path / "1", 1)
    (tmp_path / "1" / "splits.parquet").unlink()
    champion, challenger = (
        package(folder_of, version=folder_of.name, store=folder)
        for folder_of in (tiny_model(tmp_path / "0"), tmp_path / "1")
    )
    how = Execution(cache, 1, precision="f32")
    with pytest.raises(UsageError, match="does not say which pictures it learnt from"):
        gate.compare(folder, challenger, champion, [], how)
    write_age_folders(tmp_path / "drawn", ages=[10, 40], each=2)
    record = gate.compare(folder, champion, challenger, [tmp_path / "drawn"], how)
    assert not record.held_out  # as a champion it is, with a word about it
    assert record.sources == {"drawn": 4}
