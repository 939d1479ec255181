"""The commands, one per module; `cli.py` and the modules of its `PARTS` only parse their options."""
