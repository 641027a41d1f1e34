"""Real inputs and exact generators that need no internet; one module an input, each importable by itself."""
