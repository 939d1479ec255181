"""Pre- and postprocessing between the stages: images to model inputs, model outputs to boxes and crops.

The three models are PaddleOCR's: a differentiable-binarisation detector (Liao et al., 2020), a classifier of upside-down lines
and a CTC recogniser. Images are uint8 [height, width, 3] in BGR order throughout; model inputs are float32 [n, 3, height, width] in -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocr_pipeline.errors import OcrError

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

LINE_HEIGHT = 48
_CLASSIFY_WIDTH = 192
_STRIDE = 32
_LONGEST_SIDE = 960
_SHORTEST_SIDE = 64
_RECOGNISE_MIN_WIDTH = 320
_RECOGNISE_MAX_WIDTH = 2400
_TEXT_THRESHOLD = 0.3
_BOX_THRESHOLD = 0.5
_GROWTH = 2.0
_MIN_BOX_SIDE = 3.0
_UPRIGHT_RATIO = 1.5
_UPSIDE_DOWN_THRESHOLD = 0.9


@dataclass(frozen=True, slots=True)
class Box:
    """A line of text: a rectangle in pixels of the image; `angle` is how far, in degrees clockwise, the reading direction is from level."""

    centre: tuple[float, float]
    width: float
    height: float
    angle: float

    def corners(self) -> Floats:
        """Top left, top right, bottom right, bottom left: float32 [4, 2]."""
        angle = math.radians(self.angle)
        along = np.array((math.cos(angle), math.sin(angle))) * self.width / 2
        down = np.array((-math.sin(angle), math.cos(angle))) * self.height / 2
        centre = np.array(self.centre)
        return np.array((centre - along - down, centre + along - down, centre + along + down, centre - along + down), dtype=np.float32)


def _normalised(image: Image) -> Floats:
    scaled = image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def load_image(path: Path) -> Image:
    """An image file as uint8 [height, width, 3], BGR. Raises OcrError if it is missing or not an image."""
    if not path.is_file():
        raise OcrError(f"{path}: no such file. Fix: give the path of an image")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise OcrError(f"{path}: not an image: expected PNG, JPEG, BMP, TIFF or WebP")
    return np.asarray(image, dtype=np.uint8)


def detector_input(image: Image) -> Floats:
    """The image as [1, 3, height, width], shrunk to at most 960 pixels a side, both sides multiples of the network's stride of 32."""
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    sides = [max(_SHORTEST_SIDE, round(side * scale / _STRIDE) * _STRIDE) for side in (width, height)]
    return _normalised(np.asarray(cv2.resize(image, sides), dtype=np.uint8))[np.newaxis]


def boxes(probability: Floats, image_size: tuple[int, int]) -> list[Box]:
    """The lines in a detector's map, in reading order, in the image's pixels.

    Args:
        probability: [height, width], how likely each pixel belongs to the core of a line.
        image_size: the image's (height, width), to which the boxes are scaled.
    """
    mask = (probability > _TEXT_THRESHOLD).astype(np.uint8)
    contours, _ = cv2.findContours(cv2.dilate(mask, np.ones((2, 2), np.uint8)), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array((image_size[1] / probability.shape[1], image_size[0] / probability.shape[0]), dtype=np.float32)
    candidates = [
        _box(np.asarray(contour, dtype=np.float32).reshape(-1, 2), scale)
        for contour in contours
        if _is_text(probability, np.asarray(contour, dtype=np.int32))
    ]
    return _reading_order([box for box in candidates if box is not None])


def _is_text(probability: Floats, contour: NDArray[np.int32]) -> bool:
    """Whether the map's mean within the contour reaches the threshold."""
    left, top, width, height = cv2.boundingRect(contour)
    inside = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(inside, [contour - np.array((left, top), dtype=np.int32)], (1,))
    part = np.asarray(probability[top : top + height, left : left + width])
    return bool(cv2.mean(part, inside)[0] >= _BOX_THRESHOLD)


def _box(points: Floats, scale: Floats) -> Box | None:
    """The contour's rectangle, grown to the whole line, since the detector marks only its core; None for a speck."""
    _, sides, _ = cv2.minAreaRect(points)
    if min(sides) < _MIN_BOX_SIDE:
        return None
    centre, (width, height), angle = cv2.minAreaRect(points * scale)
    growth = _GROWTH * width * height / (width + height)
    # OpenCV's angle may be off by quarter turns: it is brought to the rectangle nearest to upright.
    quarters = round(angle / 90)
    if quarters % 2:
        width, height = height, width
    return Box((float(centre[0]), float(centre[1])), width + growth, height + growth, angle - 90 * quarters)


def _reading_order(unordered: Sequence[Box]) -> list[Box]:
    """Rows from top to bottom, and each from left to right; a box joins the row whose first box's centre is within half a height."""
    rows: list[list[Box]] = []
    for box in sorted(unordered, key=lambda box: box.centre[1]):
        if rows and box.centre[1] - rows[-1][0].centre[1] < min(box.height, rows[-1][0].height) / 2:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box.centre[0])]


def crop(image: Image, box: Box) -> Image:
    """The box cut out of the image and turned upright; one much higher than wide is taken to be a line that runs upwards."""
    width, height = max(1, round(box.width)), max(1, round(box.height))
    target = np.array(((0, 0), (width, 0), (width, height), (0, height)), dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(box.corners(), target)
    cut = cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    if height >= _UPRIGHT_RATIO * width:
        cut = cv2.rotate(cut, cv2.ROTATE_90_CLOCKWISE)
    return np.asarray(cut, dtype=np.uint8)


def _line_width(line: Image) -> int:
    return math.ceil(LINE_HEIGHT * line.shape[1] / line.shape[0])


def _line_batch(lines: Sequence[Image], width: int) -> Floats:
    """Lines at one height, padded with mid grey to one width: [n, 3, 48, width]."""
    batch = np.zeros((len(lines), 3, LINE_HEIGHT, width), dtype=np.float32)
    for row, line in zip(batch, lines, strict=True):
        own = min(width, _line_width(line))
        row[:, :, :own] = _normalised(np.asarray(cv2.resize(line, (own, LINE_HEIGHT)), dtype=np.uint8))
    return batch


def classifier_input(lines: Sequence[Image]) -> Floats:
    """Crops as [n, 3, 48, 192]."""
    return _line_batch(lines, _CLASSIFY_WIDTH)


def recogniser_input(lines: Sequence[Image]) -> Floats:
    """Crops as [n, 3, 48, width]; the width is the widest crop's in steps of 32, so that requests have shapes in common."""
    widest = min(_RECOGNISE_MAX_WIDTH, max(_line_width(line) for line in lines))
    return _line_batch(lines, max(_RECOGNISE_MIN_WIDTH, math.ceil(widest / _STRIDE) * _STRIDE))


def upright(lines: Sequence[Image], probability: Floats) -> list[Image]:
    """Crops with those turned by 180° which the classifier is sure about; `probability` is [n, 2]: upright, upside down."""
    return [
        np.asarray(cv2.rotate(line, cv2.ROTATE_180), dtype=np.uint8) if upside_down > _UPSIDE_DOWN_THRESHOLD else line
        for line, upside_down in zip(lines, probability[:, 1], strict=True)
    ]
