"""Artifacts whose numbers another program decides, such as AutoAWQ or an ONNX builder."""
