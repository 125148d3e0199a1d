"""Explanations of whole answers: the explainer of an input, its results and their files."""
