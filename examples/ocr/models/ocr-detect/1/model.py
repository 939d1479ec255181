"""The OCR pipeline's detector."""

import sys
from pathlib import Path

# Triton's Python backend ignores PYTHONPATH; a launched server has links to these files.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ocr_pipeline.models import Detector as TritonPythonModel

__all__ = ["TritonPythonModel"]
