"""A residual CNN of sixteen blocks with random weights: the arithmetic of an image classifier, without its knowledge."""

from __future__ import annotations

from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch import nn

WIDTHS = (64, 128, 256, 512)
BLOCKS = 4


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(entering, leaving, 3, stride, 1, bias=False),
            nn.BatchNorm2d(leaving),
            nn.ReLU(),
            nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False),
            nn.BatchNorm2d(leaving),
        )
        same = stride == 1 and entering == leaving
        self.shortcut = nn.Identity() if same else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        return torch.relu(self.body(x) + self.shortcut(x))


def network() -> nn.Module:
    """Stem, four widths of four blocks, and a head."""
    parts: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    entering = WIDTHS[0]
    for width in WIDTHS:
        for index in range(BLOCKS):
            parts.append(Block(entering, width, 2 if index == 0 and width != WIDTHS[0] else 1))
            entering = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(entering, 1000))


class TritonPythonModel:
    """Runs on the instance's GPU, or on the CPU where the instance is one of KIND_CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the network and run it once, so that the first request does not wait for kernels."""
        torch.manual_seed(0)
        self._device = torch.device("cuda:0" if args["model_instance_kind"] == "GPU" else "cpu")
        self._network = network().eval().to(self._device)
        self._run(torch.zeros(1, 3, 224, 224))

    def execute(self, requests: list[Any]) -> list[Any]:
        """All requests as one batch."""
        inputs = [torch.from_numpy(pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()) for request in requests]
        scores = self._run(torch.cat(inputs)).split([len(each) for each in inputs])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", each.numpy())]) for each in scores]

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._network(batch.to(self._device)).cpu()
