r"""How a pretrained language model learns to caption scenes; see README.md in this folder."""
