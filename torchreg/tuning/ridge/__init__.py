"""Ridge paths: a linear head in closed form at many strengths, and the choice of one without held-out examples."""
