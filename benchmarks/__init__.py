"""Measures accuracy, latency and size of every variant, and writes the report."""
