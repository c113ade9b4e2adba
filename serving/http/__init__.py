"""From the ASGI server to a route: requests and answers, admission, identity, uploads."""
