"""What others published and ours, at the same cost, on the same noises, in one run."""
