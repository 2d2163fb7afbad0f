"""Exported networks in the results: table, plots, and a gallery of what they learned."""
