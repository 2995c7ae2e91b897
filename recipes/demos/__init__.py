"""What the demo, its recording and other recipes share."""
