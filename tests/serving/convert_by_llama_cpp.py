"""Run llama.cpp's converters over what `gguf_facts make` wrote; its docstring has the commands.

It imports nothing of this project, and the package `gguf` from llama.cpp's sources. A converter knows a byte-level
tokenizer by a hash of published ones; here it is told its name. The converters of Gemma and Phi 3 want SentencePiece's
own file, which no tiny model has, so their vocabularies are left out.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


def convert(sources: Path, directory: Path) -> None:
    """Write theirs-gguf-TYPE.gguf and theirs-gguf-lora-TYPE.gguf beside each merged model."""
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import TextModel

    for folder in sorted(path for path in directory.iterdir() if (path / "merged").is_dir()):
        name = "qwen2" if folder.name.startswith("qwen") else "gpt-2"
        TextModel.get_vocab_base_pre = lambda _self, _tokenizer, name=name: name
        settings = ModelBase.load_hparams(folder / "merged", False)
        converter = get_model_class(get_model_architecture(settings, ModelType.TEXT))
        if folder.name.startswith(("gemma", "phi3")):
            converter.set_vocab = lambda _self: None
        for kind, file_type in FILE_TYPES.items():
            target = folder / f"theirs-gguf-{kind}.gguf"
            with torch.inference_mode():
                kinds = gguf.LlamaFileType[file_type]
                converter(folder / "merged", kinds, target, hparams=dict(settings)).write()
            options = ["--outfile", str(folder / f"theirs-gguf-lora-{kind}.gguf"), "--outtype", kind]
            sys.argv = ["convert_lora_to_gguf", *options, "--base", str(folder / "model"), str(folder / "run/adapter")]
            runpy.run_path(str(sources / "convert_lora_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
