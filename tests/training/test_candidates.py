from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agewatch.estimator.engine import open_engine
from agewatch.estimator.model import AgeModel
from agewatch.estimator.network import AgeNetwork, to_bytes
from agewatch.estimator.spec import Member, Preprocessing, Spec, Svr
from agewatch.labelled.dataset import Faces
from agewatch.training import candidates
from agewatch.training.candidates import Linear, cnn_model, ensemble_model, linear_model

SPEC = Spec("agewatch", "0", (Member("test_efficientnet", 64),), Preprocessing((0.5,) * 3, (0.5,) * 3))
CHIPS = np.concatenate(
    [np.random.default_rng(n).integers(0, 60 + 35 * n, (1, 64, 64, 3)).astype(np.uint8) for n in range(6)]
)


def network(seed: int) -> AgeNetwork:
    torch.manual_seed(seed)
    return AgeNetwork(SPEC).eval()


def spread(own: AgeNetwork, chips: np.ndarray) -> AgeNetwork:
    """Untrained, all pictures look alike to a network: sharpen its last layer until their ages differ."""
    with torch.no_grad():
        logits = own.members[0](own.normalise(torch.from_numpy(chips)))
        own.get_parameter("members.0.classifier.weight").mul_(2 / logits.std(dim=0).mean())
    return own


def linear(seed: int) -> Linear:
    weight = np.random.default_rng(seed).normal(0, 3, 256).astype(np.float32)
    return Linear(weight, 40.0 + seed, 6.0)


def ages(model: AgeModel, cache: Path, engine: str) -> np.ndarray:
    opened = open_engine(model, cache=cache, engine=engine, precision="f32")  # type: ignore[arg-type]
    return model.ages(opened(CHIPS))


def of_all_kinds() -> AgeModel:
    """A mirrored network with an SVR beside it, a plain one, and an SVR alone, of unequal weight."""
    parts = (
        replace(SPEC.members[0], weight=0.5, mirrored=True, svr=Svr(0.25, 6.0)),
        replace(SPEC.members[0], weight=1.0),
        replace(SPEC.members[0], weight=0.5, svr=Svr(1.0, 6.0)),
    )
    torch.manual_seed(5)
    spec = replace(SPEC, members=parts)
    whole = AgeNetwork(spec)
    whole.eval()
    normal = whole.normalise(torch.from_numpy(CHIPS))
    with torch.no_grad():  # untrained, all pictures look alike to it: spread their ages
        for index in (0, 1):
            spread = whole.members[index](normal).std(dim=0).mean()
            whole.get_parameter(f"members.{index}.classifier.weight").mul_(2 / spread)
        for index, middle in ((0, 30.0), (2, 60.0)):
            whole.get_parameter(f"svrs.{index}.bias").zero_()
            found = whole.svrs[str(index)](whole.embed(index, normal))
            whole.get_parameter(f"svrs.{index}.weight").mul_(8 / found.std())
            whole.get_parameter(f"svrs.{index}.bias").copy_(middle - found.mean() * 8 / found.std())
    return AgeModel(spec, to_bytes(whole.state_dict()))


def test_every_kind_of_member_has_the_same_ages_in_openvino_and_torch(cache: Path) -> None:
    model = of_all_kinds()
    first, second = ages(model, cache, "openvino"), ages(model, cache, "torch")
    assert np.ptp(first) > 0.5
    assert first == pytest.approx(second, abs=0.01)


def test_the_ensemble_is_the_weighted_mean_of_its_members(tmp_path: Path) -> None:
    model = of_all_kinds()
    model.save(tmp_path)
    assert AgeModel.load(tmp_path) == model
    whole = model.network()
    with torch.inference_mode():
        seen, turned = (whole.normalise(torch.from_numpy(chips)) for chips in (CHIPS, CHIPS[:, :, ::-1].copy()))

        def age(distribution: torch.Tensor) -> np.ndarray:
            return (distribution @ whole.years).numpy()

        def by_svr(index: int, normal: torch.Tensor) -> np.ndarray:
            return whole.svrs[str(index)](whole.embed(index, normal))[:, 0].numpy()

        own = [age(whole.members[0](normal).softmax(1)) for normal in (seen, turned)]
        first = np.mean([0.75 * own[i] + 0.25 * by_svr(0, normal) for i, normal in enumerate((seen, turned))], axis=0)
        expected = 0.25 * first + 0.5 * age(whole.members[1](seen).softmax(1)) + 0.25 * by_svr(2, seen)
        found = age(whole(torch.from_numpy(CHIPS)))
    assert found == pytest.approx(expected, abs=0.2)  # bells are cut off at the ends of the bins


def test_a_regression_is_served_as_scikit_learn_fitted_it(cache: Path) -> None:
    random = np.random.default_rng(0)
    seen = {split: random.normal(size=(n, 16)).astype(np.float32) for split, n in (("train", 400), ("validation", 60))}
    years = {split: (40 + 5 * seen[split][:, 0] + random.normal(size=len(seen[split]))) for split in seen}
    fitted = candidates.ridge(seen, years)
    theirs = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11))).fit(seen["train"], years["train"])
    assert fitted.predict(seen["validation"]) == pytest.approx(theirs.predict(seen["validation"]), abs=0.3)
    assert fitted.error < 2
    assert candidates.svr(seen, years).error < 2
    alike = {split: np.full(len(seen[split]), 30.0) for split in seen}
    assert (candidates.ridge(seen, alike).error, candidates.svr(seen, alike).error) == (1, 1)  # an SVR needs a width
    own = network(1)
    model = linear_model(SPEC, own, linear(0))
    assert "classifier" not in str(list(model.network().state_dict()))
    with torch.inference_mode():
        embedded = own.embed(0, own.normalise(torch.from_numpy(CHIPS))).numpy()
    assert ages(model, cache, "openvino") == pytest.approx(linear(0).predict(embedded), abs=0.1)


def test_stacking_finds_the_better_part_and_never_goes_below_zero() -> None:
    random = np.random.default_rng(1)
    true = random.uniform(0, 90, 500).astype(np.float32)
    good, alike = true + random.normal(0, 3, 500), true + random.normal(0, 3, 500)
    bad = random.uniform(0, 90, 500)
    weights = candidates._stacking_weights(np.stack([good, alike, bad], axis=1), true)
    assert weights.sum() == pytest.approx(1)
    assert weights[:2] == pytest.approx([0.5, 0.5], abs=0.1)
    assert weights[2] == 0
    stacked = candidates._cross_fitted_mae(np.stack([good, alike, bad], axis=1), true)
    assert stacked < np.abs(good - true).mean()


def test_the_ensemble_gives_the_part_that_is_right_all_the_weight(cache: Path) -> None:
    """The labels are one network's own ages, so nothing else is of use."""
    random = np.random.default_rng(2)
    chips = random.integers(0, 256, (60, 64, 64, 3), np.uint8) // random.integers(1, 9, (60, 1, 1, 1), np.uint8)
    split = ["train"] * 40 + ["validation"] * 20
    networks = [spread(network(seed), chips) for seed in (1, 2)]

    def predicted(model: AgeModel, of: np.ndarray = chips[40:]) -> np.ndarray:
        return model.ages(open_engine(model, cache=cache, engine="openvino", precision="f32")(of))

    truth = predicted(cnn_model(SPEC, networks[1]), chips)
    assert np.ptp(truth) > 5
    faces = Faces(pd.DataFrame({"age": truth, "split": split}), chips)
    model, mae = ensemble_model(SPEC, networks, faces, predicted)
    [part] = model.spec.members
    assert (part.weight, part.svr) == (1, None)
    assert mae < 0.01
    assert predicted(model) == pytest.approx(truth[40:], abs=0.01)


def test_a_mirrored_network_gives_a_face_and_its_mirror_image_one_age(cache: Path) -> None:
    model = cnn_model(SPEC, network(1), mirrored=True)
    engine = open_engine(model, cache=cache, engine="openvino", precision="f32")
    turned = model.ages(engine(np.ascontiguousarray(CHIPS[:, :, ::-1])))
    assert turned == pytest.approx(model.ages(engine(CHIPS)), abs=1e-3)
