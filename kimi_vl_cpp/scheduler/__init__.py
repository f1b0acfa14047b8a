"""Who runs next: the one caller of the core's steps. Knows positions, pages and tokens; no text, no HTTP, no JSON."""
