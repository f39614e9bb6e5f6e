"""From a configuration of axolotl or LLaMA-Factory to a recipe."""
