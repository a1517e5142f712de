"""What this machine knows of engines that it did not get from a stranger: its own builds, and signatures."""
