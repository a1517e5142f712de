"""Run portable graphs on recorded inputs: stages, and the language model a layer at a time."""
