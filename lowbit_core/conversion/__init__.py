"""Turns a full-precision network into a quantized one, and counts what the result costs."""
