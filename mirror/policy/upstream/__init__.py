"""Pure decisions that concern upstream registries."""
