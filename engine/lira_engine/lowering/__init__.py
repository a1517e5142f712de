"""Lower portable graphs to a target's operators, by pipelines of passes."""
