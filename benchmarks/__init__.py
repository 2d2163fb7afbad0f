"""Speed and memory, each as a ratio to a peer that is measured in the same run: `make bench`."""

import os

# Read when torch is imported: its profiler and its allocator print nothing between the tables.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # above all levels
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
