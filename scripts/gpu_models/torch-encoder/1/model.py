"""A transformer encoder of twelve layers with random weights: the arithmetic of a text encoder, without its knowledge."""

from __future__ import annotations

from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch import nn

WIDTH, HEADS, LAYERS, TOKENS, VOCABULARY = 768, 12, 12, 128, 30_000


def network() -> nn.Module:
    """Embedding and encoder."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False))


class TritonPythonModel:
    """Runs on the instance's GPU, or on the CPU where the instance is one of KIND_CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the network and run it once, so that the first request does not wait for kernels."""
        torch.manual_seed(0)
        self._device = torch.device("cuda:0" if args["model_instance_kind"] == "GPU" else "cpu")
        self._network = network().eval().to(self._device)
        self._run(torch.zeros(1, TOKENS, dtype=torch.int64))

    def execute(self, requests: list[Any]) -> list[Any]:
        """All requests as one batch; the mean over the tokens is the embedding."""
        inputs = [torch.from_numpy(pb_utils.get_input_tensor_by_name(request, "TOKENS").as_numpy()) for request in requests]
        found = self._run(torch.cat(inputs)).split([len(each) for each in inputs])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", each.numpy())]) for each in found]

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._network(batch.to(self._device)).mean(dim=1).cpu()
