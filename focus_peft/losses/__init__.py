"""The paper's two losses."""
