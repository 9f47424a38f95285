"""Everything that a supervisor's process loads: it owns one engine and leaves nothing of it."""
