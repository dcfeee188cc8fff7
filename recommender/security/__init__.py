"""Who may call: tokens, certificates, and reloading them."""
