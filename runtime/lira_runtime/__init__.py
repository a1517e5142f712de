"""Image and instruction to text, masks and events. Needs neither torch nor transformers."""
