"""Light Schrodinger Bridge (2310.01174)."""
