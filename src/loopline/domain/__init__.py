"""Values and rules: no I/O, no clock, no randomness; time, ids and generators come as arguments."""
