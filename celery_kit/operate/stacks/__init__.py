"""The stacks: containers, the embedded one, the demo."""
