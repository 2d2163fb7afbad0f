"""Data sets: what they are, how they are found, written and checked."""
