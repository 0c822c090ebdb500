"""The CNN candidate: fine-tuning a network on soft age labels (Gao et al., DLDL-v2, IJCAI 2018)."""

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # public, but not re-exported by name
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from agewatch.augment import augment
from agewatch.dataset import Faces
from agewatch.engine import has_bf16
from agewatch.network import AgeNetwork
from agewatch.recipe import TrainConfig


def fit(
    network: AgeNetwork, faces: Faces, config: TrainConfig, *, seed: int, run: Path, log: Callable[[str], None]
) -> None:
    """Train a network of one member in place and leave it with the averaged weights of the epoch that validated best.

    It stops after `patience` epochs without a better one. `run` gets curve.csv and a checkpoint after every epoch,
    from which a later call continues.
    """
    train, validation = faces.rows("train"), faces.rows("validation")
    network.to(memory_format=torch.channels_last)
    average = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
    steps = len(train) // config.batch_size
    optimizer, schedule = _optimizer(network, config, steps)
    state: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
    best, best_mae = copy.deepcopy(average.module.state_dict()), np.inf
    curve: list[dict[str, float]] = []
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        held = torch.load(checkpoint, weights_only=True)
        for name, part in state.items():
            part.load_state_dict(held[name])
        best, best_mae, curve = held["best"], held["best_mae"], held["curve"]
    for epoch in range(len(curve), config.epochs):
        if epoch - 1 - _best_epoch(curve) >= config.patience:
            log(f"No better epoch among the last {config.patience}: training ends.")
            break
        started = perf_counter()
        size = config.small_size if config.small_size and epoch < config.epochs // 2 else faces.chips.shape[1]
        loss = _epoch(network, average, optimizer, schedule, faces, train, config, seed=seed, epoch=epoch, size=size)
        mae = _mae(average.module, faces, validation)
        if mae < best_mae:
            best, best_mae = copy.deepcopy(average.module.state_dict()), mae
        seconds = perf_counter() - started
        curve.append({"epoch": epoch + 1, "size": size, "loss": loss, "validation_mae": mae, "seconds": seconds})
        held = {name: part.state_dict() for name, part in state.items()}
        _save(checkpoint, **held, best=best, best_mae=best_mae, curve=curve)
        _write_curve(run / "curve.csv", curve)
        log(
            f"epoch {epoch + 1}/{config.epochs}, {size} px: loss {loss:.3f}, validation MAE {mae:.2f}, {seconds:.0f} s;"
            f" at most {_minutes_left(config, curve, faces.chips.shape[1]):.0f} min left"
        )
    network.load_state_dict(best)
    network.eval()


def soft_labels(ages: Tensor, years: Tensor, sigma: float) -> Tensor:
    """Normal distributions around ages (n,) over the bins (bins,), each row summing to 1; sigma in years."""
    return (-((years - ages.clamp(years[0], years[-1])[:, None]) ** 2) / (2 * sigma**2)).softmax(dim=1)


def _best_epoch(curve: list[dict[str, float]]) -> int:
    return int(np.argmin([row["validation_mae"] for row in curve])) if curve else 0


def _minutes_left(config: TrainConfig, curve: list[dict[str, float]], full: int) -> float:
    """The last epoch's time for each epoch to come; the cost of an epoch grows as the pixels."""
    small = config.small_size or full
    pixels = [small**2 if epoch < config.epochs // 2 else full**2 for epoch in range(config.epochs)]
    return curve[-1]["seconds"] / curve[-1]["size"] ** 2 * sum(pixels[len(curve) :]) / 60


def _epoch(
    network: AgeNetwork,
    average: ModelEmaV3,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    faces: Faces,
    train: npt.NDArray[np.intp],
    config: TrainConfig,
    *,
    seed: int,
    epoch: int,
    size: int,
) -> float:
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


def _optimizer(
    network: AgeNetwork, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    [member] = network.members
    groups = param_groups_layer_decay(member, config.weight_decay, layer_decay=config.layer_decay)
    rates = [config.learning_rate * group.pop("lr_scale") for group in groups]
    optimizer = torch.optim.AdamW(groups)
    total = max(1, steps * config.epochs)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=0.15)


def _mae(network: AgeNetwork, faces: Faces, rows: npt.NDArray[np.intp]) -> float:
    network.eval()
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        for start in range(0, len(rows), 64):
            chips = torch.from_numpy(faces.chips[rows[start : start + 64]])
            found.append((network(chips).float() @ network.years).float().numpy())
    return float(np.abs(np.concatenate(found) - faces.ages(rows)).mean())


def _save(path: Path, **content: Any) -> None:
    aside = path.with_suffix(".tmp")
    torch.save(content, aside)
    aside.replace(path)


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)
