"""What is known of the items: which of them may be recommended."""
