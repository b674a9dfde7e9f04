"""How does a Transformer that somebody else trained go on learning?  Read, placed in levels, and written back."""
