"""Pure functions of tensors, one method per file."""
