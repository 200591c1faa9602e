"""What one site says of itself, what it allows, and what it keeps on its own disk between rounds."""
