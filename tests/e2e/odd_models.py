"""Models of kinds that need care: they refuse made-up inputs or a long queue, have no configuration, or answer with streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import Clients

OWN, FILE, COMPLETED, REJECTS, STREAM = "picky.own", "picky-file", "_completed.v1", "rejects", "stream"
ODD_MODELS = (OWN, FILE, COMPLETED, REJECTS, STREAM)
PARTS = 4
"""Answers of a stream, a quarter of a second apart."""
PAUSE_S = 0.05

_PICKY = """
import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        values = [backend.get_input_tensor_by_name(request, "SIZE").as_numpy() for request in requests]
        refusal = backend.TritonError("SIZE must be positive")
        areas = [backend.InferenceResponse([backend.Tensor("AREA", value * value)]) for value in values]
        return [backend.InferenceResponse(error=refusal) if (value < 1).any() else area for value, area in zip(values, areas)]
"""
OWN_DATA = (
    'model_warmup { name: "real" batch_size: 1 inputs { key: "SIZE" value { data_type: TYPE_FP32 dims: [1] input_data_file: "size" } } }'
)


def picky_model(folder: Path, name: str, more: str = "") -> None:
    """A model that refuses sizes below 1."""
    tensors = 'input [{ name: "SIZE" data_type: TYPE_FP32 dims: [1] }] output [{ name: "AREA" data_type: TYPE_FP32 dims: [1] }]'
    group = "instance_group [{ count: 1 kind: KIND_CPU }]"
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.py").write_text(_PICKY)
    (folder / name / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\nmax_batch_size: 4\n{tensors}\n{group}\n{more}\n')
    (folder / name / "warmup").mkdir()
    (folder / name / "warmup" / "size").write_bytes(np.array([3.0], dtype=np.float32).tobytes())


COMPLETED_CODE = """
import triton_python_backend_utils as backend


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "SIZE", "data_type": "TYPE_FP32", "dims": [1]})
        config.add_output({"name": "AREA", "data_type": "TYPE_FP32", "dims": [1]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        values = [backend.get_input_tensor_by_name(request, "SIZE").as_numpy() for request in requests]
        return [backend.InferenceResponse([backend.Tensor("AREA", value * value)]) for value in values]
"""


_STREAM = """
import time
import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for part in range(int(backend.get_input_tensor_by_name(request, "SIZE").as_numpy().ravel()[0])):
                sender.send(backend.InferenceResponse([backend.Tensor("AREA", np.full((1, 1), part, np.float32))]))
                time.sleep(0.25)
            sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
_REJECT = "dynamic_batching { default_queue_policy { max_queue_size: 4 timeout_action: REJECT default_timeout_microseconds: 200000 } }"
_DECOUPLED = "model_transaction_policy { decoupled: true }"


def odd_models(models: Path, more: Path) -> None:
    """Write `ODD_MODELS`, the one without a configuration to another repository; `real.npz` beside them has the inputs of `FILE`."""
    for name, text in ((OWN, OWN_DATA), (FILE, ""), (REJECTS, f"{OWN_DATA} {_REJECT}"), (STREAM, _DECOUPLED)):
        picky_model(models, name, text)
    (models / STREAM / "1" / "model.py").write_text(_STREAM)
    completed_model(more)
    np.savez(models.parent / "real.npz", SIZE=np.array([2.0], dtype=np.float32))


def completed_model(repository: Path) -> None:
    """A model whose backend completes its configuration."""
    (repository / COMPLETED / "1").mkdir(parents=True)
    (repository / COMPLETED / "1" / "model.py").write_text(COMPLETED_CODE)


@dataclass
class OddCalls(Clients):
    """Calls of all models in turn, each of its own kind; a client is never without an open call for long."""

    turn: int = field(default=0, init=False)

    async def one(self) -> None:
        self.turn += 1
        model, size = ODD_MODELS[self.turn % len(ODD_MODELS)], float(PARTS if self.turn % len(ODD_MODELS) == 4 else 3)
        tensor = tritonclient.grpc.InferInput("SIZE", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[size]], np.float32))
        try:
            answers = await self.stream(tensor) if model == STREAM else [await self.call(model, tensor)]
            if answers != (list(range(PARTS)) if model == STREAM else [size * size]):
                self.wrong.append(f"{model}: {answers}")
        except InferenceServerException as error:
            self.wrong.append(f"{model}: {error}")
        await asyncio.sleep(PAUSE_S)

    async def call(self, model: str, tensor: Any) -> float:
        return float((await self.client.infer(model, [tensor], client_timeout=20.0)).as_numpy("AREA").item())

    async def stream(self, tensor: Any) -> list[float]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": STREAM, "inputs": [tensor]}

        parts: list[float] = []
        async for result, error in self.client.stream_infer(requests(), stream_timeout=20.0):
            if error is not None:
                raise error
            parts.append(float(result.as_numpy("AREA").item()))
        return parts
