"""From a model of text to one that answers: each method one file that reads like its paper."""
