"""ONE RUN: its data, its model, the training loop, and its record."""
