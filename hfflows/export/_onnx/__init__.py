"""The ONNX file: its metadata, read and written without parsing the graph."""
