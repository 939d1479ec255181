"""The OCR pipeline's own mathematics: boxes, crops, batches, decoding, and where the networks come from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ocr_pipeline import pipeline
from ocr_pipeline.ctc import alphabet, decode
from ocr_pipeline.errors import OcrError
from ocr_pipeline.network import Network, network_file
from ocr_pipeline.pipeline import Box
from ocr_pipeline.sample import render_sample


@pytest.mark.parametrize(
    ("size", "expected"), [((256, 640), (256, 640)), ((100, 100), (96, 96)), ((3000, 1500), (960, 480)), ((10, 500), (64, 512))]
)
def test_detector_input_is_whole_strides(size: tuple[int, int], expected: tuple[int, int]) -> None:
    batch = pipeline.detector_input(np.full((*size, 3), 255, dtype=np.uint8))
    assert batch.shape == (1, 3, *expected)
    assert batch.dtype == np.float32
    assert batch.min() == batch.max() == 1.0


def probability_of(*rectangles: tuple[int, int, int, int]) -> pipeline.Floats:
    """A map of 100 x 200 with bars (left, top, width, height)."""
    probability = np.zeros((100, 200), dtype=np.float32)
    for left, top, width, height in rectangles:
        probability[top : top + height, left : left + width] = 0.9
    return probability


def test_boxes_are_scaled_to_the_image_and_grown() -> None:
    (box,) = pipeline.boxes(probability_of((20, 30, 100, 10)), (200, 400))
    assert box.centre == pytest.approx((139, 69), abs=3)
    # 200 x 20 in the image, grown by 2·200·20 / 220 on either measure.
    assert (box.width, box.height) == pytest.approx((236, 56), abs=5)
    assert box.angle == 0


def test_boxes_come_in_reading_order_and_specks_do_not() -> None:
    result = pipeline.boxes(probability_of((120, 12, 50, 10), (10, 10, 50, 10), (10, 60, 80, 10), (150, 80, 1, 1)), (100, 200))
    assert len(result) == 3
    for box, centre in zip(result, [(35, 15), (145, 17), (50, 65)], strict=True):
        assert box.centre == pytest.approx(centre, abs=2)


def test_a_faint_region_is_no_text() -> None:
    assert pipeline.boxes(probability_of((20, 30, 100, 10)) * np.float32(0.4), (100, 200)) == []


@pytest.mark.parametrize("angle", [-30, -10, 0, 10, 30])
def test_a_tilted_line_is_cut_out_level(angle: float) -> None:
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    box = Box((150, 100), 120, 30, angle)
    cv2.fillPoly(image, [box.corners().astype(np.int32)], (0, 0, 255))
    cut = pipeline.crop(image, box)
    assert cut.shape == (30, 120, 3)
    assert cut[2:-2, 2:-2, 2].mean() > 250
    mask = (image[:, :, 2] > 0).astype(np.float32)
    (result,) = pipeline.boxes(mask, (200, 300))
    assert result.angle == pytest.approx(angle, abs=2)


def test_an_upright_box_is_turned() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    image[10:20, 40:50] = 255
    cut = pipeline.crop(image, Box((45, 50), 10, 80, 0))
    assert cut.shape == (10, 80, 3)
    assert cut[:, -8:].mean() > 200, "what was above is to the right, as in a line that ran upwards"


def test_crops_share_a_batch() -> None:
    wide, narrow = np.full((24, 400, 3), 255, dtype=np.uint8), np.zeros((48, 48, 3), dtype=np.uint8)
    batch = pipeline.recogniser_input([wide, narrow])
    assert batch.shape == (2, 3, 48, 800)
    assert batch[0].min() == 1.0
    assert batch[1, :, :, :48].max() == -1.0
    assert np.count_nonzero(batch[1, :, :, 48:]) == 0
    assert pipeline.recogniser_input([narrow]).shape == (1, 3, 48, 320)
    assert pipeline.classifier_input([wide, narrow]).shape == (2, 3, 48, 192)


def test_only_sure_lines_are_turned() -> None:
    line = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sure, unsure = pipeline.upright([line, line], np.array([[0.05, 0.95], [0.2, 0.8]], dtype=np.float32))
    np.testing.assert_array_equal(sure, line[::-1, ::-1])
    np.testing.assert_array_equal(unsure, line)


def test_decoding_drops_blanks_and_repeats() -> None:
    symbols = alphabet("a\nb")
    assert symbols == ("", "a", "b", " ")
    probability = np.full((2, 7, 4), 0.1, dtype=np.float32)
    for step, index in enumerate((1, 1, 0, 1, 3, 2, 2)):
        probability[0, step, index] = 0.7
    probability[1, :, 0] = 0.7
    texts, scores = decode(probability, symbols)
    assert texts == ["aa b", ""]
    assert scores == pytest.approx([0.7, 0.0])


def test_networks_are_found_in_the_installed_package() -> None:
    assert [network_file(part).is_file() for part in ("det", "cls", "rec")] == [True] * 3
    characters = Network("rec").metadata("character")
    assert len(alphabet(characters)) == 6625


@pytest.mark.parametrize(
    ("part", "package", "message"), [("det", "no_such_package", "not installed"), ("no", "rapidocr_onnxruntime", "expected one file")]
)
def test_a_missing_network_names_the_requirements(part: str, package: str, message: str) -> None:
    with pytest.raises(OcrError, match=rf"{message}.*pip install -r examples/ocr/requirements\.txt"):
        network_file(part, package)


def test_images_are_loaded_or_refused(tmp_path: Path) -> None:
    image, other = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(image), render_sample())
    np.testing.assert_array_equal(pipeline.load_image(image), render_sample())
    other.write_text("no image")
    with pytest.raises(OcrError, match=r"b\.png: not an image"):
        pipeline.load_image(other)
    with pytest.raises(OcrError, match=r"c\.png: no such file"):
        pipeline.load_image(tmp_path / "c.png")
