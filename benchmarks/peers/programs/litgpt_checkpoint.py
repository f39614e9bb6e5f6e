"""A checkpoint in litgpt's layout, which knows a model by its folder's name. litgpt_checkpoint.py MODEL FOLDER"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

source, target = Path(sys.argv[1]), Path(sys.argv[2])
shutil.copytree(source, target, dirs_exist_ok=True)
convert_hf_checkpoint(checkpoint_dir=target, model_name=target.name)
