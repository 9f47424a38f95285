"""Decide what a launch is: each `auto` becomes a choice, and a config a `ServeSpec`. Nothing is written or started."""
