"""Keys and values: stores that hold them, and the caches that fill the stores."""
