"""`make demo`: the main job on servers of its own."""
