"""Which columns of a weight matter: importance matrices, made from texts and images, stored and judged. Quantizes
nothing."""
