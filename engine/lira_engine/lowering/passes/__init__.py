"""Graph passes, one a file. Each says what it requires, does and ensures."""
