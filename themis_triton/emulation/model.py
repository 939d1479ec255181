"""The generic emulated model; only Triton's Python backend can import it, which provides `triton_python_backend_utils`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from themis_triton.emulation.controls import ScaleFile, init_must_fail
from themis_triton.emulation.device import DeviceSeat, instance_device, table_directory
from themis_triton.emulation.parameters import Parameters, read_parameters
from themis_triton.emulation.process_start import process_start_left_s
from themis_triton.emulation.service import Service, noise_factors

AROUND_S = 0.0005
"""The time of a batch outside `execute`, from Triton's start timestamp to its end timestamp.

Measured on a server processor: 0.1 to 0.2 ms until `execute`, 0.3 ms after it. The time inside `execute` is measured separately.
"""


class TritonPythonModel:
    """Responds `OUTPUT = INPUT·2 + offset` after the surface's service time for the batch size and the contention."""

    def initialize(self, args: dict[str, str]) -> None:
        """Take a seat at the emulated device, `init_s` seconds after the server's process start.

        Fails like a device without memory if the controls say so.
        """
        model = args["model_name"]
        parameters = read_parameters(model, json.loads(args["model_config"]))
        time.sleep(process_start_left_s(os.getppid(), os.environ) + parameters.init_s)
        device = instance_device(args["model_instance_name"], model)
        fail_path = parameters.fail_init_path(os.environ)
        if fail_path is not None and init_must_fail(fail_path, model):
            raise pb_utils.TritonModelException(f"out of memory: {model} could not be placed on {device} (requested by {fail_path})")
        self._offset = np.float32(parameters.offset)
        self._seat = DeviceSeat(device, table_directory())
        noise = noise_factors(parameters.noise_cv, args["model_instance_name"])
        self._service = Service(parameters.surface, self._seat, _scale(parameters, model), noise, AROUND_S)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Serve the requests as one batch of the sum of their batch dimensions."""
        begun_s = time.perf_counter()
        inputs = [pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() for request in requests]
        answers = [self._answer(array) for array in inputs]
        self._service.serve(sum(array.shape[0] for array in inputs), begun_s)
        return answers

    def _answer(self, array: np.ndarray[Any, np.dtype[np.float32]]) -> Any:  # noqa: ANN401 - the backend's types have no stubs
        output = (array * np.float32(2) + self._offset).astype(np.float32, copy=False)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT", output)])

    def finalize(self) -> None:
        """Release the seat."""
        self._seat.close()


def _scale(parameters: Parameters, model: str) -> Callable[[], float]:
    path = parameters.scale_path(os.environ)
    return (lambda: 1.0) if path is None else ScaleFile(path, model, pb_utils.Logger.log_warn)
