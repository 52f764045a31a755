"""What is done to the dropout of a whole model: replace, insert, seed, schedule, Monte Carlo."""
