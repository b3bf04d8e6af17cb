"""What a person asks a running stack."""
