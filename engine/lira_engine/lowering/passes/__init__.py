"""Graph passes, one a file, named after the pass.

Each says what it requires, does and ensures; `requires` and `ensures` check it, unless the docstring says
"not checked". They walk nodes and read no weights.
"""
