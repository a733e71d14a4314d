"""Pure decisions that concern hosted registries."""
