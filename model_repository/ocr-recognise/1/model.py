"""The OCR pipeline's recogniser."""

from themis_triton.ocr.models import Recogniser as TritonPythonModel

__all__ = ["TritonPythonModel"]
