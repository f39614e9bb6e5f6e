"""What `peft recommend` says: settings for this model, these rows and this memory, each with its reason and source."""
