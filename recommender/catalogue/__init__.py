"""What is known of the items: their attributes, filters over these, and which of them may be recommended."""
