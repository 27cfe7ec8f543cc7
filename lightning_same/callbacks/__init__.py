"""The monitors, for any LightningModule."""
