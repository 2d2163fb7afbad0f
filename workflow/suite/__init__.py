"""Suites of runs: read, checked, expanded into runs and jobs."""
