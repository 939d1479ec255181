"""What the command line does, one command a module; `cli.py` only parses."""
