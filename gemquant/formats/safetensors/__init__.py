"""Safetensors: headers, mapped reading, writing in one pass."""
