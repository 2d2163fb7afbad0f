"""From a full-precision network to a quantized one, and what it costs."""
