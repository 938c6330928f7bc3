"""What each middleware adds to a request and to a chunk of a stream, in process, beside those of others."""
