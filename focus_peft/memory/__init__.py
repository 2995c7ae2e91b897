"""What has been read."""
