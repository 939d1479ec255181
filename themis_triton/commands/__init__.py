"""The commands, one per module; `cli.py` only parses their options."""
