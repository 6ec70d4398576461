"""Spool to counters to evidence, in a process of its own; reports to control through a spool."""
