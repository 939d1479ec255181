"""The OCR pipeline: detect → classify → recognise, on real ONNX models served by Triton, and the client that walks it."""
