"""The step that compares views of images, in PyTorch: the same net, views, loss and optimiser.

Channels-last, fused AdamW; compiled by `torch.compile` or not. It knows the plain convolutional
encoder without residual blocks and the decoupled contrastive loss.
"""

import math
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from air_jax.data import augmentation
from air_jax.models.net import Net
from air_jax.training.optimizer import SECOND_MOMENT
from benchmarks.torch_peer import conv, linear, rates_of_steps

TEMPERATURE = 0.2  # as `objectives.contrastive`
IMAGE_SIDE = 32


class PeerEmbedder(nn.Module):
    """`conv_net.Embedder` in PyTorch, its parameters taken over.

    Args:
        net: whose parameters and standardisation are copied.
    """

    def __init__(self, net: Net):
        super().__init__()
        stages = net.params["encoder"]["stages"]
        layers: list[nn.Module] = []
        for stage in sorted(stages):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for block in sorted(stages[stage]):
                layer = stages[stage][block]["convs"][0]
                layers += [conv(layer["conv"]), _norm(layer["norm"], nn.BatchNorm2d), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        projector = net.params["projector"]
        self.projector = nn.Sequential(
            linear(projector["expand"]),
            _norm(projector["norm"], nn.BatchNorm1d),
            nn.ReLU(),
            linear(projector["reduce"]),
        )
        self.register_buffer("mean", torch.tensor(np.array(net.mean)))
        self.register_buffer("std", torch.tensor(np.array(net.std)))

    def loss(self, views: torch.Tensor) -> torch.Tensor:
        """The decoupled contrastive loss [] of views [B, V, s, s, C] in [0, 1]."""
        batch, count = views.shape[:2]
        pixels = ((views.flatten(0, 1) - self.mean) / self.std).permute(0, 3, 1, 2)
        codes = self.encoder(pixels.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        z = functional.normalize(self.projector(codes).float(), dim=1)
        similarities = z @ z.T / TEMPERATURE
        image = torch.arange(batch, device=z.device).repeat_interleave(count)
        same = image[:, None] == image
        other_view = same ^ torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = (similarities * other_view).sum(1) / (count - 1)
        negative = similarities.masked_fill(same, -torch.inf).logsumexp(1)
        return (negative - positive).mean()


def _norm(params: Any, kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]) -> nn.Module:
    norm = kind(len(params["scale"]))
    norm.weight.data = torch.tensor(np.array(params["scale"]))
    norm.bias.data = torch.tensor(np.array(params["bias"]))
    return norm


def random_views(
    images: torch.Tensor, views: int, size: int, area: tuple[float, float]
) -> torch.Tensor:
    """`augmentation.random_views` in PyTorch: [B, S, S, C] uint8 -> [B, V, size, size, C]."""
    pixels, device = images.float() / 255, images.device
    shape, side = (len(images), views), images.shape[1]

    def uniform(low: float, high: float, *more: int) -> torch.Tensor:
        return torch.empty(*shape, *more, device=device).uniform_(low, high)

    areas = uniform(*area)
    aspects = uniform(*map(math.log, augmentation.ASPECTS)).exp()
    heights = side * (areas / aspects).sqrt().clamp(max=1)
    widths = side * (areas * aspects).sqrt().clamp(max=1)

    def resampling(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        grid = torch.arange(size, device=device) + 0.5
        centres = starts[..., None] + grid * lengths[..., None] / size - 0.5
        apart = (centres.clamp(0, side - 1)[..., None] - torch.arange(side, device=device)).abs()
        weights = (1 - apart / (lengths / size).clamp(min=1)[..., None, None]).clamp(min=0)
        return weights / weights.sum(-1, keepdim=True)

    rows = resampling(uniform(0, 1) * (side - heights), heights)
    columns = resampling(uniform(0, 1) * (side - widths), widths)
    mirrored = uniform(0, 1, 1, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(2), columns)
    crops = torch.einsum("bvoi,bijc->bvojc", rows, pixels)
    crops = torch.einsum("bvpj,bvojc->bvopc", columns, crops)

    jittered = uniform(0, 1) < augmentation.JITTERED

    def factor(most: float) -> torch.Tensor:
        return torch.where(jittered, uniform(1 - most, 1 + most), 1.0)

    crops = crops * factor(augmentation.BRIGHTNESS)[..., None, None, None]
    means = crops.mean((2, 3, 4), keepdim=True)
    crops = (crops - means) * factor(augmentation.CONTRAST)[..., None, None, None] + means
    strength = factor(augmentation.SATURATION) * (uniform(0, 1) >= augmentation.GREY)
    turns = torch.where(jittered, uniform(-augmentation.HUE, augmentation.HUE), 0.0)
    cos, sin = strength * (2 * math.pi * turns).cos(), strength * (2 * math.pi * turns).sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turned = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], -1).unflatten(
        -1, (3, 3)
    )
    to_yiq = torch.tensor(augmentation.TO_YIQ, device=device)
    matrices = (to_yiq.inverse() @ turned @ to_yiq).mT
    return (crops.flatten(2, 3) @ matrices).unflatten(2, (size, size)).clamp(0, 1)


def make_step(
    net: Net, config: ml_collections.ConfigDict, total_steps: int, compiled: bool
) -> tuple[Callable[[torch.Tensor], torch.Tensor], PeerEmbedder]:
    """A function that trains as `step.train_step` does, and the net that it trains.

    Args:
        net: its parameters are where training starts.
        config: `model` and `train` are read; bfloat16 is by autocast.
        total_steps: of the learning rate's schedule.
        compiled: whether by `torch.compile`.

    Returns:
        step(images uint8 [B, S, S, C]) -> loss [], not yet waited for on a GPU; and the net.

    Raises:
        ValueError: the peer knows no such net or objective.
    """
    model, train = config.model, config.train
    for key, found, known in (
        ("model.encoder", model.encoder, "conv"),
        ("model.residual", model.residual, False),
        ("train.objective", train.objective, "contrastive"),
        ("train.optimizer", train.optimizer, "adamw"),
    ):
        if found != known:
            raise ValueError(f"{key}={found!r}: the PyTorch peer knows only {known!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = PeerEmbedder(net).to(device, memory_format=torch.channels_last)
    matrices = [p for p in peer.parameters() if p.ndim > 1]
    vectors = [p for p in peer.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=torch.tensor(train.learning_rate),
        betas=(train.momentum, SECOND_MOMENT),
        fused=True,
    )
    rates = rates_of_steps(train, total_steps)
    size, area = train.view_size or IMAGE_SIDE, tuple(train.view_area)
    done = 0

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        return peer.loss(random_views(images, train.views, size, area))

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step(images: torch.Tensor) -> torch.Tensor:
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=train.dtype == "bfloat16"):
            loss = loss_of(images.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"].fill_(rates[min(done, total_steps - 1)])
        optimizer.step()
        done += 1
        return loss.detach()

    return step, peer
