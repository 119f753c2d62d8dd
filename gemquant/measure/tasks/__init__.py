"""Benchmarks of lm-eval on finished artifacts, each in the runtime that executes it."""
