"""The strength tuned while training: by the gradient of the loss on held-out examples."""
