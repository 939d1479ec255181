"""Runs plans through the ports, off the loop: one task per action, serialised per lever, with outcomes and back-off."""
