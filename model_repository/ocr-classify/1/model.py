"""The OCR pipeline's classifier."""

from themis_triton.ocr.models import Classifier as TritonPythonModel

__all__ = ["TritonPythonModel"]
