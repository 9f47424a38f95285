"""The typed shape of a config, and composing one with Hydra, which nothing outside this room sees."""
