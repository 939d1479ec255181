"""An emulated-device model; its parameters stand in config.pbtxt."""

from themis_triton.emulation.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
