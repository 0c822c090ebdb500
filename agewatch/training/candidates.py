"""What a training run compares: regressions on embeddings, the CNN, and the ensemble that stacks them.

Each candidate is a whole age model, so that whichever is chosen is served as it was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack, vstack
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVR
from torch import Tensor

from agewatch.estimator.engine import has_bf16
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel
from agewatch.estimator.network import AgeNetwork, to_bytes
from agewatch.estimator.spec import Floats, Member, Spec, Svr
from agewatch.labelled.dataset import Faces

SVR_PENALTIES = (1e-4, 1e-3, 1e-2)
FOLDS = 5
"""Parts of the validation split that stacking is cross-fitted over."""
_SMALLEST_SHARE = 0.02  # a stacking weight below is left out


@dataclass(frozen=True)
class Linear:
    """A linear regression on embeddings: weight (features,), bias and error (deviation, at least 1) in years."""

    weight: Floats
    bias: float
    error: float

    def predict(self, embeddings: Floats) -> Floats:
        """Ages (n,) of embeddings (n, features), years."""
        ages: Floats = np.clip(embeddings @ self.weight + self.bias, 0, 100)
        return ages


def features(network: AgeNetwork, faces: Faces) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The first member's embeddings (n, features), and the ages (n,), of the splits `train` and `validation`."""

    def embed(chips: RGB) -> Floats:
        normal = network.normalise(torch.from_numpy(chips)).contiguous(memory_format=torch.channels_last)
        return np.asarray(network.embed(0, normal).float().numpy(), dtype=np.float32)

    network.eval()
    splits = ("train", "validation")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        found = {split: np.concatenate([embed(chips) for chips in faces.batches(split)]) for split in splits}
    return found, {split: faces.true(split) for split in splits}


def ridge(found: Mapping[str, Floats], ages: Mapping[str, Floats]) -> Linear:
    """Ridge regression on the split `train`; its error is that on `validation`."""
    return _linear(RidgeCV(np.logspace(0, 5, 11)), found, ages)


def svr(found: Mapping[str, Floats], ages: Mapping[str, Floats]) -> Linear:
    """Linear support vector regression on the split `train`, with the penalty that does best on `validation`."""
    # The primal of the squared loss: the only one of liblinear's SVRs that is fast on thousands of faces.
    regressors = (LinearSVR(C=c, epsilon=0.05, loss="squared_epsilon_insensitive", dual=False) for c in SVR_PENALTIES)
    return min((_linear(regressor, found, ages) for regressor in regressors), key=lambda linear: linear.error)


def linear_model(spec: Spec, network: AgeNetwork, linear: Linear) -> AgeModel:
    """The age model of a linear regression alone on a network's embeddings."""
    part = replace(spec.members[0], svr=Svr(1.0, linear.error))
    return _model(spec, [(part, network, linear)])


def cnn_model(spec: Spec, network: AgeNetwork, *, mirrored: bool = False) -> AgeModel:
    """The age model of one fine-tuned network; `mirrored` averages each face with its mirror image."""
    return _model(spec, [(replace(spec.members[0], mirrored=mirrored), network, None)])


def ensemble_model(
    spec: Spec, networks: Sequence[AgeNetwork], faces: Faces, ages_of: Callable[[AgeModel], Floats]
) -> tuple[AgeModel, float]:
    """Stack the networks and a support vector regression on each one's embeddings (Wolpert, 1992; Breiman, 1996).

    The weights are not negative, sum to one, and give the least mean absolute error on the validation split, which is
    out of every fold that the parts were trained on; `ages_of` gives a model's ages of that split. Returns the model
    and its mean absolute error on the split, years, with weights that were fitted on other faces of it; epochs and
    penalties were chosen on all of it, as for the other candidates.
    """
    true = faces.true("validation")
    regressions = [svr(*features(network, faces)) for network in networks]
    pairs = list(zip(networks, regressions, strict=True))
    models = [model for pair in pairs for model in (cnn_model(spec, pair[0]), linear_model(spec, *pair))]
    parts = np.stack([ages_of(model) for model in models], axis=1)
    weights = _stacking_weights(parts, true).reshape(-1, 2)
    members = []
    for (network, regression), (own, linear) in zip(pairs, weights.tolist(), strict=True):
        if own + linear == 0:
            continue
        part = replace(spec.members[0], weight=own + linear)
        if linear:
            part = replace(part, svr=Svr(linear / (own + linear), regression.error))
        members.append((part, network, regression if linear else None))
    return _model(spec, members), _cross_fitted_mae(parts, true)


def _linear(regressor: RidgeCV | LinearSVR, found: Mapping[str, Floats], ages: Mapping[str, Floats]) -> Linear:
    model = TransformedTargetRegressor(make_pipeline(StandardScaler(), regressor), transformer=StandardScaler())
    model.fit(found["train"], ages["train"])
    inputs, fitted = model.regressor_[0], model.regressor_[1]
    slope, offset = model.transformer_.scale_[0], model.transformer_.mean_[0]
    weight = np.ravel(fitted.coef_) / inputs.scale_ * slope
    bias = float(np.ravel(fitted.intercept_)[0]) * slope + offset - float(weight @ inputs.mean_)
    linear = Linear(weight.astype(np.float32), float(bias), 0.0)
    error = np.sqrt(np.mean((linear.predict(found["validation"]) - ages["validation"]) ** 2))
    return replace(linear, error=max(1.0, float(error)))


def _model(spec: Spec, members: Sequence[tuple[Member, AgeNetwork, Linear | None]]) -> AgeModel:
    """Put networks of one member each together as one age model."""
    whole = replace(spec, members=tuple(part for part, _, _ in members))
    wanted = AgeNetwork(whole).state_dict()
    state: dict[str, Tensor] = {}
    for index, (_, network, linear) in enumerate(members):
        state |= network.members[0].state_dict(prefix=f"members.{index}.")
        if linear is not None:
            state[f"svrs.{index}.weight"] = torch.from_numpy(linear.weight)[None]
            state[f"svrs.{index}.bias"] = torch.tensor([linear.bias])
    return AgeModel(whole, to_bytes({name: tensor for name, tensor in state.items() if name in wanted}))


def _stacking_weights(parts: npt.NDArray[Any], true: Floats) -> npt.NDArray[np.float64]:
    """Weights >= 0 with sum 1 of parts (n, k) for the least mean absolute error, by linear programming."""
    n, k = parts.shape
    # Variables: the k weights, then the n absolute errors, each at least as large as the error of either sign.
    errors = -eye_array(n)
    signed = vstack([hstack([csr_array(parts), errors]), hstack([csr_array(-parts), errors])])
    cost, total = np.append(np.zeros(k), np.ones(n)), np.append(np.ones(k), np.zeros(n))
    solved = linprog(cost, A_ub=signed, b_ub=np.append(true, -true), A_eq=total[None], b_eq=[1])
    weights = np.where(solved.x[:k] < _SMALLEST_SHARE, 0.0, solved.x[:k])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _cross_fitted_mae(parts: npt.NDArray[Any], true: Floats) -> float:
    fold = np.arange(len(true)) % FOLDS
    errors = [
        np.abs(parts[fold == k] @ _stacking_weights(parts[fold != k], true[fold != k]) - true[fold == k])
        for k in range(min(FOLDS, len(true)))
    ]
    return float(np.concatenate(errors).mean())
