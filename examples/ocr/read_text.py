"""Prints the text of an image: `python examples/ocr/read_text.py IMAGE`, with the pipeline of ocr.yaml running."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ocr_pipeline.client import read_text
from ocr_pipeline.errors import OcrError
from ocr_pipeline.pipeline import load_image


def main() -> int:
    """One line of output per line of text, in reading order, with its score. Returns 0; 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument("--address", default="127.0.0.1:9001", help="host:port of the gRPC listener of Envoy, or of Triton")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    flags = parser.parse_args()
    try:
        lines = asyncio.run(read_text(flags.address, load_image(flags.image)))
    except OcrError as error:
        print(error, file=sys.stderr)
        return 1
    if flags.json:
        print(json.dumps([asdict(line) for line in lines]))
    else:
        for line in lines:
            print(f"{line.text}  {line.score:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
