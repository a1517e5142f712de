"""What is known of weights and their inputs: ranges, scales, roundings, and what stays a float."""
