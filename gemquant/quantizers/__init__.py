"""Algorithms that decide numbers; none knows a file format."""
