"""What the service is compared with: each a whole program, written as its framework's documentation teaches."""
