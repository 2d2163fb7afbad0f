"""From a trained run to a file: everything here needs torch."""
