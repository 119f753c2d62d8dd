"""GGML's block formats: types, quantization of rows, and back."""
