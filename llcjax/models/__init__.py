"""flax.nnx models behind one functional bridge."""

from llcjax.models.functional import functional
from llcjax.models.icl_transformer import TransformerConfig, icl_transformer

__all__ = ["TransformerConfig", "functional", "icl_transformer"]
