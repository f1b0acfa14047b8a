"""`kimi-vl serve`: HTTP for one loaded model, in the shapes of OpenAI's API.

Owns sockets, keys, limits, streams of events, metrics, logs and the page. Talks to the model through `KimiVL` alone, in
engine.py, and leaves the meaning of requests and answers to openai/. Computes nothing. Needs the extra `server`.
"""
