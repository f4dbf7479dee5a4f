"""Configurations: `default` holds every key, the others are deltas."""
