"""The demo: everything on one machine, with a load that surges, seen live."""
