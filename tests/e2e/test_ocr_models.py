"""The OCR pipeline on a real Triton: real networks read text that is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from ocr_pipeline import pipeline
from ocr_pipeline.client import CLASSIFY, DETECT, RECOGNISE, read_text
from ocr_pipeline.errors import OcrError
from ocr_pipeline.sample import SAMPLE_LINES, render_sample
from tests.e2e.triton_process import TritonProcess, free_ports, running_triton

pytestmark = pytest.mark.e2e
MODELS = Path(__file__).parents[2] / "examples" / "ocr" / "models"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    with running_triton(tmp_path_factory.mktemp("ocr"), [DETECT, CLASSIFY, RECOGNISE], repository=MODELS) as process:
        yield process


def texts(server: TritonProcess, image: pipeline.Image) -> list[str]:
    return [line.text for line in asyncio.run(read_text(server.grpc_address, image))]


def test_reads_the_sample(server: TritonProcess) -> None:
    lines = asyncio.run(read_text(server.grpc_address, render_sample()))
    assert [line.text for line in lines] == list(SAMPLE_LINES)
    assert min(line.score for line in lines) > 0.9
    tops = [line.corners[0][1] for line in lines]
    assert tops == pytest.approx([38, 102, 166], abs=10)
    assert all(0 <= x <= 640 and 0 <= y <= 256 for line in lines for x, y in line.corners)


def test_reads_upside_down(server: TritonProcess) -> None:
    assert texts(server, render_sample(upside_down=True)) == list(reversed(SAMPLE_LINES))


def test_reads_lines_that_run_upwards(server: TritonProcess) -> None:
    turned = np.asarray(cv2.rotate(render_sample(), cv2.ROTATE_90_COUNTERCLOCKWISE), dtype=np.uint8)
    assert sorted(texts(server, turned)) == sorted(SAMPLE_LINES)


def test_more_lines_than_a_batch_holds(server: TritonProcess) -> None:
    written = [f"row number {row}" for row in range(100, 120)]
    assert texts(server, render_sample(written)) == written


def test_an_empty_page_has_no_lines(server: TritonProcess) -> None:
    assert texts(server, np.full((300, 500, 3), 255, dtype=np.uint8)) == []


def test_many_clients_at_once_get_their_own_text(server: TritonProcess) -> None:
    written = [[f"client number {index}"] for index in range(10, 18)]

    async def read_all() -> list[list[str]]:
        pages = await asyncio.gather(*(read_text(server.grpc_address, render_sample(lines)) for lines in written))
        return [[line.text for line in page] for page in pages]

    assert asyncio.run(read_all()) == written


def test_an_instance_uses_one_core(server: TritonProcess) -> None:
    stubs = [process for process in psutil.Process(server.pid).children() if "stub" in process.name()]
    assert len(stubs) == 3
    # onnxruntime with its own pools would have a thread for each core and more.
    assert all(sum(1 for thread in stub.threads() if thread.user_time > 0.05) <= 1 for stub in stubs)


def test_an_unreachable_server_is_named() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(OcrError, match=f"ocr-detect at {address} did not answer: .* check that the OCR models are served there"):
        asyncio.run(read_text(address, render_sample()))


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\], found uint8 \[5, 5\]"):
        asyncio.run(read_text("127.0.0.1:1", np.zeros((5, 5), dtype=np.uint8)))
