"""The CNN candidate: fine-tuning a network on soft age labels (Gao et al., DLDL-v2, IJCAI 2018)."""

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from agewatch.engine import has_bf16
from agewatch.images import RGB
from agewatch.labels import Faces
from agewatch.network import AgeNetwork

if TYPE_CHECKING:
    from agewatch.train import TrainConfig


def fit(network: AgeNetwork, faces: Faces, config: "TrainConfig", *, run: Path, log: Callable[[str], None]) -> None:
    """Train the network in place and leave it with the averaged weights of the epoch that validated best.

    `run` gets curve.csv and a checkpoint after every epoch, from which a later call continues.
    """
    train, validation = faces.rows("train"), faces.rows("validation")
    network.to(memory_format=torch.channels_last)
    average = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
    steps = len(train) // config.batch_size
    optimizer, schedule = _optimizer(network, config, steps)
    best, best_mae = copy.deepcopy(average.module.state_dict()), np.inf
    curve: list[dict[str, float]] = []
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        held = torch.load(checkpoint, weights_only=True)
        for part, state in (
            (network, "network"),
            (average, "average"),
            (optimizer, "optimizer"),
            (schedule, "schedule"),
        ):
            part.load_state_dict(held[state])
        best, best_mae, curve = held["best"], held["best_mae"], held["curve"]
    for epoch in range(len(curve), config.epochs):
        started = perf_counter()
        loss = _epoch(network, average, optimizer, schedule, faces, train, config, epoch)
        mae = _mae(average.module, faces, validation)
        if mae < best_mae:
            best, best_mae = copy.deepcopy(average.module.state_dict()), mae
        seconds = perf_counter() - started
        curve.append({"epoch": epoch + 1, "loss": loss, "validation_mae": mae, "seconds": seconds})
        _save(
            checkpoint,
            network=network.state_dict(), average=average.state_dict(), optimizer=optimizer.state_dict(),
            schedule=schedule.state_dict(), best=best, best_mae=best_mae, curve=curve,
        )  # fmt: skip
        _write_curve(run / "curve.csv", curve)
        log(f"epoch {epoch + 1}/{config.epochs}: loss {loss:.3f}, validation MAE {mae:.2f}, {seconds:.0f} s")
    network.load_state_dict(best)
    network.eval()


def soft_labels(ages: Tensor, years: Tensor, sigma: float) -> Tensor:
    """Normal distributions around ages (n,) over the bins (bins,), each row summing to 1; sigma in years."""
    return (-((years - ages.clamp(years[0], years[-1])[:, None]) ** 2) / (2 * sigma**2)).softmax(dim=1)


def _epoch(
    network: AgeNetwork,
    average: ModelEmaV3,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    faces: Faces,
    train: npt.NDArray[np.intp],
    config: "TrainConfig",
    epoch: int,
) -> float:
    random = np.random.default_rng((config.seed, epoch))
    torch.manual_seed(config.seed * 1000 + epoch)
    order = random.permutation(train)
    steps = len(order) // config.batch_size
    years = network.years
    network.train()
    total = 0.0
    for step in range(steps):
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        chips = torch.from_numpy(np.stack([augment(faces.chips[row], random) for row in rows]))
        normal = network.normalise(chips).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            logits = torch.stack([member(normal) for member in network.members]).mean(dim=0).float()
        ages = torch.from_numpy(faces.ages(rows))
        probabilities = logits.softmax(dim=1)
        cross_entropy = -(soft_labels(ages, years, config.label_sigma) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        distance = (probabilities @ years - ages.clamp(years[0], years[-1])).abs().mean()
        loss = cross_entropy + 0.1 * distance  # brings years to the scale of nats
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update(network, step=epoch * steps + step)
        total += loss.item()
    return total / max(steps, 1)


def augment(chip: RGB, random: np.random.Generator) -> RGB:
    """A plausible other photograph of the same face: mirrored, moved, turned, exposed or blurred a little."""
    size = chip.shape[0]
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), random.normal(0, 6), random.uniform(0.9, 1.12))
    turn[:, 2] += random.uniform(-0.04, 0.04, 2) * size
    if random.random() < 0.5:
        turn[0] = -turn[0]
        turn[0, 2] += size - 1
    moved = cv2.warpAffine(chip, turn, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if random.random() < 0.2:
        moved = cv2.GaussianBlur(moved, (0, 0), random.uniform(0.5, 1.5))
    if random.random() < 0.1:
        moved = np.repeat(cv2.cvtColor(moved, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    exposure = random.uniform(0.75, 1.25) * random.uniform(0.95, 1.05, 3)
    return np.asarray(np.clip(moved * exposure + random.uniform(-20, 20), 0, 255), dtype=np.uint8)


def _optimizer(
    network: AgeNetwork, config: "TrainConfig", steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    member: Any = network.members[0]
    head = {id(parameter) for parameter in member.get_classifier().parameters()}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in network.parameters():
        groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
    rates = [config.learning_rate * (4 if is_head else 1) for is_head, _ in groups]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if is_matrix else 0.0}
            for (_, is_matrix), parameters in groups.items()
        ]
    )
    total = max(1, steps * config.epochs)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=0.15)


def _mae(network: AgeNetwork, faces: Faces, rows: npt.NDArray[np.intp]) -> float:
    network.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), 128):
            chips = torch.from_numpy(faces.chips[rows[start : start + 128]])
            found.append((network(chips) @ network.years).numpy())
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
