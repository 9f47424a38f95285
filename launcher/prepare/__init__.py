"""Carry out a plan's preparations: environments, models, artifacts, images, files; each whole or not at all."""
