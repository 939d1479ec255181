"""Everything that speaks to a Triton server: metrics, model control, model configurations, warm-up."""
