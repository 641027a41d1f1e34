"""Measuring functions of the check of xllm."""
