"""Strengths and dropout rates tuned during training, by the gradient of the loss on held-out examples."""
