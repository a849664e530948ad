"""Config and preprocessor of a model, found from its ONNX file alone."""
