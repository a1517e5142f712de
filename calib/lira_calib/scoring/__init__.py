"""How close a recipe comes to fp32, on recorded sequences."""
