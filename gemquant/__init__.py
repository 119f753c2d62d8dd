"""gemquant: one Gemma checkpoint in, measured artifacts for every device out."""

__version__ = "0.1.0"
