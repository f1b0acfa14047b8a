"""The HTTP server of one loaded model (an extra): translates between sockets and the library, computes nothing."""
