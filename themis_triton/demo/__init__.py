"""The demo: Triton, Envoy and Themis on one machine under a surge, with a live view."""
