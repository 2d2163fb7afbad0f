"""Quantizers of weights and activations, written as the equations of their papers."""
