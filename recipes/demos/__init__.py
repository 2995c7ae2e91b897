"""What the demo and its page share."""
