"""The HTTP side: the server and its limits, middleware, bodies, deadlines, problem documents."""
