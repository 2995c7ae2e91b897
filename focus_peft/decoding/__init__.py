"""One token after another: the cache that transformers' loops hold, and how a call becomes the two passes."""
