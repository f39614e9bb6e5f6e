"""What servers take: models and adapters in llama.cpp's GGUF, directories for Ollama, adapters checked for vLLM."""
