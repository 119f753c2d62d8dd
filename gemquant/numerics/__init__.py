"""Pure functions on tensors, without files or models: rounding, packing, search, statistics."""
