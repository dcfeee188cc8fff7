"""One batch on its way through a model's sessions, with rules and with items beside the catalogue."""
