"""Random checkpoints of true shapes, to measure speed and memory, which do not depend on the weights."""
