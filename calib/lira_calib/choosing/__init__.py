"""From what is known and measured to a form for every weight."""
