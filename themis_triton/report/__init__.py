"""Pictures of runs; needs the extra `report`."""
