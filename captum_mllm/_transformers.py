"""What transformers exports from the modules of single models alone, all in one place."""

from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

__all__ = ["convert_sparse_cross_attention_mask_to_dense", "get_cross_attention_token_mask"]
