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

from agewatch.dataset import Faces
from agewatch.engine import has_bf16
from agewatch.model import AgeModel, Floats, Member, Spec, Svr
from agewatch.network import AgeNetwork, to_bytes

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


def embeddings(network: AgeNetwork, faces: Faces, split: str) -> Floats:
    """The first member's embeddings (n, features) of the faces of a split."""
    rows = faces.rows(split)
    network.eval()
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        for start in range(0, len(rows), 64):
            normal = network.normalise(torch.from_numpy(faces.chips[rows[start : start + 64]]))
            found.append(network.embed(0, normal.contiguous(memory_format=torch.channels_last)).float().numpy())
    return np.concatenate(found)


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
    return _model(spec, [(part, network.state_dict(), linear)])


def cnn_model(spec: Spec, network: AgeNetwork, *, mirrored: bool = False) -> AgeModel:
    """The age model of one fine-tuned network; `mirrored` averages each face with its mirror image."""
    return _model(spec, [(replace(spec.members[0], mirrored=mirrored), network.state_dict(), None)])


def ensemble_model(
    spec: Spec, networks: Sequence[AgeNetwork], faces: Faces, ages_of: Callable[[AgeModel, str], Floats]
) -> tuple[AgeModel, float]:
    """Stack the networks and a support vector regression on each one's embeddings (Wolpert, 1992; Breiman, 1996).

    The weights are not negative, sum to one, and give the least mean absolute error on the validation split, which is
    out of every fold that the parts were trained on. Returns the model and its mean absolute error on that split,
    years, with weights that were fitted on other faces of it; epochs and penalties were chosen on all of it, as for
    the other candidates.
    """
    ages = {split: faces.ages(faces.rows(split)) for split in ("train", "validation")}
    regressions, found = [], []
    for network in networks:
        seen = {split: embeddings(network, faces, split) for split in ages}
        regressions.append(svr(seen, ages))
        both = (cnn_model(spec, network), linear_model(spec, network, regressions[-1]))
        found += [ages_of(model, "validation") for model in both]
    parts = np.stack(found, axis=1)
    weights = _stacking_weights(parts, ages["validation"])
    members = []
    for index, (network, regression) in enumerate(zip(networks, regressions, strict=True)):
        own, linear = weights[2 * index : 2 * index + 2]
        if own + linear == 0:
            continue
        part = replace(spec.members[0], weight=float(own + linear))
        if linear:
            part = replace(part, svr=Svr(float(linear / (own + linear)), regression.error))
        members.append((part, network.state_dict(), regression if linear else None))
    return _model(spec, members), _cross_fitted_mae(parts, ages["validation"])


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


def _model(spec: Spec, members: Sequence[tuple[Member, Mapping[str, Tensor], Linear | None]]) -> AgeModel:
    """Put single networks, each with the state of an AgeNetwork of one member, together as one age model."""
    whole = replace(spec, members=tuple(part for part, _, _ in members))
    wanted = AgeNetwork(whole).state_dict()
    state: dict[str, Tensor] = {}
    for index, (_, own, linear) in enumerate(members):
        state |= {name.replace("members.0.", f"members.{index}.", 1): tensor for name, tensor in own.items()}
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
    solved = linprog(
        np.append(np.zeros(k), np.ones(n)),
        signed,
        np.append(true, -true),
        np.append(np.ones(k), np.zeros(n))[None],
        [1],
    )
    weights = np.where(solved.x[:k] < _SMALLEST_SHARE, 0.0, solved.x[:k])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _cross_fitted_mae(parts: npt.NDArray[Any], true: Floats) -> float:
    fold = np.arange(len(true)) % FOLDS
    errors = [
        np.abs(parts[fold == k] @ _stacking_weights(parts[fold != k], true[fold != k]) - true[fold == k])
        for k in range(min(FOLDS, len(true)))
    ]
    return float(np.concatenate(errors).mean())
