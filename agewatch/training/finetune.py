"""The CNN candidate: fine-tuning a network on soft age labels (Gao et al., DLDL-v2, IJCAI 2018)."""

import copy
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # public, but not re-exported by name
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from agewatch.estimator.engine import has_bf16
from agewatch.estimator.network import AgeNetwork
from agewatch.files import replacing
from agewatch.labelled.dataset import Faces
from agewatch.training.augment import augment
from agewatch.training.recipe import TrainConfig


class _Parts(NamedTuple):
    """What training changes; a checkpoint holds the state of each."""

    network: AgeNetwork
    average: ModelEmaV3
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def fit(
    network: AgeNetwork, faces: Faces, config: TrainConfig, *, seed: int, run: Path, log: Callable[[str], None]
) -> None:
    """Train a network of one member in place and leave it with the averaged weights of the epoch that validated best.

    It stops after `patience` epochs without a better one. `run` gets curve.csv and a checkpoint after every epoch,
    from which a later call continues.
    """
    parts = _parts(network, config, steps=len(faces.rows("train")) // config.batch_size)
    average: AgeNetwork = parts.average.module
    best, best_mae = copy.deepcopy(average.state_dict()), np.inf
    curve: list[dict[str, float]] = []
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        held = torch.load(checkpoint, weights_only=True)
        for name, part in parts._asdict().items():
            part.load_state_dict(held[name])
        best, best_mae, curve = held["best"], held["best_mae"], held["curve"]
    full = faces.chips.shape[1]
    first = config.epochs // 2
    sizes = [config.small_size or full] * first + [full] * (config.epochs - first)
    for epoch in range(len(curve), config.epochs):
        if curve and epoch - 1 - np.argmin([row["validation_mae"] for row in curve]) >= config.patience:
            log(f"No better epoch among the last {config.patience}: training ends.")
            break
        started = perf_counter()
        size = sizes[epoch]
        loss = _epoch(parts, faces, config, seed=seed, epoch=epoch, size=size)
        mae = _mae(average, faces)
        if mae < best_mae:
            best, best_mae = copy.deepcopy(average.state_dict()), mae
        seconds = perf_counter() - started
        curve.append({"epoch": epoch + 1, "size": size, "loss": loss, "validation_mae": mae, "seconds": seconds})
        held = {name: part.state_dict() for name, part in parts._asdict().items()}
        with replacing(checkpoint) as aside:
            torch.save(held | {"best": best, "best_mae": best_mae, "curve": curve}, aside)
        pd.DataFrame(curve).to_csv(run / "curve.csv", index=False)
        # At most: as this epoch took, but for the pixels.
        left = seconds / 60 * sum((later / size) ** 2 for later in sizes[epoch + 1 :])
        log(
            f"epoch {epoch + 1}/{config.epochs}, {size} px: loss {loss:.3f}, validation MAE {mae:.2f}, {seconds:.0f} s;"
            f" at most {left:.0f} min left"
        )
    network.load_state_dict(best)
    network.eval()


def soft_labels(ages: Tensor, years: Tensor, sigma: float) -> Tensor:
    """Normal distributions around ages (n,) over the bins (bins,), each row summing to 1; sigma in years."""
    return (-((years - ages.clamp(years[0], years[-1])[:, None]) ** 2) / (2 * sigma**2)).softmax(dim=1)


def _parts(network: AgeNetwork, config: TrainConfig, *, steps: int) -> _Parts:
    network.to(memory_format=torch.channels_last)
    groups = param_groups_layer_decay(network.members[0], config.weight_decay, layer_decay=config.layer_decay)
    rates = [config.learning_rate * group.pop("lr_scale") for group in groups]
    optimizer = torch.optim.AdamW(groups)
    total = max(1, steps * config.epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=0.15)
    return _Parts(network, ModelEmaV3(network, decay=config.ema_decay, use_warmup=True), optimizer, schedule)


def _epoch(parts: _Parts, faces: Faces, config: TrainConfig, *, seed: int, epoch: int, size: int) -> float:
    """Go through the split `train` once, at `size` pixels; returns the mean loss."""
    network, average, optimizer, schedule = parts
    train = faces.rows("train")
    random = np.random.default_rng((seed, epoch))
    torch.manual_seed(seed * 1000 + epoch)
    order = epoch_order(faces, train, config.source_power, random)
    steps = len(train) // config.batch_size  # as the schedule counts them; the order may be a few rows longer
    [member] = network.members
    years = network.years
    network.train()
    total = 0.0
    for step in range(steps):
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        chips = torch.from_numpy(np.stack([augment(faces.chips[row], random, size=size) for row in rows]))
        normal = network.normalise(chips).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            logits = member(normal).float()
        ages = torch.from_numpy(faces.ages(rows))
        cross_entropy = -(soft_labels(ages, years, config.label_sigma) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        distance = (logits.softmax(dim=1) @ years - ages.clamp(years[0], years[-1])).abs().mean()
        loss = cross_entropy + 0.1 * distance  # brings years to the scale of nats
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update(network, step=epoch * steps + step)
        total += loss.item()
    return total / max(steps, 1)


def epoch_order(
    faces: Faces, train: npt.NDArray[np.intp], power: float, random: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Rows of an epoch of at least len(train) faces: sources in proportion to their size to the power.

    A source is gone through in full rounds, so that none of its faces is drawn twice before all were drawn once.
    """
    sources = faces.table["source"].to_numpy()[train]
    names, sizes = np.unique(sources, return_counts=True)
    quotas = np.ceil(len(train) * sizes**power / (sizes**power).sum()).astype(int)
    drawn = []
    for name, size, quota in zip(names, sizes, quotas, strict=True):
        rounds = [random.permutation(train[sources == name]) for _ in range(-(-quota // size))]
        drawn.append(np.concatenate(rounds)[:quota])
    return random.permutation(np.concatenate(drawn))


def _mae(network: AgeNetwork, faces: Faces) -> float:
    network.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        ages = [
            (network(torch.from_numpy(chips)).float() @ network.years).float() for chips in faces.batches("validation")
        ]
    return float(np.abs(torch.cat(ages).numpy() - faces.true("validation")).mean())
