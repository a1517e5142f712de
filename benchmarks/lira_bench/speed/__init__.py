"""`lira-edge bench`: where an answer's time goes, tokens per second, memory and bandwidth."""
