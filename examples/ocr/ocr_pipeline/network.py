"""The networks: ONNX files of an installed package, run with onnxruntime on one thread."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ocr_pipeline.errors import OcrError

_PACKAGE = "rapidocr_onnxruntime"
_FIX = "Fix: pip install -r examples/ocr/requirements.txt"


def network_file(part: str, package: str = _PACKAGE) -> Path:
    """The ONNX file of a part (`det`, `cls` or `rec`) within the installed package, which is located but not imported.

    Raises:
        OcrError: the package is not installed, or does not hold exactly one such file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise OcrError(f"the Python package {package}, which holds the networks, is not installed. {_FIX}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob(f"*_{part}_*.onnx"))
    if len(files) != 1:
        raise OcrError(f"{folder}: {[file.name for file in files]}: expected one file *_{part}_*.onnx. {_FIX}")
    return files[0]


class Network:
    """One network on one core: onnxruntime's own thread pools would let each instance take the whole machine."""

    def __init__(self, part: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(network_file(part)), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's only output for a batch."""
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)

    def metadata(self, key: str) -> str:
        """A metadata value of the ONNX file."""
        return str(self._session.get_modelmeta().custom_metadata_map[key])
