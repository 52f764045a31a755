"""Many runs: a study in turn, or a search in several processes."""
