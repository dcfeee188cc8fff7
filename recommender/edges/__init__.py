"""How calls come in: bytes, deadlines, framing, health, reflection."""
