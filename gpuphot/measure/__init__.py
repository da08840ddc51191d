"""What is measured and in which order; how each step is computed is up to a backend."""
