"""The core of the benchmark: quantizers, conversion, networks, data, training. Knows no method."""
