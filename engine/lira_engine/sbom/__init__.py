"""A bill of materials: what is installed, as CycloneDX reads it."""
