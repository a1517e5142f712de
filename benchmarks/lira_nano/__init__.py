"""lira-nano, a miniature LIRA: its scenes, texts, training and evaluation."""
