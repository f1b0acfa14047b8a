"""Pointing at things in a picture: what is asked, what answers look like, and which pixels they mean."""
