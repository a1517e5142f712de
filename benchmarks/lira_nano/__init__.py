"""lira-nano: synthetic scenes, training and evaluation of a miniature LIRA."""
