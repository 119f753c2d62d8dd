"""What was lost: the original and a quantized model on the same tokens."""
