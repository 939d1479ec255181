"""Slurm: jobs as servers."""
