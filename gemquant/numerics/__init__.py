"""Pure functions on tensors: affine rounding, packing, search. They know no file and no model."""
