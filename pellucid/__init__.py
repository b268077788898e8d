"""pellucid: a language model built, aligned, served and looked into, on one machine."""
