"""From what is and what should be to ordered actions; and the texts of model configurations and Envoy files, as pure functions."""
