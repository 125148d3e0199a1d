"""Explanations to look at: the page, and plots."""

from captum_mllm.visualization.page import ScaleView, embed_page, render_page

__all__ = ["ScaleView", "embed_page", "render_page"]
