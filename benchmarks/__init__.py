"""Speed and memory, each as a ratio to a peer that is measured in the same run: `make bench`."""

import os

# Read when torch is imported: above all levels, so that its profiler prints nothing.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
