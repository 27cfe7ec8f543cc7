"""Published models under two passes and beside the monitors."""
