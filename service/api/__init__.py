"""What a client can ask for: the routes, their answers, and the OpenAPI document."""
