"""Random checkpoints of true shapes: what a device can run does not depend on what the weights say."""
