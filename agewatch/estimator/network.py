"""The torch side of an age model: timm backbones with an age distribution as output."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from agewatch.errors import ModelError
from agewatch.estimator.spec import Spec


class AgeNetwork(nn.Module):
    """Chips in, age distribution out; normalisation is part of the graph, so that engines need no second copy.

    Input: uint8 RGB chips of shape (n, size, size, 3). Output: probabilities of shape (n, bins), the weighted mean of
    the members'.
    """

    shift: Tensor
    scale: Tensor
    years: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self._parts = spec.members
        bins = len(spec.labels.years)
        self.members = nn.ModuleList(
            timm.create_model(part.backbone, num_classes=0 if part.svr and part.svr.share == 1 else bins, **part.kwargs)
            for part in spec.members
        )
        widths: list[Any] = [member.head_hidden_size for member in self.members]
        self.svrs = nn.ModuleDict({str(i): nn.Linear(widths[i], 1) for i, part in enumerate(spec.members) if part.svr})
        # Folded: (x / 255 - mean) / std. Not persistent: the spec holds them.
        self.register_buffer("shift", torch.tensor(spec.preprocessing.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", torch.tensor(spec.preprocessing.std).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("years", torch.from_numpy(spec.labels.years), persistent=False)

    def normalise(self, chips: Tensor) -> Tensor:
        """Turn uint8 chips (n, size, size, 3) into the members' float input (n, 3, size, size)."""
        normal: Tensor = (chips.permute(0, 3, 1, 2).float() - self.shift) / self.scale
        return normal

    def embed(self, index: int, normal: Tensor) -> Tensor:
        """A member's embedding (n, features) of its normalised input: what its head sees."""
        member: Any = self.members[index]
        embedding: Tensor = member.forward_head(member.forward_features(normal), pre_logits=True)
        return embedding

    def forward(self, chips: Tensor) -> Tensor:
        """Return probabilities of shape (n, bins)."""
        normal = self.normalise(chips)
        total = sum(part.weight for part in self._parts)
        parts = []
        for index, part in enumerate(self._parts):
            found = self._distribution(index, normal)
            if part.mirrored:
                found = (found + self._distribution(index, normal.flip(3))) / 2
            parts.append(found * (part.weight / total))
        return torch.stack(parts).sum(dim=0)

    def _distribution(self, index: int, normal: Tensor) -> Tensor:
        member: Any = self.members[index]
        svr = self._parts[index].svr
        if svr is None:
            logits: Tensor = member(normal)
            return logits.softmax(dim=1)
        embedding = self.embed(index, normal)
        low, high = self.years[0], self.years[-1]
        age: Tensor = self.svrs[str(index)](embedding).clamp(low, high)
        # Narrower near the ends of the bins, where a bell that is cut off would have another mean.
        sigma = (torch.minimum(age - low, high - age) / 2).clamp(1, svr.sigma)
        bell: Tensor = (-((self.years - age) ** 2) / (2 * sigma**2)).softmax(dim=1)
        if svr.share == 1:
            return bell
        own: Tensor = member.get_classifier()(embedding).softmax(dim=1)
        return (1 - svr.share) * own + svr.share * bell

    @classmethod
    def from_weights(cls, spec: Spec, weights: bytes) -> "AgeNetwork":
        """Build the network in evaluation mode. Raises ModelError where the weights do not fit the architecture."""
        try:
            network = cls(spec)
            tensors = {name: tensor.float() for name, tensor in load(weights).items()}
            missing, unexpected = network.load_state_dict(tensors, strict=False)
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(f"The model's weights do not fit its architecture: {error}.") from error
        if missing or unexpected:
            raise ModelError(f"The model's weights do not fit its architecture: {(missing + unexpected)[:3]}.")
        return network.eval()


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Serialise a state dict: matrices rounded to fp16, vectors (biases, statistics) kept in f32."""
    return save(
        {
            name: (tensor.half() if tensor.ndim > 1 else tensor.float()).contiguous()
            for name, tensor in sorted(state.items())
            if not name.endswith("num_batches_tracked")
        }
    )
