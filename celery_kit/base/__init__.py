"""What every other package of the kit may import. It imports none of them."""
