"""The quantizers' one-pass kernels: C++ sources for the processor, their build and their calls."""
