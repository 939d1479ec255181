"""The commands, one per module; `cli.py` and `evaluating.py` only parse their options."""
