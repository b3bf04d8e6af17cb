"""ENGINE=fast: fetch ahead, group commit, the fast path of a message."""
