"""What the graph systems share: exact refinement oracles, message-passing peers, read-out levels, the training loop."""
