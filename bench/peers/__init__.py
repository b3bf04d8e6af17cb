"""The peers, each in a module that says how it sends, and how its worker starts; they run in an environment of their own."""
