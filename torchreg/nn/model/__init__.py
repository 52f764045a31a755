"""What is done to a whole model: replace, insert and seed dropout, schedule its rates, Monte Carlo predictions."""
