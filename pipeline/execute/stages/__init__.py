"""The three stages that every unit goes through: read and tokenize, encode, write. `rewrite` is the stage of files that stay."""
