"""The experiments of two papers at full size, each one command that can be stopped and run again to go on."""
