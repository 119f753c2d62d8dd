"""Reads the ONNX models that onnxruntime-genai's builder makes of a Gemma back into weights."""

from gemquant.exporters.onnx.container import Onnx
from gemquant.exporters.onnx.graph import MODEL_FILE, OnnxGraph
from gemquant.exporters.onnx.weights import OnnxWeights

__all__ = ["MODEL_FILE", "Onnx", "OnnxGraph", "OnnxWeights"]
