"""Benchmarks: figures and ratios for people, never timed tests. ``make bench`` runs ``python -m bench``."""
