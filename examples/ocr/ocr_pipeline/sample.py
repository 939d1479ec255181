"""A test image with known text, drawn with Pillow's built-in font."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SAMPLE_LINES = ("TWO SCALES, ONE SERVICE", "Triton serves 183 requests", "within 300 milliseconds")
_FONT_SIZE = 32
_LINE_PITCH = 64
_MARGIN = 32
_WIDTH = 640


def render_sample(lines: Sequence[str] = SAMPLE_LINES, *, upside_down: bool = False) -> NDArray[np.uint8]:
    """The lines in black on white, one under the other: uint8 [height, 640, 3]. Upside down, the whole image is turned by 180°."""
    image = Image.new("RGB", (_WIDTH, 2 * _MARGIN + _LINE_PITCH * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_FONT_SIZE)
    for row, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + row * _LINE_PITCH), line, fill="black", font=font)
    # Black on white is the same in RGB and in BGR order.
    return np.asarray(image.rotate(180) if upside_down else image, dtype=np.uint8)
