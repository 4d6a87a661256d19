"""Published numbers, reproduced: each job is one (recipe, set, seed) and leaves one file under docs/results/."""
