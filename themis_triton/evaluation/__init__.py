"""The published evaluation: its baselines and what they start from. The product's own policy is in `decide`, which never imports this."""
