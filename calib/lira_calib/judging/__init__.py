"""Ask lowered engines about held-out pictures, and judge whether a build may be kept."""
