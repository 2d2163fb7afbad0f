"""Files, errors, signals, progress, hardware: nothing here changes a number."""
