"""Experiments on what the package is for; each is one command that can be stopped and taken up again."""
