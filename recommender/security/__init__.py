"""Who may call: tokens, certificates, and secrets taken up anew."""
