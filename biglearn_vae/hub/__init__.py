"""An export as a model repository of the Hugging Face hub: the model card, the files beside the weights, ONNX."""
