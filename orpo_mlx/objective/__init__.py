"""The ORPO objective: arrays in, arrays out."""
