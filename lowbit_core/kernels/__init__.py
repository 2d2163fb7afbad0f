"""The quantizers' passes on a processor in C++, and how they are built and called."""
