"""How well a model answers: questions, the judging of answers, and the run over all of them. Prints nothing."""
