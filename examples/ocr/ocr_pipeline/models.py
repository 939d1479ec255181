"""The models as Triton's Python backend loads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ocr_pipeline.ctc import alphabet, decode
from ocr_pipeline.network import Network


class _BatchedModel:
    """Concatenates the requests' inputs, runs them through the network as one batch and splits the outputs again."""

    part: str

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network. Raises OcrError if its package is not installed."""
        del args
        self.network = Network(self.part)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The responses of requests that run as one batch; the dynamic batcher combines only inputs of one shape."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() for request in requests]
        ends = np.cumsum([array.shape[0] for array in inputs])[:-1]
        outputs = self.outputs(self.network.run(np.concatenate(inputs)))
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, part[index]) for name, part in parts.items()])
            for index in range(len(inputs))
        ]

    def outputs(self, result: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Output tensors by name, from the network's result."""
        return {"PROBABILITY": result}


class Detector(_BatchedModel):
    """Images [n, 3, height, width] to a map of text cores, PROBABILITY [n, 1, height, width]."""

    part = "det"


class Classifier(_BatchedModel):
    """Crops [n, 3, 48, 192] to PROBABILITY [n, 2]: upright, upside down."""

    part = "cls"


class Recogniser(_BatchedModel):
    """Crops [n, 3, 48, width] to TEXT [n, 1] (UTF-8 bytes) and SCORE [n, 1]."""

    part = "rec"

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network and its alphabet."""
        super().initialize(args)
        self._symbols = alphabet(self.network.metadata("character"))

    def outputs(self, result: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """TEXT and SCORE, decoded here: the probabilities of 6,625 symbols per step would be megabytes per crop."""
        texts, scores = decode(result, self._symbols)
        encoded = np.array([[text.encode()] for text in texts], dtype=np.object_)
        return {"TEXT": encoded, "SCORE": scores[:, np.newaxis]}
