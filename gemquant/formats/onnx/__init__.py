"""Reads the ONNX models that onnxruntime-genai's builder makes of a Gemma back into weights."""

from gemquant.formats.onnx.container import Onnx
from gemquant.formats.onnx.graph import MODEL_FILE, OnnxGraph
from gemquant.formats.onnx.weights import OnnxWeights

__all__ = ["MODEL_FILE", "Onnx", "OnnxGraph", "OnnxWeights"]
