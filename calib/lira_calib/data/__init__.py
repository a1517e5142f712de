"""Pictures, questions and answers, and what a bundle's stages make of them."""
