"""Fine-tune pretrained models with few parameters, driven by one YAML recipe."""

__version__ = "0.1.0"
