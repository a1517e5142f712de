"""The bundle: the folder that `lira-edge export` writes and every other command reads."""
