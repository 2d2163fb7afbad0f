"""The shared quant core: quantizers, quantized layers, models, data and training."""
