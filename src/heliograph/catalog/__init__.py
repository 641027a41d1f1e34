"""What is claimed: one card a system, and search over the cards."""
