"""Bundle and images to recipe: which weights take which precision."""
