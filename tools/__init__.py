"""Tools for people who work on Atelier; nothing here is imported by the service."""
