"""What the sensors of a GPU, or of a board, tell while something runs on it."""
