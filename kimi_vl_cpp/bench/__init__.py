"""How fast a model runs: the work of a pass, its measurement, a peer beside it, tables, plots. Declares no option."""
