"""The OCR example: detect → classify → recognise, on ONNX models in Triton, and a client that calls the three stages."""
