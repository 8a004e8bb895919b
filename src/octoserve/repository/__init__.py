"""Where versions lie: `<root>/<model>/<version>/model.onnx`, and what is known of them before loading.

Nothing here loads a model or decides which version is wanted.
"""
