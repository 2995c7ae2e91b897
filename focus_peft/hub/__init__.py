"""From a trained adapter to a repository on the Hub."""
