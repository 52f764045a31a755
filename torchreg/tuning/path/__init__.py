"""The strength chosen before and after training: many strengths, on folds, and the best one of them."""
