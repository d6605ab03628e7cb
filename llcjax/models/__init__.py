"""flax.nnx models behind one functional bridge."""

from llcjax.models.attention_only import AttentionOnlyConfig, attention_only
from llcjax.models.functional import functional
from llcjax.models.icl_transformer import TransformerConfig, icl_transformer

__all__ = ["AttentionOnlyConfig", "TransformerConfig", "attention_only", "functional", "icl_transformer"]
