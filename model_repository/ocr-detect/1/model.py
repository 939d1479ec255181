"""The OCR pipeline's detector."""

from themis_triton.ocr.models import Detector as TritonPythonModel

__all__ = ["TritonPythonModel"]
