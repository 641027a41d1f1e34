"""The serving engine: requests share steps of one model, and exchange keys and values through blocks."""
