"""Measurements of the check of mcp_sec."""
