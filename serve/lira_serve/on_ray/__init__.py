"""The same application, with replicas of the engines on Ray Serve in place of the engines' thread."""
