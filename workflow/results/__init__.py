"""From run folders to tables, plots and the report."""
