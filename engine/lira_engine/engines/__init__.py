"""What all targets agree on: builders, runners, records of builds, tolerances."""
