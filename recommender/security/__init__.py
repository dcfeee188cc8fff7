"""Access control: tokens, certificates, and reloading them."""
