"""The bundled checkpoints, each with a card of the same name."""
