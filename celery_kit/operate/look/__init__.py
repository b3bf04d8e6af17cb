"""Commands that ask a running stack: status, doctor, dead letters, sending, results."""
