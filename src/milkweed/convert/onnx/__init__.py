"""Models as ONNX files, which are compared with torch before they are written."""
