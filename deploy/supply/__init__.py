"""The papers of an image: what it holds and under which licences, where it comes from, and who says so."""
