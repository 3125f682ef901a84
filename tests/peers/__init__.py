"""The libraries whose conventions we keep, themselves: `pip install ".[peers]"`."""
