"""A client that reads the text in an image: detect → classify → recognise, one request per stage with all crops in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ocr_pipeline import pipeline
from ocr_pipeline.errors import OcrError

DETECT, CLASSIFY, RECOGNISE = "ocr-detect", "ocr-classify", "ocr-recognise"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text.

    Attributes:
        text: the characters.
        score: mean probability of its characters, 0..1.
        corners: its corners in the image, (x, y) in pixels: top left, top right, bottom right, bottom left.
    """

    text: str
    score: float
    corners: tuple[tuple[float, float], ...]


async def read_text(grpc_address: str, image: NDArray[np.uint8]) -> list[TextLine]:
    """The lines in an image, in reading order.

    Args:
        grpc_address: host:port of a Triton server or of the proxy before it.
        image: uint8 [height, width, 3], in OpenCV's BGR order.

    Raises:
        OcrError: a stage did not answer, or answered with an error; the message names the stage and the address.
        ValueError: the image has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image is uint8 [height, width, 3], found {image.dtype} {list(image.shape)}")
    async with triton.InferenceServerClient(grpc_address) as client:
        return await _Reader(client, grpc_address).read(image)


class _Reader:
    def __init__(self, client: triton.InferenceServerClient, address: str) -> None:
        self._client = client
        self._address = address

    async def read(self, image: pipeline.Image) -> list[TextLine]:
        probability = (await self._infer(DETECT, pipeline.detector_input(image), ["PROBABILITY"]))["PROBABILITY"]
        boxes = pipeline.boxes(probability[0, 0], (image.shape[0], image.shape[1]))
        if not boxes:
            return []
        crops = [pipeline.crop(image, box) for box in boxes]
        turned = await self._infer_all(CLASSIFY, pipeline.classifier_input(crops), ["PROBABILITY"])
        lines = pipeline.upright(crops, turned["PROBABILITY"])
        read = await self._infer_all(RECOGNISE, pipeline.recogniser_input(lines), ["TEXT", "SCORE"])
        return [
            TextLine(text.decode(), float(score), tuple((float(x), float(y)) for x, y in box.corners()))
            for text, score, box in zip(read["TEXT"][:, 0], read["SCORE"][:, 0], boxes, strict=True)
            if text
        ]

    async def _infer_all(self, model: str, batch: pipeline.Floats, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The outputs of as few requests as the model's maximum batch size allows."""
        limit = await self._max_batch(model)
        parts = [batch[start : start + limit] for start in range(0, len(batch), limit)]
        answers = await asyncio.gather(*(self._infer(model, part, outputs) for part in parts))
        return {name: np.concatenate([answer[name] for answer in answers]) for name in outputs}

    async def _max_batch(self, model: str) -> int:
        try:
            answer = await self._client.get_model_config(model, client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._failed(model, error) from error
        return max(1, int(answer.config.max_batch_size))

    async def _infer(self, model: str, batch: pipeline.Floats, outputs: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        tensor = triton.InferInput("INPUT", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        requested = [triton.InferRequestedOutput(name) for name in outputs]
        try:
            answer = await self._client.infer(model, [tensor], outputs=requested, client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._failed(model, error) from error
        return {name: answer.as_numpy(name) for name in outputs}

    def _failed(self, model: str, error: Exception) -> OcrError:
        return OcrError(f"{model} at {self._address} did not answer: {error}; check that the OCR models are served there")
