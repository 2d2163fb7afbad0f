"""The sweep: suites, jobs, tables, plots, report and tracking."""
