"""Runs plans through the ports, off the loop: one task per action, serialised per actuator, with outcomes and back-off."""
