"""The same net and the same step of SGD in PyTorch, as fast as PyTorch makes them.

Channels-last, `torch.compile`, autocast for bfloat16, fused SGD. It knows the nets of Figure 3:
dense code, no normalisation, no corruption.
"""

from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from air_jax.models.architecture import Architecture
from air_jax.models.net import Net, architecture_of
from air_jax.training.optimizer import learning_rate


class PeerNet(nn.Module):
    """`autoencoder.Autoencoder` in PyTorch, its parameters taken over.

    Args:
        net: whose parameters and standardisation are copied.
        model: `config.model` of it.
    """

    def __init__(self, net: Net, model: ml_collections.ConfigDict):
        super().__init__()
        encoder, decoder = net.params["encoder"], net.params["decoder"]
        architecture = architecture_of(model, (32, 32, 3))
        assert isinstance(architecture, Architecture)
        layers, self.skip = architecture.layers, architecture.skip
        self.pooled_after = architecture.pooled_after
        self.upsampled_before = architecture.upsampled_before
        self.convs = nn.ModuleList(conv(encoder["convs"][i]["conv"]) for i in range(layers))
        self.project = linear(encoder["project"])
        self.expand = linear(decoder["expand"])
        self.deconvs = nn.ModuleList(conv(decoder["deconvs"][i]["conv"]) for i in range(layers - 1))
        self.to_image = conv(decoder["to_image"]["conv"])
        self.register_buffer("mean", torch.tensor(np.array(net.mean)))
        self.register_buffer("std", torch.tensor(np.array(net.std)))

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Mean squared error [] of uint8 images [B, S, S, C] (eq 4, 5)."""
        target = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        return functional.mse_loss(self(target).float(), target)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Standardised images [B, C, S, S], channels last in memory -> their reconstructions."""
        maps, first = [images], None
        for layer, convolve in enumerate(self.convs, start=1):
            x = convolve(maps[-1])
            if self.skip == "asymmetric" and layer >= 2 and layer % 2 == 0:
                x = x + first
            x = functional.relu(x)
            if layer == 1:
                first = x
            if layer in self.pooled_after:
                first = functional.max_pool2d(first, 2)
                x = first if layer == 1 else functional.max_pool2d(x, 2)
            maps.append(x)
        # Flattened in the order of the Flax net: rows, columns, channels.
        codes = self.project(maps[-1].permute(0, 2, 3, 1).flatten(1))
        batch, channels, *sides = maps[-1].shape
        x = self.expand(codes).view(batch, *sides, channels).permute(0, 3, 1, 2)
        for layer, deconv in enumerate(self.deconvs, start=1):
            if layer in self.upsampled_before:
                x = functional.interpolate(x, scale_factor=2)
            x = deconv(x)
            if layer % 2 and self.skip == "symmetric":
                x = x + maps[len(self.deconvs) + 1 - layer]
            x = functional.relu(x)
        if len(self.deconvs) + 1 in self.upsampled_before:
            x = functional.interpolate(x, scale_factor=2)
        return self.to_image(x)


def conv(params: Any) -> nn.Conv2d:
    """A convolution with our kernel, and our bias if there is one."""
    kernel = np.array(params["kernel"])
    height, width, channels_in, channels_out = kernel.shape
    bias = "bias" in params
    made = nn.Conv2d(channels_in, channels_out, (height, width), padding="same", bias=bias)
    made.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
    if bias:
        made.bias.data = torch.tensor(np.array(params["bias"]))
    return made


def linear(params: Any) -> nn.Linear:
    """A dense layer with our kernel, and our bias if there is one."""
    kernel, bias = np.array(params["kernel"]), "bias" in params
    made = nn.Linear(*kernel.shape, bias=bias)
    made.weight.data = torch.tensor(kernel.T.copy())
    if bias:
        made.bias.data = torch.tensor(np.array(params["bias"]))
    return made


def rates_of_steps(train: ml_collections.ConfigDict, total_steps: int) -> list[float]:
    """Our learning rate at each step."""
    rate = learning_rate(train, total_steps)
    return [float(rate(step)) for step in range(total_steps)]


def make_step(
    net: Net, config: ml_collections.ConfigDict, total_steps: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """A function that trains, as `step.train_step` does, and the number of parameters it trains.

    Args:
        net: its parameters are where training starts.
        config: `model` and `train` are read; bfloat16 is by autocast.
        total_steps: of the learning rate's schedule.

    Returns:
        step(images uint8 [B, S, S, C], on the device or not) -> loss [], not yet waited for on a
        GPU; and the count.

    Raises:
        ValueError: the peer knows no such net.
    """
    model, train = config.model, config.train
    known = {"code": "dense", "norm": "none", "input_residual": False, "skip_into": "encoder"}
    for key, value in known.items():
        if model[key] != value:
            raise ValueError(f"model.{key}={model[key]!r}: the PyTorch peer knows only {value!r}")
    if train.corruption != "none":
        raise ValueError(f"train.corruption={train.corruption!r}: the PyTorch peer knows only none")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = PeerNet(net, model).to(device, memory_format=torch.channels_last)
    parameters = list(peer.parameters())
    optimizer = torch.optim.SGD(
        parameters,
        lr=torch.tensor(train.learning_rate),
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        fused=True,
    )
    rates = rates_of_steps(train, total_steps)
    loss_of = torch.compile(peer.loss)
    done = 0

    def step(images: torch.Tensor) -> torch.Tensor:
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=train.dtype == "bfloat16"):
            loss = loss_of(images.to(device))
        loss.backward()
        if train.clip_norm:
            nn.utils.clip_grad_norm_(parameters, train.clip_norm)
        optimizer.param_groups[0]["lr"].fill_(rates[min(done, total_steps - 1)])
        optimizer.step()
        done += 1
        return loss.detach()

    return step, sum(p.numel() for p in parameters)
