"""In the place of torchaudio, whose wheel does not load beside a CPU build of torch; LLaMA-Factory imports it."""
