"""The two passes of the paper: chunks with their dynamic prompts, then the local window behind the candidates."""
