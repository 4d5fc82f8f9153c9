"""The step inside other people's libraries, each an extra of its own."""
