"""What a model costs and which levers are safe, measured on a real Triton."""
