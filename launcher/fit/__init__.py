"""Estimate the memory of a launch: the sizes of a model, and whether it fits on its devices."""
