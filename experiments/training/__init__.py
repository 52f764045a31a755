"""One run: its data, its model, THE training loop, and its record."""
