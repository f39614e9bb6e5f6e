"""What every trial imports, in the one process from which the trials are forked: no tensor is made here, no thread."""

import accelerate  # noqa: F401
import safetensors.torch  # noqa: F401
import torch  # noqa: F401
from transformers import (  # noqa: F401
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import peftcli.inference.row_scores
import peftcli.training.run  # noqa: F401
