"""The network in training: Lightning's module, validation, optimizer, schedule, augmentation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import lightning
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from hashlens.codes.packing import pack_bits
from hashlens.data.preprocessing import Preprocessing, VectorInput
from hashlens.evaluation.metrics import counts_by_distance, expected_average_precision
from hashlens.models.latent import LatentHashNet, LatentOutput
from hashlens.training.config import TrainingConfig
from hashlens.training.data import Batch
from hashlens.training.objectives import Losses, objectives

_LEVELS = 8


class HashModule(lightning.LightningModule):
    """Network, objective, optimizer and validation of one run."""

    mean: torch.Tensor
    deviation: torch.Tensor
    scores: ValidationScores  # of the last epoch

    def __init__(
        self,
        net: LatentHashNet,
        objective: nn.Module,
        config: TrainingConfig,
        preprocessing: Preprocessing | VectorInput,
    ) -> None:
        super().__init__()
        self.net, self.objective, self.config = net, objective, config
        self._folded = {part for part in net.backbone.modules() if is_folded(part)}
        if isinstance(preprocessing, Preprocessing):  # pixels are 0 to 255, channels come last
            mean, std = preprocessing.mean, preprocessing.std
            self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
            self.register_buffer("deviation", 255 * torch.tensor(std), persistent=False)
        self.average: AveragedModel | None = None
        if config.average > 0:
            self.average = AveragedModel(net, multi_avg_fn=self._move, use_buffers=True)
            self.average.requires_grad_(False)
        self._validation: list[tuple[torch.Tensor, ...]] = []

    @property
    def judged(self) -> LatentHashNet:
        """The network that is validated and kept: the average of weights, if there is one."""
        return self.net if self.average is None else cast(LatentHashNet, self.average.module)

    def configure_optimizers(self) -> Any:
        """Optimizer, and its rate step by step."""
        config, total = self.config, int(self.trainer.estimated_stepping_batches)
        optimizer = create_optimizer(self.net, config)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_share(config.schedule, step, total, config.warmup)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "rate"},
        }

    def images(self, batch: Batch, *, augment: bool) -> torch.Tensor:
        """Pixels (b, size, size, channels) uint8 to the network's input (b, channels, ...)."""
        pixels = batch.inputs
        if augment:
            flip = bool(self.config.flip)
            pixels = shift_and_flip(pixels, batch.draws, self.config.crop, flip)
        values = pixels.float()
        if augment and self.config.light:
            values = change_light(values, batch.draws, self.config.light)
        # Convolutions are fastest when the channels stay last in memory.
        images = ((values - self.mean) / self.deviation).permute(0, 3, 1, 2)
        if augment:
            images = rotate_and_zoom(
                images, batch.draws, self.config.rotate or 0.0, self.config.zoom
            )
            images = cut_out(images, batch.draws, self.config.cutout)
        return images.contiguous(memory_format=torch.channels_last)

    def output(self, net: LatentHashNet, batch: Batch, *, augment: bool) -> LatentOutput:
        """Run a network on a batch of pixels, or of features of a frozen backbone."""
        if self.config.freeze_backbone:
            return net.from_features(batch.inputs)
        result: LatentOutput = net(self.images(batch, augment=augment))
        return result

    def train(self, mode: bool = True) -> HashModule:
        """Switch to training, except batch normalisation whose statistics stay frozen."""
        super().train(mode)
        if mode:
            for part in self.net.backbone.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm) and (
                    self.config.freeze_statistics or part in self._folded
                ):
                    part.eval()
        return self

    def on_train_start(self) -> None:
        """Freeze what stays frozen: Lightning keeps each part's mode and never calls ``train``."""
        self.train()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """Loss of a batch."""
        losses = self._losses(self.net, batch, augment=True)
        # Its mean over the epoch and all processes; each batch counts alike.
        mean: dict[str, Any] = {"on_epoch": True, "logger": False, "sync_dist": True}
        loss = losses.classification.detach().float()
        self.log("classification_loss", loss, on_step=False, batch_size=1, **mean)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"train_loss": losses.total.detach().float(), "rate": rate})
        return losses.total

    def _losses(self, net: LatentHashNet, batch: Batch, *, augment: bool) -> Losses:
        """The objective's losses of a batch, or of two views of it."""
        if objectives()[self.config.objective].views == 2:  # the second with a neighbour's draws
            second = batch._replace(draws=batch.draws.roll(1, 0))
            batch = Batch(*map(torch.cat, zip(batch, second, strict=True)))
        output = self.output(net, batch, augment=augment)
        losses: Losses = self.objective(output, batch.targets, net.classifier)
        return losses

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        """Move the average of weights after a step of the optimizer; the last batch has one."""
        done = index + 1
        stepped = done % self.config.accumulate == 0 or done == self.trainer.num_training_batches
        if self.average is not None and stepped:
            self.average.update_parameters(self.net)

    def _move(self, old: Any, new: Any, count: Any) -> None:
        """Move averages towards weights; the first, random ones are left behind quickly."""
        if not old[0].is_floating_point():
            torch._foreach_copy_(old, new)
            return
        steps = self.trainer.global_step
        decay = min(self.config.average, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(old, new, 1 - decay)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Keep the network's output for a validation batch."""
        output = self.output(self.judged, batch, augment=False)
        scores, targets = output.scores.float(), batch.targets
        if not scores.shape[1]:  # without labels
            total = self._losses(self.judged, batch, augment=False).total
            losses = total.float().expand(len(scores))
        elif targets.ndim == 1:
            losses = functional.cross_entropy(scores, targets, reduction="none")
        else:
            losses = functional.binary_cross_entropy_with_logits(
                scores, targets.float(), reduction="none"
            ).mean(dim=1)
        self._validation.append((output.latent.float(), scores, targets, losses))

    def on_validation_epoch_end(self) -> None:
        """Score each validation image once, those of other processes included."""
        parts = [torch.cat(part).cpu() for part in zip(*self._validation, strict=True)]
        self._validation.clear()
        if self.trainer.world_size > 1:  # processes may hold different numbers of images
            shares: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, parts)
            parts = [torch.cat(part) for part in zip(*shares, strict=True)]
        self.scores = validation_scores(*parts)
        # Every process holds the same figures already.
        known = {name: value for name, value in self.scores._asdict().items() if value is not None}
        self.log_dict({f"val_{name}": float(value) for name, value in known.items()})


MAP_QUERIES = 2000
"""Most validation images that are queries; all are the database."""


class ValidationScores(NamedTuple):
    """Scores of one epoch on the validation images."""

    # of the codes, each image searched among all others, in expectation over ties; None without
    # labels, as is the share of images whose highest score is their class (one of their labels)
    map: float | None
    accuracy: float | None
    loss: float  # classification loss, in nats; without labels the objective's own
    stuck_bits: int  # bits that are 0, or 1, for every image
    images: int  # that were counted


def code_map(bits: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean average precision of codes, each image searched among all others."""
    images, width = bits.shape
    if images < 2:
        return 0.0
    codes, labels = pack_bits(bits.numpy()), targets.numpy()
    queries = np.unique(np.linspace(0, images - 1, min(images, MAP_QUERIES)).round().astype(int))
    sizes, good = counts_by_distance(
        codes, codes[queries], labels, labels[queries], bits=width, exclude=queries
    )
    return float(expected_average_precision(sizes, good, images).mean())


def validation_scores(
    latent: torch.Tensor, scores: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor
) -> ValidationScores:
    """Score a model's output for the validation images."""
    bits = latent >= 0
    ones = bits.float().mean(dim=0)
    mean_precision = accuracy = None
    if scores.shape[1]:
        best = scores.argmax(dim=1)
        right = best == targets if targets.ndim == 1 else targets.gather(1, best[:, None])[:, 0]
        mean_precision, accuracy = code_map(bits, targets), float(right.float().mean())
    return ValidationScores(
        map=mean_precision,
        accuracy=accuracy,
        loss=float(losses.mean()),
        stuck_bits=int(((ones == 0) | (ones == 1)).sum()),
        images=len(latent),
    )


def create_optimizer(net: LatentHashNet, config: TrainingConfig) -> torch.optim.Optimizer:
    """Create the optimizer that a configuration asks for.

    Rates: the latent layer's is the base; F8's and the backbone's are multiples of it, and the
    backbone's falls geometrically towards its first layer (``layer_decay``). Biases and
    normalisation weights are not decayed.
    """
    groups = parameter_groups(net, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    nesterov = config.schedule != "step" and config.momentum > 0
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov
    )


def parameter_groups(net: LatentHashNet, config: TrainingConfig) -> list[dict[str, Any]]:
    """Weights by rate and decay."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    backbone = [name for name, _ in net.named_parameters() if name.startswith("backbone.")]
    place = {name: index / max(1, len(backbone) - 1) for index, name in enumerate(backbone)}
    for name, weight in net.named_parameters():
        if not weight.requires_grad:
            continue
        rate = config.learning_rate
        if name in place:
            below = round((1 - place[name]) * _LEVELS) / _LEVELS
            rate *= config.backbone_rate * config.layer_decay**below
        elif name.startswith(("classifier.", "feature_classifier.")):
            rate *= config.classifier_rate
        if name.endswith("bias"):
            rate *= config.bias_rate
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]


def rate_share(schedule: str, step: int, total: int, warmup: float = 0.0) -> float:
    """Share of the peak learning rate at a step."""
    if schedule == "step":
        return 1.0 if 2 * step < total else 0.1
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    left = max(0.0, (total - step) / max(total - rise, 1.0))
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(left, 1.0)))
    return min(left, 1.0)


def shift_and_flip(
    pixels: torch.Tensor, draws: torch.Tensor, crop: float, flip: bool
) -> torch.Tensor:
    """Shift each image, its border mirrored, and mirror half of them: one gather."""
    size = pixels.shape[1]
    reach = round(crop * size)
    if reach == 0 and not flip:
        return pixels
    line = torch.arange(size, device=pixels.device)
    shifts = (draws[:, 1:3] * (2 * reach + 1)).long() - reach
    columns, rows = line + shifts[:, :1], line + shifts[:, 1:2]
    if flip:
        columns = torch.where(draws[:, :1] >= 0.5, size - 1 - columns, columns)
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels[images, _reflect(rows, size)[:, :, None], _reflect(columns, size)[:, None, :]]


def _reflect(places: torch.Tensor, size: int) -> torch.Tensor:
    last = size - 1
    return last - (last - places.abs()).abs()


def rotate_and_zoom(
    images: torch.Tensor, draws: torch.Tensor, degrees: float, zoom: float = 0.0
) -> torch.Tensor:
    """Turn each image and scale it by up to a tenth, or zoom into a part; gaps are mirrored.

    With ``zoom`` z the part's sides are 1 - z to 1 of the image's, their ratio up to 4:3, its place
    is drawn.
    """
    if degrees == 0 and zoom == 0:
        return images
    wide = high = torch.ones_like(draws[:, 0])
    angle = torch.zeros_like(wide)
    if degrees:
        angle = (2 * draws[:, 3] - 1) * math.radians(degrees)
        wide = high = 0.9 + 0.2 * draws[:, 4]
    right = down = torch.zeros_like(wide)
    if zoom:
        side = 1 - zoom * draws[:, 5]
        stretch = (4 / 3) ** (draws[:, 6] - 0.5)
        part = torch.stack([side * stretch, side / stretch]).clamp(max=1.0)
        right, down = (1 - part) * (2 * draws[:, 7:9].T - 1)
        wide, high = wide * part[0], high * part[1]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    turns = torch.stack(
        [cosine * wide, -sine * high, right, sine * wide, cosine * high, down], dim=1
    ).view(-1, 2, 3)
    grid = functional.affine_grid(turns.to(images.dtype), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def change_light(values: torch.Tensor, draws: torch.Tensor, strength: float) -> torch.Tensor:
    """Multiply brightness, contrast and saturation, each by 1 - strength to 1 + strength.

    ``values`` (b, size, size, channels) and the result are 0 to 255.
    """
    bright, contrast, colour = (1 + strength * (2 * draws[:, 9:12].T.to(values.dtype) - 1)).view(
        3, -1, 1, 1, 1
    )
    values = values * bright
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    grey = values.mean(dim=3, keepdim=True)
    values = mean + contrast * (grey - mean + colour * (values - grey))
    return values.clamp(0, 255)


def cut_out(images: torch.Tensor, draws: torch.Tensor, share: float) -> torch.Tensor:
    """Blank a square of each image, with sides of this share of the image's (DeVries, 2017)."""
    size = images.shape[-1]
    side = round(share * size)
    if side == 0:
        return images
    line = torch.arange(size, device=images.device)
    first = (draws[:, 12:14] * (size - side + 1)).long()[:, :, None]
    inside = (line >= first) & (line < first + side)
    blank = inside[:, 1, :, None] & inside[:, 0, None, :]
    return images.masked_fill(blank[:, None], 0.0)


def freeze_first(backbone: nn.Module, share: float) -> None:
    """Keep this share of a backbone's weights, from the image on, as they are."""
    weights = list(backbone.parameters())
    for weight in weights[: round(share * len(weights))]:
        weight.requires_grad_(False)


def is_folded(part: nn.Module) -> bool:
    """Whether a batch normalisation's statistics are folded into its neighbours.

    Such a part has mean 0 and variance 1 - eps, so that it only scales and shifts. Statistics of
    a batch would undo what the weights before it were scaled for, so they stay frozen whatever the
    recipe says. A new part has a variance of exactly 1.
    """
    if not isinstance(part, nn.modules.batchnorm._BatchNorm) or part.running_var is None:
        return False
    mean, variance = part.running_mean, part.running_var
    folded = mean is not None and (mean == 0).all()
    return bool(folded and ((variance - (1 - part.eps)).abs() < part.eps / 2).all())
